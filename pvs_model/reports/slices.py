"""Slices for case reports: which ones to show, as grey PNG, with masks as outlines along voxel edges.

Volumes are (x, y, z) in RAS+ order. Every picture has the radiological orientation: the patient's right on the left of
axial and coronal pictures, the front on the left of sagittal ones, front or top uppermost. A picture is an array
(row, column), rows downwards; outlines are in the whole numbers of its pixels' corners.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pvs_model.types import AnyArray, BoolArray, FloatArray, Mask, Triple
from pvs_model.volume.components import Labels, label_components, largest_component
from pvs_model.volume.geometry import crop_to, find_slice_axis

Corner = tuple[int, int]

#: Ratio of the largest to the smallest spacing from which slices are shown across the largest, else axial ones.
ANISOTROPIC = 1.2
#: Smallest distance of the slices of one region.
APART_MM = 8.0
#: Margin around a region, and smallest size of a picture.
MARGIN_MM, MIN_SIZE_MM = 8.0, 64.0
#: Percentiles of the values within the head that are shown as black and white. On T2w fluid is far brighter than
#: tissue: it may be saturated, so that PVS in the white matter are visible.
BLACK_PERCENT = 0.5
WHITE_PERCENT = {"T1w": 99.0, "T2w": 95.0, "FLAIR": 99.5}
#: Number of values that percentiles are computed from.
_SAMPLES = 500_000


@dataclass(frozen=True)
class Plane:
    """A direction of slices.

    Attributes:
        name: Name of the plane.
        across: Axis perpendicular to the slices.
        columns, rows: Axes along the picture's columns and rows, both in falling order.
        edges: Letters of the left and the right edge of the picture in the patient.
        from_end: Position relative to the first slice, human-readable.
    """

    name: str
    across: int
    columns: int
    rows: int
    edges: str
    from_end: str

    def spacing(self, spacing_mm: Triple) -> tuple[float, float]:
        """Returns width and height in mm of a picture's pixel."""
        return spacing_mm[self.columns], spacing_mm[self.rows]

    def slice_of(self, volume: AnyArray, index: int) -> AnyArray:
        """Returns the picture (row, column) of one slice."""
        return radiological(volume.take(index, self.across))

    def projected(self, mask: BoolArray) -> BoolArray:
        """Returns the picture of a mask's maximum along the plane's axis."""
        return radiological(np.asarray(mask.any(self.across)))


SAGITTAL = Plane("sagittal", 0, 1, 2, "AP", "to the right of the leftmost")
CORONAL = Plane("coronal", 1, 0, 2, "RL", "in front of the rearmost")
AXIAL = Plane("axial", 2, 0, 1, "RL", "above the lowest")
#: By the axis across.
PLANES = (SAGITTAL, CORONAL, AXIAL)


def radiological(section: AnyArray) -> AnyArray:
    """Returns a section with its two axes in RAS+ order as a picture (row, column) in radiological orientation."""
    return section.T[::-1, ::-1]


def plane_of(spacing_mm: Triple) -> Plane:
    """Returns the plane of acquisition that the voxel size suggests; axial for nearly isotropic voxels."""
    if max(spacing_mm) < ANISOTROPIC * min(spacing_mm):
        return AXIAL
    return PLANES[find_slice_axis(spacing_mm)]


# --- outlines -------------------------------------------------------------------------------------------


def outlines(mask: BoolArray) -> list[list[Corner]]:
    """Returns the borders of a mask along the edges of its pixels.

    Args:
        mask: Picture (row, column).

    Returns:
        Closed lines as the (column, row) of their corners, in order of their first corner: clockwise around pixels,
        anticlockwise around holes. Pixels that touch by a corner only have a line each.
    """
    filled = np.pad(mask.astype(bool), 1)
    inner = filled[1:-1, 1:-1]
    # Every edge between inside and outside as a step from corner to corner, with the inside on its right.
    steps: dict[Corner, list[Corner]] = {}
    for (up, left), (start_row, start_column), (down, right) in (
        ((-1, 0), (0, 0), (0, 1)),  # upper edge: to the right
        ((0, 1), (0, 1), (1, 0)),  # right edge: down
        ((1, 0), (1, 1), (0, -1)),  # lower edge: to the left
        ((0, -1), (1, 0), (-1, 0)),  # left edge: up
    ):
        beside = filled[1 + up : filled.shape[0] - 1 + up, 1 + left : filled.shape[1] - 1 + left]
        for row, column in np.argwhere(inner & ~beside).tolist():
            steps.setdefault((column + start_column, row + start_row), []).append((right, down))
    lines = []
    for start in sorted(steps, key=lambda corner: (corner[1], corner[0])):
        while steps[start]:
            lines.append(_walk(steps, start))
    return lines


def _walk(steps: dict[Corner, list[Corner]], start: Corner) -> list[Corner]:
    """Returns the turning corners of one closed line from its uppermost, then leftmost corner; uses up its steps."""
    corners = [start]
    at, step = start, steps[start].pop(0)
    while (at := (at[0] + step[0], at[1] + step[1])) != start:
        ways = steps[at]
        # Where two pixels touch by a corner, the turn to the right stays with the own pixel.
        right = (-step[1], step[0])
        following = ways.pop(ways.index(right) if right in ways else 0)
        if following != step:
            corners.append(at)
        step = following
    return corners


def path(mask: BoolArray) -> str:
    """Returns the outlines of a mask (row, column) as the commands of an SVG path; "" for an empty one."""
    parts = []
    for corners in outlines(mask):
        (x, y), rest = corners[0], corners[1:]
        parts.append(f"M{x} {y}")
        for column, row in rest:
            parts.append(f"h{column - x}" if row == y else f"v{row - y}")
            x, y = column, row
        parts.append("z")
    return "".join(parts)


# --- images ---------------------------------------------------------------------------------------------


def window(image: FloatArray, sequence: str) -> tuple[float, float]:
    """Returns the values shown as black and as white: percentiles of those within the head, where they are not 0."""
    values = image[image != 0]
    if not values.size:
        return 0.0, 1.0
    values = values[:: max(1, values.size // _SAMPLES)]
    low, high = (float(value) for value in np.percentile(values, (BLACK_PERCENT, WHITE_PERCENT[sequence])))
    return (low, high) if high > low else (low, low + 1)


def grey(picture: FloatArray, shown: tuple[float, float]) -> Mask:
    """Returns 8-bit greys: black to white over the window, black where the value is 0."""
    low, high = shown
    scaled = np.clip((picture - low) * (255 / (high - low)), 0, 255)
    greys: Mask = np.where(picture == 0, 0, np.rint(scaled)).astype(np.uint8)
    return greys


def png_uri(greys: Mask) -> str:
    """Returns an 8-bit grey picture (row, column) as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(greys)).save(stream, "PNG", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- which slices ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownSlice:
    """The index of a slice, and the number of PVS that it cuts in the region."""

    index: int
    pvs: int


def clusters(mask: BoolArray) -> Labels:
    """Returns 1, 2, ... in the voxels of each 26-connected cluster, 0 elsewhere."""
    labels = np.zeros(mask.shape, np.int32)
    box = box_of(mask)
    if box is not None:
        labels[box], _ = label_components(mask[box])
    return labels


def choose_slices(
    labels: Labels, region: BoolArray, plane: Plane, spacing_mm: Triple, most: int = 3
) -> list[ShownSlice]:
    """Chooses the slices of a region that cut the most PVS, then those with the most of their voxels.

    Args:
        labels: int32 (x, y, z) of ``clusters``.
        region: bool (x, y, z).
        plane: Plane of the slices.
        spacing_mm: Voxel size.
        most: Largest number of slices.

    Returns:
        In order of their index, at least ``APART_MM`` apart; where the region has no PVS the slice that cuts most of
        it; none for an empty region.
    """
    slices = labels.shape[plane.across]
    place = np.nonzero(region & (labels > 0))
    if not len(place[0]):
        area = region.sum(tuple(axis for axis in range(3) if axis != plane.across))
        return [ShownSlice(int(area.argmax()), 0)] if area.any() else []
    number = labels[place].astype(np.int64)
    top = int(number.max()) + 1
    pairs = np.unique(place[plane.across] * top + number)
    counts = np.bincount(pairs // top, minlength=slices)
    voxels = np.bincount(place[plane.across], minlength=slices)
    middle = float(np.mean(place[plane.across]))
    order = sorted(np.flatnonzero(counts).tolist(), key=lambda k: (-counts[k], -voxels[k], abs(k - middle), k))
    apart = max(1.0, APART_MM / spacing_mm[plane.across])
    kept: list[int] = []
    for index in order:
        if len(kept) < most and all(abs(index - other) >= apart for other in kept):
            kept.append(index)
    return [ShownSlice(index, int(counts[index])) for index in sorted(kept)]


def box_of(mask: BoolArray) -> tuple[slice, slice, slice] | None:
    """Returns the smallest box with all of a mask; None for an empty one."""
    return crop_to(mask).slices if mask.any() else None


def frame(region: BoolArray, within: BoolArray, spacing_mm: Triple) -> tuple[slice, slice, slice]:
    """Returns the box to show of a region: with a margin, at least ``MIN_SIZE_MM``, not beyond the head.

    Args:
        region: bool (x, y, z), not empty.
        within: bool (x, y, z), the head; all of the grid where it is empty.
        spacing_mm: Voxel size.
    """
    box, limits = box_of(region), box_of(within) or tuple(slice(0, n) for n in within.shape)
    if box is None:
        raise ValueError("expected a region of one voxel or more, got an empty one")
    shown = []
    for own, limit, mm in zip(box, limits, spacing_mm, strict=True):
        margin = max(round(MARGIN_MM / mm), -(-(round(MIN_SIZE_MM / mm) - (own.stop - own.start)) // 2))
        low, high = min(own.start, limit.start), max(own.stop, limit.stop)
        shown.append(slice(max(low, own.start - margin), min(high, own.stop + margin)))
    return shown[0], shown[1], shown[2]


def silhouette(head: BoolArray, plane: Plane) -> BoolArray:
    """Returns the picture of a head's projection: its largest piece, without holes."""
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(largest_component(plane.projected(head))))


def head_of(images: Mapping[str, FloatArray]) -> BoolArray:
    """Returns where any of the images is not 0."""
    first, *others = images.values()
    head: BoolArray = first != 0
    for image in others:
        head |= image != 0
    return head

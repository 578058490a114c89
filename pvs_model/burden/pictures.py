"""What the page of a case shows: slices as grey PNG, masks as paths along voxel edges, and which slices to show.

Volumes are (x, y, z) in RAS+ order. Every picture lies as a radiologist hangs it: the patient's right on the left of
axial and coronal pictures, the front on the left of sagittal ones, front or top uppermost. A picture is an array
(row, column), rows downwards; the corners of its pixels are whole numbers, which paths are written in.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.types import FloatArray
from pvs_model.volume.geometry import thick_axis

Bool = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Array = npt.NDArray[Any]
Corner = tuple[int, int]
Spacing = tuple[float, float, float]

#: Slices are shown across the axis whose spacing is this much larger than the smallest, else axial ones.
ANISOTROPIC = 1.2
#: Slices of one region lie at least this far apart.
APART_MM = 8.0
#: What is shown around a region, and the least that a picture shows.
MARGIN_MM, LEAST_MM = 8.0, 64.0
#: Share of the values within the head below which they are black, and white from it on, in per cent. On T2w fluid is
#: far brighter than all else: it may be white throughout, so that PVS in the white matter are seen.
BLACK_PERCENT = 0.5
WHITE_PERCENT = {"T1w": 99.0, "T2w": 95.0, "FLAIR": 99.5}
#: Values that percentiles are taken from.
_SAMPLES = 500_000


@dataclass(frozen=True)
class Plane:
    """A direction of slices.

    Attributes:
        name: of the plane.
        across: axis that slices are perpendicular to.
        columns, rows: axes that lie along the picture's columns and rows, both in falling order.
        edges: where the left and the right edge of the picture lie in the patient.
        from_end: where a slice lies, seen from the one that is counted first, in words.
    """

    name: str
    across: int
    columns: int
    rows: int
    edges: str
    from_end: str

    def spacing(self, spacing_mm: Spacing) -> tuple[float, float]:
        """Width and height in mm of a picture's pixel."""
        return spacing_mm[self.columns], spacing_mm[self.rows]

    def slice_of(self, volume: Array, index: int) -> Array:
        """The picture (row, column) of one slice."""
        return hung(volume.take(index, self.across))

    def projected(self, mask: Bool) -> Bool:
        """The picture of a mask's maximum along the plane's axis."""
        return hung(np.asarray(mask.any(self.across)))


SAGITTAL = Plane("sagittal", 0, 1, 2, "AP", "to the right of the leftmost")
CORONAL = Plane("coronal", 1, 0, 2, "RL", "in front of the rearmost")
AXIAL = Plane("axial", 2, 0, 1, "RL", "above the lowest")
#: By the axis across.
PLANES = (SAGITTAL, CORONAL, AXIAL)


def hung(section: Array) -> Array:
    """A section with its two axes in RAS+ order as a picture (row, column)."""
    return section.T[::-1, ::-1]


def plane_of(spacing_mm: Spacing) -> Plane:
    """The plane in which a scan was acquired, as far as its voxels tell; axial where they are about cubes."""
    if max(spacing_mm) < ANISOTROPIC * min(spacing_mm):
        return AXIAL
    return PLANES[thick_axis(spacing_mm)]


# --- outlines -------------------------------------------------------------------------------------------


def outlines(mask: Bool) -> list[list[Corner]]:
    """The borders of a mask along the edges of its pixels.

    Args:
        mask: (row, column).

    Returns:
        Closed lines as the (column, row) of their corners, in order of their first corner: clockwise around pixels,
        anticlockwise around holes. Pixels that touch by a corner only have a line each.
    """
    filled = np.pad(mask.astype(bool), 1)
    inner = filled[1:-1, 1:-1]
    # Every edge between in and out as a step from corner to corner, with the inside on its right.
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
    found = []
    for start in sorted(steps, key=lambda corner: (corner[1], corner[0])):
        while steps[start]:
            found.append(_walk(steps, start))
    return found


def _walk(steps: dict[Corner, list[Corner]], start: Corner) -> list[Corner]:
    """One closed line from its uppermost, then leftmost corner, its steps used up; the corners at which it turns."""
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


def path(mask: Bool) -> str:
    """The outlines of a mask (row, column) as the commands of an SVG path; "" where it is empty."""
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
    """The values to show as black and as white: percentiles of those that are not 0, which is outside the head."""
    values = image[image != 0]
    if not values.size:
        return 0.0, 1.0
    values = values[:: max(1, values.size // _SAMPLES)]
    low, high = (float(value) for value in np.percentile(values, (BLACK_PERCENT, WHITE_PERCENT[sequence])))
    return (low, high) if high > low else (low, low + 1)


def grey(picture: FloatArray, shown: tuple[float, float]) -> Bytes:
    """Values as 8-bit greys: black to white over the window, black where the value is 0."""
    low, high = shown
    scaled = np.clip((picture - low) * (255 / (high - low)), 0, 255)
    found: Bytes = np.where(picture == 0, 0, np.rint(scaled)).astype(np.uint8)
    return found


def png_uri(greys: Bytes) -> str:
    """An 8-bit grey picture (row, column) as a data URI."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(greys)).save(stream, "PNG", compress_level=9)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


# --- which slices ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A slice to show, and the number of PVS that it cuts in the region."""

    index: int
    pvs: int


def clusters(mask: Bool) -> Labels:
    """1, 2, ... for the voxels of each 26-connected cluster, 0 elsewhere."""
    from scipy import ndimage

    found = np.zeros(mask.shape, np.int32)
    box = box_of(mask)
    if box is not None:
        found[box], _ = ndimage.label(mask[box], np.ones((3, 3, 3)))
    return found


def choose_slices(labels: Labels, region: Bool, plane: Plane, spacing_mm: Spacing, most: int = 3) -> list[Chosen]:
    """The slices of a region that cut the most PVS, then those with the most of their voxels.

    Args:
        labels: int32 (x, y, z) of ``clusters``.
        region: bool (x, y, z).
        plane: of the slices.
        spacing_mm: of the voxels.
        most: slices at most.

    Returns:
        In order of their index, at least ``APART_MM`` apart; where the region has no PVS the slice that cuts most of
        it; none for an empty region.
    """
    slices = labels.shape[plane.across]
    place = np.nonzero(region & (labels > 0))
    if not len(place[0]):
        area = region.sum(tuple(axis for axis in range(3) if axis != plane.across))
        return [Chosen(int(area.argmax()), 0)] if area.any() else []
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
    return [Chosen(index, int(counts[index])) for index in sorted(kept)]


def box_of(mask: Bool) -> tuple[slice, slice, slice] | None:
    """The smallest box with all of a mask; None where it is empty."""
    box = []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))
        if not len(hit):
            return None
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return box[0], box[1], box[2]


def frame(region: Bool, within: Bool, spacing_mm: Spacing) -> tuple[slice, slice, slice]:
    """The box to show of a region: with a margin, not smaller than is sensible, not beyond the head.

    Args:
        region: bool (x, y, z), not empty.
        within: bool (x, y, z), where there is anything to see; all of the grid where it is empty.
        spacing_mm: of the voxels.
    """
    box, limits = box_of(region), box_of(within) or tuple(slice(0, n) for n in within.shape)
    if box is None:
        raise ValueError("expected a region of one voxel or more, found an empty one")
    shown = []
    for own, limit, mm in zip(box, limits, spacing_mm, strict=True):
        margin = max(round(MARGIN_MM / mm), -(-(round(LEAST_MM / mm) - (own.stop - own.start)) // 2))
        low, high = min(own.start, limit.start), max(own.stop, limit.stop)
        shown.append(slice(max(low, own.start - margin), min(high, own.stop + margin)))
    return shown[0], shown[1], shown[2]


def silhouette(head: Bool, plane: Plane) -> Bool:
    """The picture of a head's or brain's projection: its largest piece, without holes."""
    from scipy import ndimage

    flat = plane.projected(head)
    pieces, count = ndimage.label(flat)
    if count > 1:
        flat = pieces == 1 + int(np.bincount(pieces.ravel())[1:].argmax())
    found: Bool = ndimage.binary_fill_holes(flat)
    return found


def head_of(images: Mapping[str, FloatArray] | Sequence[FloatArray]) -> Bool:
    """Where any of the images is not 0."""
    arrays = list(images.values()) if isinstance(images, Mapping) else list(images)
    found: Bool = arrays[0] != 0
    for image in arrays[1:]:
        found |= image != 0
    return found

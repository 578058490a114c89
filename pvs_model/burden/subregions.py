"""Parts of the cerebral white matter that raters distinguish: centrum semiovale (CSO) and deep white matter.

Both are derived from the parcellation. Levels are measured in the head's own frame, not along the scanner's axes: a
head is often pitched by 15 degrees in the scanner, which shifts a level by 15 mm from its front to its back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.types import Affine, BoolArray, Float64Array, FloatArray
from pvs_model.volume.components import FACES, filter_components, largest_component
from pvs_model.volume.geometry import crop_to

#: Names in tables and on pages.
CSO, DEEP_WM = "CSO", "deep WM"
#: White matter at least this far from the cortex is deep; nearer, it is juxtacortical (Kim 2008, Biol Psychiatry 64).
DEEP_MM = 4.0
#: Smaller pieces of cortex are taken for mislabelled white matter.
MIN_CORTEX_MM3 = 1000.0
#: Height above the roof of the lateral ventricle of the section on which PVS of the CSO are rated (Adams 2013, Stroke
#: 44; mfns_de_t2_2024, 2.3).
RATED_MM = 10.0
#: Share of a lateral ventricle's voxels, in percent, that lie below its roof; the rest may be mislabelled.
ROOF_PERCENT = 99.0

#: Centres of structures on the right in mm (right, anterior, superior), relative to the mean of all on both sides;
#: x is negative on the left. Mean of two brains in the axes of MNI152 and SRI24, which differ by 2 degrees.
_CENTRES: dict[str, tuple[int, int, int]] = {
    "CAU": (13, 12, 10), "PUT": (24, 6, 2), "PAL": (19, 3, -1), "THA": (10, -10, 5), "IC": (17, 1, 7),
    "HIP": (25, -10, -14), "AMY": (22, 6, -15), "VDC": (8, 0, -6), "LV": (13, -7, 12),
}  # fmt: skip
#: Fewest structures, left and right counted apart, that define a frame; and fewest voxels of one.
_FEWEST, _FEWEST_VOXELS = 6, 20


@dataclass(frozen=True)
class WhiteMatterParts:
    """Parts of the white matter on the grid of an anatomy.

    Attributes:
        height_mm: float32 (x, y, z), height above the roof of the lateral ventricle of the voxel's side, in the head's
            frame, -inf far outside; None where the frame or a roof is unknown.
        deep: bool (x, y, z), at least ``DEEP_MM`` from the cortex; None where no cortex is labelled.
    """

    height_mm: FloatArray | None
    deep: BoolArray | None

    def masks(self, white_matter: BoolArray) -> dict[str, BoolArray]:
        """Returns the known parts of a white matter by name, bool (x, y, z); they may overlap."""
        parts = {}
        if self.height_mm is not None:
            parts[CSO] = white_matter & (self.height_mm > 0)
        if self.deep is not None:
            parts[DEEP_WM] = white_matter & self.deep
        return parts

    def rated_section(self, thickness_mm: float) -> BoolArray | None:
        """Returns the voxels within half of a thickness of ``RATED_MM`` above the roof, bool (x, y, z), or None."""
        return None if self.height_mm is None else abs(self.height_mm - RATED_MM) <= thickness_mm / 2


def white_matter_parts(anatomy: Anatomy, affine: Affine) -> WhiteMatterParts:
    """Computes the parts of the white matter of a head.

    Args:
        anatomy: Parcellation.
        affine: (4, 4), voxel index to RAS mm.

    Example:
        >>> parts = white_matter_parts(anatomy, affine)
        >>> cso = parts.masks(anatomy.mask("WM"))["CSO"]
    """
    from scipy import ndimage

    if not anatomy.labels.any():
        return WhiteMatterParts(None, None)
    box = crop_to(anatomy.labels)
    placed = affine.astype(np.float64)
    placed[:3, 3] += placed[:3, :3] @ [part.start for part in box.slices]
    cropped = Anatomy(box.apply(anatomy.labels), box.apply(anatomy.brain))
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    least = MIN_CORTEX_MM3 / float(np.prod(spacing_mm))
    cortex = filter_components(cropped.mask("CTX"), lambda sizes: sizes >= least, FACES)
    heights, height = _heights(cropped, placed), None
    if heights is not None:
        height = np.full(anatomy.labels.shape, -np.inf, np.float32)
        height[box.slices] = heights
    deep = None
    if cortex.any():
        deep = box.invert(ndimage.distance_transform_edt(~cortex, sampling=spacing_mm) >= DEEP_MM)
    return WhiteMatterParts(height, deep)


def superior_axis(anatomy: Anatomy, affine: Affine) -> Float64Array | None:
    """Estimates the direction of superior in the head, the normal of the axial plane of MNI152.

    It is the rotation that fits the centres of deep structures to those of a brain in these axes (least squares).

    Args:
        anatomy: Parcellation.
        affine: (4, 4), voxel index to RAS mm.

    Returns:
        Unit vector (3,) in RAS mm; None with too few structures in the field of view.
    """
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    sizes = np.bincount(anatomy.labels.ravel(), minlength=256)
    expected = {}
    for name, (x, y, z) in _CENTRES.items():
        for side, sign in (("L", -1), ("R", 1)):
            (value,) = values_of(f"{side}-{name}")
            if sizes[value] >= _FEWEST_VOXELS:
                expected[value] = (sign * x, y, z)
    if len(expected) < _FEWEST:
        return None
    centres = np.array(ndimage.center_of_mass(anatomy.labels > 0, anatomy.labels, list(expected))) @ affine[:3, :3].T
    places = np.array(list(expected.values()), np.float64)
    rotation, _ = Rotation.align_vectors(centres - centres.mean(0), places - places.mean(0))
    axis: Float64Array = rotation.apply([0.0, 0.0, 1.0])
    return axis


def _heights(anatomy: Anatomy, affine: Affine) -> FloatArray | None:
    """Returns the height of every voxel above the roof on its side; that of the higher roof where it has no side."""
    axis = superior_axis(anatomy, affine)
    if axis is None:
        return None
    x, y, z = np.ogrid[tuple(slice(0, n) for n in anatomy.labels.shape)]
    along = axis @ affine[:3, :3]
    height = (along[0] * x + along[1] * y + along[2] * z).astype(np.float32)
    roofs = {}
    for side in ("L", "R"):
        ventricle = largest_component(anatomy.mask(f"{side}-LV"))
        if np.count_nonzero(ventricle) < _FEWEST_VOXELS:
            return None
        roofs[side] = float(np.percentile(height[ventricle], ROOF_PERCENT))
    roof = np.full(height.shape, max(roofs.values()), np.float32)
    for side, value in roofs.items():
        roof[anatomy.mask(f"{side}-intracranial")] = value
    return height - roof

"""The grid on which a network sees a case, and the way back to the case's own grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pvs_model.config import is_thick
from pvs_model.errors import VolumeError
from pvs_model.preprocessing.prepare import PreparedImages
from pvs_model.types import PLANES, Affine, AnyArray, BoolArray, FloatArray, Grid, Mask, Region, Triple, Volume
from pvs_model.volume.geometry import Crop, Respacing, crop_to, find_slice_axis, resample_onto, respacing

Scalar = TypeVar("Scalar", bound=np.generic)
Range = tuple[float, float]

#: Voxels kept around the foreground.
CROP_MARGIN = 4
#: Axes are permuted only if the largest spacing is at least this multiple of the smallest.
ANISOTROPY = 1.2
#: Axis order that puts the slice axis last, by slice axis.
SLICE_AXIS_LAST = {axes[2]: axes for axes in PLANES.values()}
#: Relative tolerance of the trained range of spacings.
TOLERANCE = 0.03


@dataclass(frozen=True)
class NetworkGrid:
    """Maps arrays from a case's grid to that of the network and back.

    ``apply`` crops to the foreground, resamples where the spacing lies outside the range of training, and puts the
    slice axis last. ``invert`` undoes this.

    Attributes:
        crop: Box around the foreground.
        affine: Affine of the box, voxel to mm.
        respacing: Resampling into the trained range; None if the spacing lies within.
        order: Case axis of each network axis.

    Example:
        >>> foreground = np.zeros((8, 40, 40), bool)
        >>> foreground[1:7, 10:30, 10:30] = True
        >>> grid = NetworkGrid.create(foreground, np.diag([5.0, 1.0, 1.0, 1.0]), 2, (0.4, 1.2), (2.5, 8.0))
        >>> network_image = grid.apply(foreground.astype(np.float32))
        >>> network_image.shape  # cropped with a margin of 4 voxels, slices last
        (28, 28, 8)
        >>> grid.invert(network_image).shape
        (8, 40, 40)
    """

    crop: Crop
    affine: Affine
    respacing: Respacing | None
    order: tuple[int, int, int]

    @classmethod
    def create(
        cls,
        foreground: BoolArray,
        affine: Affine,
        spatial_dims: int,
        in_plane_mm: Range,
        through_plane_mm: Range,
    ) -> NetworkGrid:
        """Derives the grid from a case and the range of spacings that training covered.

        Args:
            foreground: bool (x, y, z), head or brain.
            affine: Affine (4, 4) of the case, voxel to mm in RAS+.
            spatial_dims: 2 or 3, of the network.
            in_plane_mm: Lowest and highest trained spacing within slices.
            through_plane_mm: Lowest and highest trained spacing across slices.
        """
        crop = crop_to(foreground, CROP_MARGIN)
        x, y, z = crop.apply(foreground).shape
        box = Grid((x, y, z), crop.affine(affine))
        target = target_spacing(box.spacing_mm, spatial_dims, in_plane_mm, through_plane_mm)
        change = respacing(box, target) if target != box.spacing_mm else None
        spacing_mm = box.spacing_mm if change is None else change.new.spacing_mm
        return cls(crop, box.affine, change, axis_order(spacing_mm, spatial_dims))

    def apply(self, array: AnyArray) -> FloatArray:
        """Maps an array (x, y, z) on the case's grid to float32 on the network's grid."""
        data = np.ascontiguousarray(self.crop.apply(array), dtype=np.float32)
        if self.respacing is not None:
            data = resample_onto(Volume(data, self.affine), self.respacing.new).data
        return data.transpose(self.order)

    def apply_mask(self, mask: AnyArray, threshold: float = 0.5) -> Mask:
        """Maps a mask (x, y, z), keeping voxels of which at least ``threshold`` is covered."""
        return (self.apply(mask) >= threshold).astype(np.uint8)

    def invert(self, array: npt.NDArray[Scalar]) -> AnyArray:
        """Maps an array on the network's grid back to the case's grid, with zeros outside the box."""
        data: AnyArray = np.ascontiguousarray(array.transpose(np.argsort(self.order)))
        return self.crop.invert(data if self.respacing is None else self.respacing.invert(data))


def choose_configuration(grid: Grid) -> str:
    """Chooses "3d" below 2.5 mm slice thickness (the largest voxel spacing), "2d" otherwise."""
    return "2d" if is_thick(max(grid.spacing_mm)) else "3d"


def target_spacing(spacing_mm: Triple, spatial_dims: int, in_plane_mm: Range, through_plane_mm: Range) -> Triple:
    """The spacing itself if training covered it, else the nearest trained one.

    Slices are never interpolated for 2D networks: their thickness is kept.
    """
    slice_axis = find_slice_axis(spacing_mm)
    limits = [through_plane_mm if axis == slice_axis else in_plane_mm for axis in range(3)]
    if spatial_dims == 2:
        limits[slice_axis] = (0.0, float("inf"))
    x, y, z = (
        s if low * (1 - TOLERANCE) <= s <= high * (1 + TOLERANCE) else min(max(s, low), high)
        for s, (low, high) in zip(spacing_mm, limits, strict=True)
    )
    return x, y, z


def axis_order(spacing_mm: Triple, spatial_dims: int) -> tuple[int, int, int]:
    """The order of axes that puts the slice axis last; unchanged for nearly isotropic 3D scans."""
    if spatial_dims == 3 and max(spacing_mm) < ANISOTROPY * min(spacing_mm):
        return 0, 1, 2
    return SLICE_AXIS_LAST[find_slice_axis(spacing_mm)]


def network_image(prepared: PreparedImages, grid: NetworkGrid, regions: bool = False) -> FloatArray:
    """The image that a network sees: float32 (channels, X, Y, Z).

    Args:
        prepared: The case.
        grid: Grid of the network.
        regions: Whether to append a channel that is 1 in basal ganglia and centrum semiovale.

    Raises:
        VolumeError: The regions are not known.
    """
    channels = [grid.apply(channel) for channel in prepared.image]
    if regions:
        channels.append(grid.apply_mask(_region_channel(prepared)).astype(np.float32))
    return np.stack(channels)


def _region_channel(prepared: PreparedImages) -> BoolArray:
    if prepared.anatomy is None:
        raise VolumeError(
            "expected a parcellation of the brain, which these networks use, got none: they need "
            "anatomy.safetensors in the weights folder, a brain in the scan, and no --no-anatomy"
        )
    return np.asarray(prepared.anatomy.mask(Region.BG) | prepared.anatomy.mask(Region.CSO))

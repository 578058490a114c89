"""Reorients, resamples and crops volumes, each with its inverse.

Pure functions of arrays and affines. Lengths are in mm where the name ends in ``_mm``, else in voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pvs_model.types import (
    SEQUENCES,
    Affine,
    AnyArray,
    BoolArray,
    Float64Array,
    FloatArray,
    Grid,
    Triple,
    Volume,
    spacing_of,
)

Scalar = TypeVar("Scalar", bound=np.generic)

#: Sampling step in voxels above which the image is smoothed before resampling.
_ANTIALIAS_FROM = 1.5

#: Tolerance in voxels of tests whether a point lies in a box, as affines are stored as float32.
_TOLERANCE = 1e-3

#: Points per axis of the lattice on which ``fov_coverage`` is measured.
_LATTICE = 32


@dataclass(frozen=True)
class Reorientation:
    """A permutation and flips of array axes; ``invert`` undoes ``apply``.

    Attributes:
        axes: Stored axis of each new axis.
        flips: Whether each new axis runs against its stored axis.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Maps an array from the stored order to RAS+ order (x, y, z); a view."""
        permuted = array.transpose(self.axes)
        return permuted[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def invert(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Maps an array from RAS+ order to the stored order; contiguous."""
        flipped = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.ascontiguousarray(flipped.transpose(np.argsort(self.axes)))


def to_ras(volume: Volume) -> tuple[Volume, Reorientation]:
    """Permutes and flips the axes to the closest RAS+ orientation, without resampling.

    Returns:
        The volume with its affine adapted, so that every voxel keeps its position in space, and the reorientation,
        which maps arrays back to the stored order.
    """
    grid, reorientation = to_ras_grid(volume.grid)
    return Volume(np.ascontiguousarray(reorientation.apply(volume.data)), grid.affine, volume.source), reorientation


def to_ras_grid(grid: Grid) -> tuple[Grid, Reorientation]:
    """Returns the closest RAS+ grid and the reorientation to it, as ``to_ras``."""
    cosines = grid.affine[:3, :3] / np.array(grid.spacing_mm)
    x, y, z = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[row, axis]) for row, axis in enumerate(axes)),
    )
    axes = (x, y, z)
    flips = (bool(cosines[0, x] < 0), bool(cosines[1, y] < 0), bool(cosines[2, z] < 0))
    reorientation = Reorientation(axes, flips)
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        old_from_new[old, new] = -1.0 if flip else 1.0
        old_from_new[old, 3] = grid.shape[old] - 1.0 if flip else 0.0
    shape = (grid.shape[x], grid.shape[y], grid.shape[z])
    return Grid(shape, grid.affine @ old_from_new), reorientation


def resample_onto(volume: Volume, grid: Grid) -> Volume:
    """Resamples linearly onto another grid; 0 outside the volume's field of view.

    If the sampling step along an axis exceeds 1.5 voxels, the volume is first smoothed along it by a Gaussian of
    matching width, so that structures thinner than the step become faint instead of depending on the phase of the grid.

    Args:
        volume: Image.
        grid: Target grid; ``fov_coverage(volume.grid, grid)`` is the covered share.

    Returns:
        The image on ``grid``, float32.
    """
    from scipy import ndimage

    index = np.linalg.inv(volume.affine) @ grid.affine  # from voxels of the grid to voxels of the volume
    size = volume.data.shape
    if size == grid.shape and np.allclose(index, np.eye(4), rtol=0, atol=_TOLERANCE):
        return Volume(volume.data.copy(), grid.affine, volume.source)

    data = volume.data
    steps = np.abs(index[:3, :3]).max(axis=1)
    sigmas = [
        # As wide as the step, given that a voxel has a width of 1: FWHM^2 = step^2 - 1.
        float(np.sqrt(step**2 - 1.0) / 2.355) if step > _ANTIALIAS_FROM else 0.0
        for step in steps
    ]
    if any(sigmas):
        data = ndimage.gaussian_filter(data, sigmas, mode="nearest", truncate=3.0)

    matrix: Float64Array = index[:3, :3]
    off_axis = matrix - np.diag(np.diag(matrix))
    if np.abs(off_axis).max() * max(grid.shape) < _TOLERANCE:
        matrix = np.diag(matrix)  # scipy is faster on parallel grids
    resampled = np.empty(grid.shape, dtype=np.float32)
    # "constant" would lose the last plane to rounding, and half of every outer voxel.
    ndimage.affine_transform(
        data, matrix, offset=index[:3, 3], output=resampled,
        output_shape=grid.shape, order=1, mode="nearest",
    )  # fmt: skip
    resampled[~_covered(index, size, grid.shape)] = 0.0
    return Volume(resampled, grid.affine, volume.source)


def _covered(index: Affine, size: tuple[int, ...], shape: tuple[int, int, int]) -> BoolArray:
    """Marks the voxels of a grid whose centres lie in the box of an array.

    Args:
        index: (4, 4), from voxels of the grid to voxels of the array.
        size: Shape of the array.
        shape: Shape of the grid.
    """
    inside = np.ones(shape, dtype=bool)
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for row, length in zip(index[:3], size, strict=True):
        position = (row[0] * x + row[3]) + row[1] * y + row[2] * z
        inside &= (position >= -0.5 - _TOLERANCE) & (position <= length - 0.5 + _TOLERANCE)
    return inside


def block_average(volume: Volume, factors: Sequence[int]) -> Volume:
    """Averages blocks of voxels; incomplete blocks are padded with the outermost voxels."""
    data = volume.data
    affine = volume.affine.copy()
    for axis, factor in enumerate(factors):
        if factor == 1:
            continue
        n = data.shape[axis]
        extra = -n % factor
        if extra:
            data = np.concatenate([data, np.repeat(data.take([n - 1], axis), extra, axis)], axis)
        shape = (*data.shape[:axis], data.shape[axis] // factor, factor, *data.shape[axis + 1 :])
        data = data.reshape(shape).mean(axis + 1, dtype=np.float32)
        affine[:3, 3] += affine[:3, axis] * (factor - 1) / 2
        affine[:3, axis] *= factor
    return Volume(data, affine, volume.source)


def fov_coverage(volume_grid: Grid, grid: Grid) -> float:
    """Measures the share of the field of view of ``grid`` that ``volume_grid`` covers.

    Measured on a lattice of 32 points per axis, with an accuracy of about 1/32 per face.

    Returns:
        0 (disjoint) to 1 (``grid`` lies within).
    """
    shape = (_LATTICE, _LATTICE, _LATTICE)
    cell = np.array(grid.shape) / _LATTICE
    lattice = np.eye(4)
    lattice[:3, :3] = np.diag(cell)
    lattice[:3, 3] = cell / 2 - 0.5
    index = np.linalg.inv(volume_grid.affine) @ grid.affine @ lattice
    return float(_covered(index, volume_grid.shape, shape).mean())


@dataclass(frozen=True)
class Respacing:
    """A change of voxel spacing from a grid to another over the same field of view."""

    old: Grid
    new: Grid

    def invert(self, array: AnyArray) -> FloatArray:
        """Resamples an array (x, y, z) on the new grid linearly to the old one."""
        if array.shape != self.new.shape:
            raise ValueError(f"expected an array of shape {self.new.shape}, got {array.shape}")
        volume = Volume(np.asarray(array, dtype=np.float32), self.new.affine)
        return resample_onto(volume, self.old).data


def respacing(old: Grid, spacing_mm: Triple) -> Respacing:
    """Derives the change of a grid to another voxel spacing over the same field of view.

    Args:
        old: Grid.
        spacing_mm: Target spacing per axis. As the field of view must hold whole voxels, the actual spacing differs
            from it by up to half a voxel over the length of the axis.
    """
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"expected spacings above 0 mm, got {spacing_mm}")
    x, y, z = (
        max(1, round(n * current / target))
        for n, current, target in zip(old.shape, old.spacing_mm, spacing_mm, strict=True)
    )
    scale = np.array(old.shape) / np.array((x, y, z))
    step = np.eye(4)
    step[:3, :3] = np.diag(scale)
    step[:3, 3] = scale / 2 - 0.5  # aligns the faces of the two boxes, not the centres of voxels
    return Respacing(old, Grid((x, y, z), old.affine @ step))


@dataclass(frozen=True)
class Crop:
    """A box of voxels in a larger array.

    Attributes:
        slices: Box.
        shape: Shape of the larger array, (x, y, z).
    """

    slices: tuple[slice, slice, slice]
    shape: tuple[int, int, int]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Crops an array (..., x, y, z) to the box; a view."""
        if array.shape[-3:] != self.shape:
            raise ValueError(f"expected an array of shape {self.shape}, got {array.shape}")
        return array[(..., *self.slices)]

    def invert(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Pads an array (..., x, y, z) on the box with zeros to the larger shape."""
        padded = np.zeros((*array.shape[:-3], *self.shape), dtype=array.dtype)
        padded[(..., *self.slices)] = array
        return padded

    def affine(self, affine: Affine) -> Affine:
        """Returns the affine of the box, given that of the larger array."""
        shift = np.eye(4)
        shift[:3, 3] = [part.start for part in self.slices]
        return affine @ shift


def crop_to(mask: AnyArray, margin: int | tuple[int, int, int] = 0) -> Crop:
    """Returns the bounding box of the non-zero voxels of a mask.

    Args:
        mask: (x, y, z).
        margin: Voxels to add on each side, within the array.

    Returns:
        The box; the full array if the mask is empty.
    """
    margins = (margin, margin, margin) if isinstance(margin, int) else margin
    x, y, z = mask.shape
    bounds = []
    for axis, (length, extra) in enumerate(zip((x, y, z), margins, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(mask.any(axis=others))
        if where.size == 0:
            return Crop((slice(0, x), slice(0, y), slice(0, z)), (x, y, z))
        bounds.append(slice(max(0, int(where[0]) - extra), min(length, int(where[-1]) + 1 + extra)))
    return Crop((bounds[0], bounds[1], bounds[2]), (x, y, z))


def dilate_mm(mask: BoolArray, margin_mm: float, spacing_mm: Triple) -> BoolArray:
    """Dilates a mask (x, y, z) by a distance between voxel centres, a few voxels at most."""
    from scipy import ndimage

    reach = [int(margin_mm / step + 1e-4) for step in spacing_mm]
    offsets = np.meshgrid(
        *(np.arange(-n, n + 1) * step for n, step in zip(reach, spacing_mm, strict=True)), indexing="ij"
    )
    ball = np.sum(np.square(offsets), axis=0) <= (margin_mm + 1e-4) ** 2
    return np.asarray(ndimage.binary_dilation(mask, ball))  # a distance transform needs 5 times the time, and memory


def corners_of(low: Sequence[float] | AnyArray, high: Sequence[float] | AnyArray) -> Float64Array:
    """Returns the eight corners (8, 4) of a box from ``low`` to ``high`` (x, y, z), in homogeneous coordinates."""
    return np.array([(*corner, 1.0) for corner in itertools.product(*zip(low, high, strict=True))])


def find_slice_axis(spacing_mm: Triple) -> int:
    """Returns the axis perpendicular to the slices: that of the largest spacing, the last of equals.

    Spacings within 0.1 % count as equal, as affines are stored as float32.
    """
    largest = max(spacing_mm)
    return max(axis for axis in range(3) if spacing_mm[axis] >= largest * 0.999)


def choose_reference(volumes: Mapping[str, Volume]) -> str:
    """Chooses the sequence that defines the grid of the mask: T2w if present, else the one with the smallest voxels.

    Among voxel volumes within 0.1 %, the order is that of ``SEQUENCES``.

    Raises:
        ValueError: There is no volume.
    """
    if not volumes:
        raise ValueError("expected at least one volume to choose a reference from")
    if "T2w" in volumes:
        return "T2w"
    sizes = {key: float(np.prod(spacing_of(volume.affine))) for key, volume in volumes.items()}
    finest = min(sizes.values()) * 1.001
    order = sorted(sizes, key=lambda key: (SEQUENCES.index(key) if key in SEQUENCES else 9, key))
    return next(key for key in order if sizes[key] <= finest)

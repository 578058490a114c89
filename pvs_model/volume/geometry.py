"""Grids in space: reorienting, resampling and cropping, each with what takes it back.

Pure functions of arrays and affines. Lengths are mm where a name says so, else voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pvs_model.types import SEQUENCES, Affine, FloatArray, Grid, Volume, spacing_of

Scalar = TypeVar("Scalar", bound=np.generic)

#: Takes an array on the new grid back to the old one.
Undo = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

#: Sampling more coarsely than this many voxels along an axis is averaged first.
_ANTIALIAS_FROM = 1.5

#: Slack in voxels when asking whether a point lies in a box: affines pass through float32.
_SLACK = 1e-3

#: Points per axis of the lattice on which ``overlap`` is measured.
_LATTICE = 32


@dataclass(frozen=True)
class Reorientation:
    """How the axes of an array were permuted, then flipped; calling it takes an array back.

    Attributes:
        axes: old axis that became each new one.
        flips: whether each new axis runs against the old one.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """From the stored order to RAS+ order, (x, y, z); a view."""
        turned = array.transpose(self.axes)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def __call__(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """From RAS+ order back to the stored order; contiguous."""
        turned = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        back = np.argsort(self.axes)
        return np.ascontiguousarray(turned.transpose(back))


def to_ras(volume: Volume) -> tuple[Volume, Reorientation]:
    """Permute and flip the axes to the closest RAS+ orientation; no value is changed.

    Returns:
        The volume, with its affine adapted so that every voxel stays where it is in space, and
        what takes an array on its grid back to the stored order.
    """
    grid, undo = to_ras_grid(volume.grid)
    return Volume(np.ascontiguousarray(undo.apply(volume.data)), grid.affine, volume.source), undo


def to_ras_grid(grid: Grid) -> tuple[Grid, Reorientation]:
    """As ``to_ras``, of a grid alone."""
    cosines = grid.affine[:3, :3] / np.array(grid.spacing_mm)
    x, y, z = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[row, axis]) for row, axis in enumerate(axes)),
    )
    axes = (x, y, z)
    flips = (bool(cosines[0, x] < 0), bool(cosines[1, y] < 0), bool(cosines[2, z] < 0))
    undo = Reorientation(axes, flips)
    old_from_new = np.zeros((4, 4))
    old_from_new[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        old_from_new[old, new] = -1.0 if flip else 1.0
        old_from_new[old, 3] = grid.shape[old] - 1.0 if flip else 0.0
    shape = (grid.shape[x], grid.shape[y], grid.shape[z])
    return Grid(shape, grid.affine @ old_from_new), undo


def resample_onto(volume: Volume, grid: Grid) -> Volume:
    """Resample linearly onto another grid; 0 outside the volume's box.

    Where the grid samples an axis of the volume more coarsely than every 1.5 voxels, the volume
    is averaged along it first (a Gaussian whose width matches the step), so that structures
    thinner than the step grow faint and do not come and go with the phase of the grid.

    Args:
        volume: the image.
        grid: where it is wanted. ``overlap(volume.grid, grid)`` tells how much of it is covered.

    Returns:
        The image on ``grid``, float32.
    """
    from scipy import ndimage

    index = np.linalg.inv(volume.affine) @ grid.affine  # voxel of the volume from that of the grid
    size = volume.data.shape
    if size == grid.shape and np.allclose(index, np.eye(4), rtol=0, atol=_SLACK):
        return Volume(volume.data.copy(), grid.affine, volume.source)

    data = volume.data
    steps = np.abs(index[:3, :3]).max(axis=1)
    sigmas = [
        # As wide as the step, where the voxel itself is one wide already: FWHM^2 = step^2 - 1.
        float(np.sqrt(step**2 - 1.0) / 2.355) if step > _ANTIALIAS_FROM else 0.0
        for step in steps
    ]
    if any(sigmas):
        data = ndimage.gaussian_filter(data, sigmas, mode="nearest", truncate=3.0)

    matrix: npt.NDArray[np.float64] = index[:3, :3]
    off_axis = matrix - np.diag(np.diag(matrix))
    if np.abs(off_axis).max() * max(grid.shape) < _SLACK:
        matrix = np.diag(matrix)  # scipy has a faster way for grids that are parallel
    resampled = np.empty(grid.shape, dtype=np.float32)
    # "constant" would cut the last plane off to rounding, and half of every outer voxel.
    ndimage.affine_transform(
        data, matrix, offset=index[:3, 3], output=resampled,
        output_shape=grid.shape, order=1, mode="nearest",
    )  # fmt: skip
    resampled[~_covered(index, size, grid.shape)] = 0.0
    return Volume(resampled, grid.affine, volume.source)


def _covered(index: Affine, size: tuple[int, ...], shape: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """Which voxels of a grid have their centres in the box of an array of ``size``.

    Args:
        index: (4, 4), voxel of the array from voxel of the grid.
        size: the array's shape.
        shape: the grid's shape.
    """
    inside = np.ones(shape, dtype=bool)
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for row, length in zip(index[:3], size, strict=True):
        place = (row[0] * x + row[3]) + row[1] * y + row[2] * z
        inside &= (place >= -0.5 - _SLACK) & (place <= length - 0.5 + _SLACK)
    return inside


def averaged(volume: Volume, factors: Sequence[int]) -> Volume:
    """Blocks of voxels averaged; the last of an axis is as if its outermost voxels went on."""
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


def overlap(volume_grid: Grid, grid: Grid) -> float:
    """The share of the box of ``grid`` that the box of ``volume_grid`` covers, in space.

    Measured on a lattice of 32 points per axis, so to about 1/32 per face.

    Returns:
        0 (they lie apart) to 1 (``grid`` lies within).
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
    """Takes an array of probabilities on a resampled grid back, linearly, to the first grid."""

    old: Grid
    new: Grid

    def __call__(self, array: npt.NDArray[Any]) -> FloatArray:
        if array.shape != self.new.shape:
            raise ValueError(f"expected an array of shape {self.new.shape}, got {array.shape}")
        volume = Volume(np.asarray(array, dtype=np.float32), self.new.affine)
        return resample_onto(volume, self.old).data


def resample_to_spacing(volume: Volume, spacing_mm: tuple[float, float, float]) -> tuple[Volume, Respacing]:
    """Resample to another voxel spacing over the same box (``respacing``).

    Returns:
        The image, and what takes probabilities on its grid back to the first shape.
    """
    change = respacing(volume.grid, spacing_mm)
    return resample_onto(volume, change.new), change


def respacing(old: Grid, spacing_mm: tuple[float, float, float]) -> Respacing:
    """The change of a grid to another voxel spacing over the same box.

    Args:
        old: the grid.
        spacing_mm: the wanted spacing per axis. As the box must hold whole voxels, the spacing
            reached differs from it by up to half a voxel over the length of the axis.
    """
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"expected spacings above 0 mm, got {spacing_mm}")
    x, y, z = (
        max(1, round(n * have / want)) for n, have, want in zip(old.shape, old.spacing_mm, spacing_mm, strict=True)
    )
    scale = np.array(old.shape) / np.array((x, y, z))
    step = np.eye(4)
    step[:3, :3] = np.diag(scale)
    step[:3, 3] = scale / 2 - 0.5  # the faces of the two boxes meet, not the centres of voxels
    return Respacing(old, Grid((x, y, z), old.affine @ step))


@dataclass(frozen=True)
class Crop:
    """A box of voxels in a larger array.

    Attributes:
        slices: the box.
        shape: the shape of the whole, (x, y, z).
    """

    slices: tuple[slice, slice, slice]
    shape: tuple[int, int, int]

    def apply(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """The box out of an array (..., x, y, z); a view."""
        if array.shape[-3:] != self.shape:
            raise ValueError(f"expected an array of shape {self.shape}, got {array.shape}")
        return array[(..., *self.slices)]

    def undo(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """An array (..., x, y, z) on the box, with zeros around it to the shape of the whole."""
        whole = np.zeros((*array.shape[:-3], *self.shape), dtype=array.dtype)
        whole[(..., *self.slices)] = array
        return whole

    def affine(self, affine: Affine) -> Affine:
        """The affine of the box from that of the whole."""
        shift = np.eye(4)
        shift[:3, 3] = [part.start for part in self.slices]
        return affine @ shift

    def volume(self, volume: Volume) -> Volume:
        """The box out of a volume, in its place in space."""
        return Volume(self.apply(volume.data), self.affine(volume.affine), volume.source)


def crop_to(mask: npt.NDArray[Any], margin: int | tuple[int, int, int] = 0) -> Crop:
    """The box around what is not 0 in a mask.

    Args:
        mask: (x, y, z).
        margin: voxels to add on each side, as far as the array reaches.

    Returns:
        The box; the whole array where the mask is empty.
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


def widened(mask: npt.NDArray[np.bool_], margin_mm: float, spacing_mm: tuple[float, float, float]) -> Any:
    """The mask (x, y, z) and all that lies within ``margin_mm`` of it, between voxel centres."""
    from scipy import ndimage

    if not mask.any():
        return mask
    reach = int(np.ceil(margin_mm / min(spacing_mm)))
    crop = crop_to(mask, reach)
    near = ndimage.distance_transform_edt(~crop.apply(mask), spacing_mm) <= margin_mm + 1e-4
    return crop.undo(near)


def thick_axis(spacing_mm: tuple[float, float, float]) -> int:
    """The axis that slices are perpendicular to: that of the largest spacing, the last of equals.

    Spacings within 0.1 % are equal: affines pass through float32.
    """
    largest = max(spacing_mm)
    return max(axis for axis in range(3) if spacing_mm[axis] >= largest * 0.999)


def slice_thickness(spacing_mm: tuple[float, float, float]) -> float:
    """Slice thickness in mm: the largest voxel spacing."""
    return max(spacing_mm)


def choose_reference(volumes: Mapping[str, Volume]) -> str:
    """The sequence whose grid the mask goes onto: T2w where present, else the smallest voxels.

    Voxel volumes within 0.1 % are equal; then the order is that of ``SEQUENCES``.

    Raises:
        ValueError: there is no volume.
    """
    if not volumes:
        raise ValueError("expected at least one volume to choose a reference from")
    if "T2w" in volumes:
        return "T2w"
    sizes = {key: float(np.prod(spacing_of(volume.affine))) for key, volume in volumes.items()}
    finest = min(sizes.values()) * 1.001
    order = sorted(sizes, key=lambda key: (SEQUENCES.index(key) if key in SEQUENCES else 9, key))
    return next(key for key in order if sizes[key] <= finest)

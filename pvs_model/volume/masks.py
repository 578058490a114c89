"""Masks from files: yes or no per voxel, empty ones included, and whether two lie on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.types import FloatArray, Grid
from pvs_model.volume import io
from pvs_model.volume.geometry import to_ras_grid

Bool = npt.NDArray[np.bool_]

#: Values that differ by less than this share are one: scaling and resampling round them.
ROUNDING = 1e-3
#: Two grids are one when no corner is further off than this, in voxels: headers are rounded.
GRID_SLACK = 0.1


@dataclass(frozen=True)
class MaskImage:
    """``inside`` is bool (x, y, z) in the file's voxel order, on ``grid``."""

    inside: Bool
    grid: Grid
    source: Path


def read_mask(path: Path) -> MaskImage:
    """Reads a mask as it is stored: 0 outside, one other value inside, whatever that is.

    What is no mask is not made one: a probability map, a map of several labels, or an image would be inside almost
    everywhere.

    Args:
        path: an image in any format that ``io.read`` reads; it may be empty.

    Raises:
        VolumeError: the file is no readable volume, holds voxels that are not finite or below 0, or several values
            besides 0.
    """
    path = Path(path)
    values, grid = _finite(path)
    inside = values != 0
    if inside.any():
        low, high = float(values[inside].min()), float(values[inside].max())
        if low < 0 or high - low > ROUNDING * high:
            raise VolumeError(f"{path}: expected a mask, 0 and one value above it, found {_described(values[inside])}")
    return MaskImage(inside, grid, path)


def _described(values: FloatArray) -> str:
    """What the values of something that is no mask look like, and what to do."""
    low, high = float(values.min()), float(values.max())
    if (values == np.rint(values)).all():
        labels = np.unique(values)
        if len(labels) <= 20 and low > 0:
            told = ", ".join(f"{label:g}" for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
            return f"the labels {told}: it looks like a map of several structures; write the one that is PVS alone"
    elif low >= 0 and high <= 1 + ROUNDING:
        told = f"values from {low:.2g} to {high:.4g}"
        return f"{told}: it looks like a probability map; write a mask of those above a threshold"
    return f"values from {low:g} to {high:g}: it looks like an image"


def read_region(paths: Sequence[Path]) -> MaskImage:
    """A region as one or several masks say that share a grid: above 0.5 where their values are added up.

    Those of atlases may be soft at their borders.

    Raises:
        VolumeError: a file cannot be read, the grids differ, or nothing is above 0.5 though not all is 0.
    """
    (total, grid), *others = [_finite(path) for path in paths]
    for path, (values, other) in zip(paths[1:], others, strict=True):
        if other.shape != grid.shape or not np.allclose(other.affine, grid.affine, atol=1e-3):
            raise VolumeError(f"{path}: expected the grid of {paths[0]} ({_told(grid)}), found {_told(other)}")
        total = total + values
    inside = total > 0.5
    if total.any() and not inside.any():
        raise VolumeError(
            f"{paths[0]}: expected voxels above 0.5, or 0 in all, found {total.min():g} to {total.max():g}"
        )
    return MaskImage(inside, grid, Path(paths[0]))


def aligned(mask: MaskImage, reference: Grid, name: object) -> Bool:
    """The mask in RAS+ order (x, y, z), once it is sure that it lies on the reference's grid.

    Either may be stored in any order of its axes.

    Args:
        mask: as stored.
        reference: the grid that is expected, as stored.
        name: whose grid that is, for the message.

    Raises:
        VolumeError: when the grids differ.
    """
    upright, undo = to_ras_grid(mask.grid)
    wanted, _ = to_ras_grid(reference)
    same = upright.shape == wanted.shape
    if same:
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
        corners = corners * np.array([*(n - 1 for n in wanted.shape), 1])
        away = corners @ (np.linalg.inv(wanted.affine) @ upright.affine - np.eye(4)).T
        same = bool(np.abs(away).max() <= GRID_SLACK)
    if not same:
        raise VolumeError(f"{mask.source}: expected the grid of {name} ({_told(reference)}), found {_told(mask.grid)}")
    return undo.apply(mask.inside)


def _finite(path: Path) -> tuple[FloatArray, Grid]:
    values, grid = io.read_values(path)
    if not np.isfinite(values).all():
        raise VolumeError(f"{path}: expected a mask of finite values, found NaN or infinite voxels")
    return values, grid


def _told(grid: Grid) -> str:
    shape, spacing = (" x ".join(f"{v:g}" for v in triple) for triple in (grid.shape, np.round(grid.spacing_mm, 3)))
    place = ", ".join(f"{v:g}" for v in np.round(grid.affine[:3, 3], 2))
    return f"{shape} voxels of {spacing} mm, the first at ({place})"

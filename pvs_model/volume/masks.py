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

#: Two grids are one when no corner is further off than this, in voxels: headers are rounded.
GRID_SLACK = 0.1


@dataclass(frozen=True)
class MaskImage:
    """``inside`` is bool (x, y, z) in the file's voxel order, on ``grid``."""

    inside: Bool
    grid: Grid
    source: Path


def read_mask(path: Path, above: float | None = None) -> MaskImage:
    """A mask as it is stored.

    Args:
        path: an image in any format that ``io.read`` reads; it may be empty.
        above: voxels above this are inside; None for all that are not 0, as the challenge's scripts do.

    Raises:
        VolumeError: the file is no readable volume, holds voxels that are not finite, or none above ``above``
            though not all are 0: a label of another kind.
    """
    path = Path(path)
    values, grid = _finite(path)
    inside = values != 0 if above is None else values > above
    if above is not None and not inside.any() and values.any():
        raise VolumeError(
            f"{path}: expected voxels above {above:g}, or 0 in all, found {values.min():g} to {values.max():g}"
        )
    return MaskImage(inside, grid, path)


def read_region(paths: Sequence[Path]) -> MaskImage:
    """A region as one or several masks say that share a grid: above 0.5 where their values are added up.

    Raises:
        VolumeError: as ``read_mask``, or when the grids differ.
    """
    if len(paths) == 1:
        return read_mask(paths[0], above=0.5)
    (total, grid), *others = [_finite(path) for path in paths]
    for path, (values, other) in zip(paths[1:], others, strict=True):
        if other.shape != grid.shape or not np.allclose(other.affine, grid.affine, atol=1e-3):
            raise VolumeError(f"{path}: expected the grid of {paths[0]} ({_told(grid)}), found {_told(other)}")
        total = total + values
    return MaskImage(total > 0.5, grid, paths[0])


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

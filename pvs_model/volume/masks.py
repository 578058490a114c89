"""Reads binary masks and checks that two share a voxel grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.types import BoolArray, FloatArray, Grid
from pvs_model.volume import io
from pvs_model.volume.geometry import corners_of, to_ras_grid

#: Relative difference up to which values count as equal, as scaling and resampling round them.
ROUNDING = 1e-3
#: Largest distance in voxels between the corners of equal grids, as headers are rounded.
GRID_TOLERANCE = 0.1


@dataclass(frozen=True)
class MaskImage:
    """A mask of a file: ``inside`` is bool (x, y, z) in the file's voxel order, on ``grid``."""

    inside: BoolArray
    grid: Grid
    source: Path


def read_mask(path: Path) -> MaskImage:
    """Reads a mask as stored: 0 outside and any one other value inside.

    Probability maps, maps of several labels and images are rejected, as they are not 0 almost everywhere.

    Args:
        path: Mask in any format that ``io.read`` reads; it may be empty.

    Raises:
        VolumeError: The file cannot be read, holds voxels that are not finite or below 0, or several values besides 0.
    """
    path = Path(path)
    values, grid = _finite(path)
    inside = values != 0
    if inside.any():
        low, high = float(values[inside].min()), float(values[inside].max())
        if low < 0 or high - low > ROUNDING * high:
            raise VolumeError(f"{path}: expected a mask of 0 and one positive value, got {_describe(values[inside])}")
    return MaskImage(inside, grid, path)


def _describe(values: FloatArray) -> str:
    """Describes the values of a file that is not a mask, and what to do."""
    low, high = float(values.min()), float(values.max())
    if (values == np.rint(values)).all():
        labels = np.unique(values)
        if len(labels) <= 20 and low > 0:
            first = ", ".join(f"{label:g}" for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
            return f"the labels {first}: this looks like a map of several structures; export the PVS label alone"
    elif low >= 0 and high <= 1 + ROUNDING:
        return f"values from {low:.2g} to {high:.4g}: this looks like a probability map; apply a threshold first"
    return f"values from {low:g} to {high:g}: this looks like an image"


def read_region(paths: Sequence[Path]) -> MaskImage:
    """Reads a region as the union of masks on one grid: voxels at which their values sum to more than 0.5.

    Masks of atlases may be fuzzy at their borders.

    Raises:
        VolumeError: A file cannot be read, the grids differ, or no sum exceeds 0.5 though not all are 0.
    """
    (total, grid), *others = [_finite(path) for path in paths]
    for path, (values, other) in zip(paths[1:], others, strict=True):
        if other.shape != grid.shape or not np.allclose(other.affine, grid.affine, atol=1e-3):
            raise VolumeError(
                f"{path}: expected the grid of {paths[0]} ({_describe_grid(grid)}), got {_describe_grid(other)}"
            )
        total = total + values
    inside = total > 0.5
    if total.any() and not inside.any():
        raise VolumeError(f"{paths[0]}: expected voxels above 0.5, or 0 in all, got {total.min():g} to {total.max():g}")
    return MaskImage(inside, grid, Path(paths[0]))


def aligned(mask: MaskImage, reference: Grid, name: object) -> BoolArray:
    """Returns a mask in RAS+ order (x, y, z) after checking that it lies on the reference's grid.

    Either may be stored in any order of axes.

    Args:
        mask: Mask as stored.
        reference: Expected grid, as stored.
        name: Owner of that grid, for the message.

    Raises:
        VolumeError: The grids differ.
    """
    canonical, reorientation = to_ras_grid(mask.grid)
    expected, _ = to_ras_grid(reference)
    same = canonical.shape == expected.shape
    if same:
        corners = corners_of([0] * 3, np.array(expected.shape) - 1)
        distance = corners @ (np.linalg.inv(expected.affine) @ canonical.affine - np.eye(4)).T
        same = bool(np.abs(distance).max() <= GRID_TOLERANCE)
    if not same:
        raise VolumeError(
            f"{mask.source}: expected the grid of {name} ({_describe_grid(reference)}), got {_describe_grid(mask.grid)}"
        )
    return reorientation.apply(mask.inside)


def _finite(path: Path) -> tuple[FloatArray, Grid]:
    values, grid = io.read_values(path)
    if not np.isfinite(values).all():
        raise VolumeError(f"{path}: expected a mask of finite values, got NaN or infinite voxels")
    return values, grid


def _describe_grid(grid: Grid) -> str:
    shape, spacing = (" x ".join(f"{v:g}" for v in triple) for triple in (grid.shape, np.round(grid.spacing_mm, 3)))
    origin = ", ".join(f"{v:g}" for v in np.round(grid.affine[:3, 3], 2))
    return f"{shape} voxels of {spacing} mm, the first at ({origin})"

"""Checks of image headers, and the handle of an opened image file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.errors import VolumeError, one_line
from pvs_model.types import Affine, AnyArray, Grid, spacing_of

#: Largest number of voxels: 2 GiB as float32, five times a scan of 512 x 512 x 400.
MAX_VOXELS = 2**29

#: Range of plausible voxel spacings in mm: smallest excluded, largest included.
SPACING_RANGE_MM = (0.05, 50.0)

#: Largest voxel spacing within slices: no PVS can be seen on larger voxels, and resampling would exhaust the memory.
MAX_IN_PLANE_MM = 6.0

#: Smallest volume of the unit cell of the three axis directions: 1 where they are orthogonal.
MIN_CELL_VOLUME = 0.1

#: Extensions of the files that are written.
OUTPUT_EXTENSIONS = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class ImageHandle:
    """An image file whose header has been read and checked.

    Attributes:
        grid: Shape and RAS+ affine.
        load: Reads the voxels, (x, y, z) float32 or with trailing axes of length one.
        nifti: Header of nibabel, if the file is a NIfTI.
        itk: (spacing, origin, direction) in LPS+, if SimpleITK reads the file.
        note: Note of ``write_itk``.
    """

    grid: Grid
    load: Callable[[], AnyArray]
    nifti: Any = None
    itk: tuple[list[float], list[float], list[float]] | None = None
    note: str = ""


def corrupt_file_error(path: Path, error: BaseException | None = None) -> VolumeError:
    """Returns the error for a truncated file or one whose content does not match its extension."""
    reason = one_line(error) if error is not None else ""
    ending = f" ({reason:.160})" if reason else ""
    return VolumeError(f"{path}: expected a complete image, got a damaged or truncated file{ending}")


def format_shape(values: Iterable[float]) -> str:
    """Formats a shape or spacing: 2 x 3 x 4."""
    return " x ".join(f"{v}" if isinstance(v, int) else f"{v:g}" for v in values)


def check_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (x, y, z) of an array that holds one 3D volume.

    Raises:
        VolumeError: It is 2D, empty, too large, or holds several volumes.
    """
    if len(shape) < 3 or (len(shape) == 3 and shape[2] == 1):
        raise VolumeError(f"{path}: expected a 3D image, got 2D ({format_shape(shape)})")
    if any(n < 1 for n in shape):
        raise VolumeError(f"{path}: expected a 3D image, got an empty one ({format_shape(shape)})")
    volumes = math.prod(shape[3:])
    if volumes > 1:
        raise VolumeError(f"{path}: expected one volume, got {volumes} ({format_shape(shape)})")
    x, y, z = shape[:3]
    if min(x, y, z) < 2:
        raise VolumeError(f"{path}: expected a 3D image, got 2D ({format_shape(shape)})")
    if x * y * z > MAX_VOXELS:
        raise VolumeError(f"{path}: expected at most {MAX_VOXELS} voxels, got {format_shape(shape)} in its header")
    return x, y, z


def check_affine(path: Path, affine: Affine) -> None:
    """Checks that spacings and directions of an affine are plausible.

    Raises:
        VolumeError: They are not.
    """
    spacing = np.array(spacing_of(affine)) if np.isfinite(affine).all() else np.full(3, np.nan)
    smallest, largest = SPACING_RANGE_MM
    tolerance = 1e-6  # 0.05 in float32 is a little more than 0.05
    if not ((spacing > smallest + tolerance) & (spacing <= largest + tolerance)).all():
        raise VolumeError(
            f"{path}: expected a voxel spacing above {smallest} and up to {largest:g} mm, got {format_shape(spacing)}"
        )
    if sorted(spacing)[1] > MAX_IN_PLANE_MM:
        raise VolumeError(
            f"{path}: expected voxels of up to {MAX_IN_PLANE_MM:g} mm within slices, got {format_shape(spacing)}"
        )
    if abs(float(np.linalg.det(affine[:3, :3] / spacing))) < MIN_CELL_VOLUME:
        raise VolumeError(f"{path}: expected axes at about right angles, got nearly parallel directions")


def output_extension(path: Path) -> str:
    """Returns the extension of a file to write.

    Raises:
        ValueError: It is none of ``OUTPUT_EXTENSIONS``.
    """
    for extension in OUTPUT_EXTENSIONS:
        if path.name.lower().endswith(extension):
            return extension
    raise ValueError(f"{path}: expected a name that ends in one of {', '.join(OUTPUT_EXTENSIONS)}")

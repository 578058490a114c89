"""What every reader and writer of image files shares: the opened file and its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.types import Affine, Grid, spacing_of

#: More voxels than this are not an MRI scan but a header that lies: 2 GiB as float32, 512 x 512 x 400 are a fifth.
MAX_VOXELS = 2**29

#: Voxel spacing in mm beyond which a header is not believed: smallest excluded, largest included.
SPACING_RANGE_MM = (0.05, 50.0)

#: Within slices no PVS can be seen on larger voxels, and cutting them to the networks' size would take all memory.
COARSEST_WITHIN_MM = 6.0

#: Least volume of the unit cell that the three axis directions span: 1 where they are orthogonal.
LEAST_CELL = 0.1

#: Extensions that masks and volumes are written with.
WRITTEN = (".nii.gz", ".nii", ".mha")


@dataclass(frozen=True)
class Opened:
    """A file whose header has been read and found good.

    Attributes:
        grid: shape and RAS+ affine.
        load: reads the voxels, (x, y, z) float32 or with trailing axes of length one.
        nifti: the nibabel header, where the file is a NIfTI.
        itk: (spacing, origin, direction) as SimpleITK has them, where it read the file.
        note: what ``write_itk`` was given to keep.
    """

    grid: Grid
    load: Callable[[], npt.NDArray[Any]]
    nifti: Any = None
    itk: tuple[list[float], list[float], list[float]] | None = None
    note: str = ""


def damaged(path: Path, error: BaseException | None = None) -> VolumeError:
    """The error for a file that breaks off or is not what its name says."""
    reason = " ".join(str(error).split()) if error is not None else ""
    ending = f" ({reason:.160})" if reason else ""
    return VolumeError(f"{path}: expected a complete image, found a damaged or truncated file{ending}")


def by(shape: tuple[int, ...]) -> str:
    """A shape in words: 2 x 3 x 4."""
    return " x ".join(str(n) for n in shape)


def one_volume(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the one volume in an array of ``shape``."""
    if len(shape) < 3 or (len(shape) == 3 and shape[2] == 1):
        raise VolumeError(f"{path}: expected a 3D image, found 2D ({by(shape)})")
    if any(n < 1 for n in shape):
        raise VolumeError(f"{path}: expected a 3D image, found an empty one ({by(shape)})")
    volumes = 1
    for n in shape[3:]:
        volumes *= n
    if volumes > 1:
        raise VolumeError(f"{path}: expected one volume, found {volumes} ({by(shape)})")
    x, y, z = shape[:3]
    if min(x, y, z) < 2:
        raise VolumeError(f"{path}: expected a 3D image, found 2D ({by(shape)})")
    if x * y * z > MAX_VOXELS:
        raise VolumeError(f"{path}: expected at most {MAX_VOXELS} voxels, found {by(shape)} in its header")
    return x, y, z


def believable(path: Path, affine: Affine) -> Affine:
    """The affine, once its spacings and directions are judged possible."""
    spacing = np.array(spacing_of(affine)) if np.isfinite(affine).all() else np.full(3, np.nan)
    smallest, largest = SPACING_RANGE_MM
    slack = 1e-6  # 0.05 in float32 is a little more than 0.05
    if not ((spacing > smallest + slack) & (spacing <= largest + slack)).all():
        raise VolumeError(
            f"{path}: expected a voxel spacing above {smallest} and up to {largest:g} mm, "
            f"found {' x '.join(f'{s:g}' for s in spacing)}"
        )
    if sorted(spacing)[1] > COARSEST_WITHIN_MM:
        raise VolumeError(
            f"{path}: expected voxels of up to {COARSEST_WITHIN_MM:g} mm within slices, "
            f"found {' x '.join(f'{s:g}' for s in spacing)}"
        )
    cell = abs(float(np.linalg.det(affine[:3, :3] / spacing)))
    if cell < LEAST_CELL:
        raise VolumeError(f"{path}: expected axes about at right angles, found directions that coincide")
    return affine


def written_extension(path: Path) -> str:
    """The extension that a file is to be written with.

    Raises:
        ValueError: it is none of ``WRITTEN``.
    """
    for extension in WRITTEN:
        if path.name.lower().endswith(extension):
            return extension
    raise ValueError(f"{path}: expected a name that ends in one of {', '.join(WRITTEN)}")

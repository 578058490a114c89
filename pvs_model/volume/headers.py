"""What every reader and writer of image files shares: the opened file, its checks, and writing in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.types import Affine, Grid, spacing_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: More voxels than this are not an MRI scan but a header that lies: 2 GiB as float32, 512 x 512 x 400 are a fifth.
MAX_VOXELS = 2**29

#: Voxel spacing in mm beyond which a header is not believed: smallest excluded, largest included.
SPACING_RANGE_MM = (0.05, 50.0)

#: Within slices no PVS can be seen on larger voxels, and cutting them to the networks' size would take all memory.
COARSEST_WITHIN_MM = 6.0

#: Least volume of the unit cell that the three axis directions span: 1 where they are orthogonal.
LEAST_CELL = 0.1

#: Hidden folders in which files are written before they are moved to their places.
PART = ".part-"
_JUST_MADE_S = 30.0

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
    """

    grid: Grid
    load: Callable[[], npt.NDArray[Any]]
    nifti: Any = None
    itk: tuple[list[float], list[float], list[float]] | None = None


def damaged(path: Path, error: BaseException | None = None) -> VolumeError:
    """The error for a file that breaks off or is not what its name says."""
    reason = " ".join(str(error).split()) if error is not None else ""
    ending = f" ({reason:.160})" if reason else ""
    return VolumeError(
        f"{path}: expected a complete image, found a damaged or truncated file{ending}"
    )


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
        raise VolumeError(
            f"{path}: expected at most {MAX_VOXELS} voxels, found {by(shape)} in its header"
        )
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
        raise VolumeError(
            f"{path}: expected axes about at right angles, found directions that coincide"
        )
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


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file in a hidden folder beside ``path``, then put it in its place.

    In a folder of its own, so that a run that is killed leaves no second image beside the masks. The folder is locked
    while it is in use: one that is not was left by such a run, and is removed.

    Raises:
        VolumeError: it cannot be written.
    """
    hidden: str | None = None
    lock: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path.parent)
        hidden = tempfile.mkdtemp(prefix=PART, dir=path.parent)
        lock = _locked(Path(hidden))
        part = Path(hidden) / f"part{written_extension(path)}"
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "SimpleITK could not write it"
        raise VolumeError(f"{path}: expected to write the image, found: {reason}") from error
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on a folder that ends with its process; None where it is another's, or where there are no locks."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _remove_left(parent: Path) -> None:
    """Remove the hidden folders that a killed run left; one that was just made may not be locked yet."""
    for left in parent.glob(f"{PART}*"):
        try:
            old = time.time() - left.stat().st_mtime > _JUST_MADE_S
        except OSError:
            continue  # its owner was quicker
        lock = _locked(left) if old else None
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)

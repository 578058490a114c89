"""Image files to ``Volume`` and masks back to files, nothing lost in between.

NIfTI and MGH go through nibabel (``nifti``), the rest through SimpleITK (``itk``). Both are imported when
first needed: they take a second or more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.types import Affine, FloatArray, Grid, Mask, Volume
from pvs_model.volume.headers import Opened, by, written_extension
from pvs_model.volume.itk import ITK_IO, itk_geometry, open_itk, write_itk
from pvs_model.volume.nifti import NIBABEL, nifti_header, open_nibabel, write_nifti


def read(path: Path) -> Volume:
    """Read one image.

    Voxels that are NaN or infinite become 0. Scaling (``scl_slope``) is applied. Negative values
    and a slightly sheared affine are kept as they are.

    Args:
        path: ``.nii``, ``.nii.gz``, ``.mgz``, ``.mha``, ``.mhd``, ``.nrrd``, ``.tif`` or ``.tiff``.

    Returns:
        The volume: float32 (x, y, z) in the file's voxel order, affine from voxel to RAS+ mm.

    Raises:
        VolumeError: the file is missing, damaged or of another kind; holds several volumes, two
            dimensions, colour or complex values; its header has an impossible shape or spacing;
            or all its voxels are the same.
    """
    path = Path(path)
    data, grid = read_values(path)
    finite = np.isfinite(data)
    if not finite.all():
        if not finite.any():
            raise VolumeError(f"{path}: expected intensities, found no finite voxel")
        data = np.where(finite, data, np.float32(0))
    low, high = float(data.min()), float(data.max())
    if low == high and not finite.all():
        raise VolumeError(
            f"{path}: expected intensities that float32 can hold, found NaN, infinite or larger ones in "
            f"{np.count_nonzero(~finite)} voxels and {low:g} in all others"
        )
    if low == high:
        raise VolumeError(f"{path}: expected an image, found {low:g} in every voxel")
    return Volume(data, grid.affine, path)


def read_values(path: Path) -> tuple[FloatArray, Grid]:
    """The voxels of one volume as they are, float32 (x, y, z) in the file's voxel order, and their grid.

    Unlike ``read`` it takes any values: one in every voxel, NaN, infinite ones.

    Raises:
        VolumeError: as ``read``, for all but the values.
    """
    path = Path(path)
    opened = _open(path)
    try:
        # Values beyond float32 become infinite here.
        with np.errstate(over="ignore", invalid="ignore"):
            data: FloatArray = np.asarray(opened.load(), dtype=np.float32)
    except MemoryError as error:
        raise VolumeError(
            f"{path}: expected an image that fits into memory, found {by(opened.grid.shape)} voxels"
        ) from error
    return data.reshape(opened.grid.shape, order="F"), opened.grid


def read_grid(path: Path) -> Grid:
    """The grid of an image, from its header alone.

    Raises:
        VolumeError: as ``read``, for what the header shows.
    """
    return _open(Path(path)).grid


def write_mask(path: Path, mask: Mask | npt.NDArray[np.bool_], like: Path, note: str = "") -> None:
    """Write a mask on exactly the grid of another file: uint8, 0 and 1.

    From NIfTI to NIfTI, sform, qform and their codes are copied bit for bit; from what SimpleITK
    reads to ``.mha``, so are spacing, origin and direction. The file appears under its name only
    once it is complete.

    Args:
        path: ``.nii.gz``, ``.nii`` or ``.mha``; its folder is made.
        mask: (x, y, z) in the voxel order of ``like``; anything but 0 is inside.
        like: the reference image.
        note: up to 79 characters for the header, which ``read_note`` reads.

    Raises:
        VolumeError: ``like`` cannot be read, or ``path`` cannot be written.
        ValueError: the mask has another shape than the reference, or the name another extension.
    """
    path, like = Path(path), Path(like)
    opened = _open(like)
    if mask.shape != opened.grid.shape:
        raise ValueError(f"mask {mask.shape} is not on the grid of {like}, {opened.grid.shape}")
    voxels: Mask = np.not_equal(mask, 0).astype(np.uint8)
    if written_extension(path) == ".mha":
        write_itk(path, voxels, opened.itk or itk_geometry(opened.grid.affine), note)
    elif opened.nifti is not None:
        write_nifti(path, voxels, opened.nifti.copy(), note)
    else:
        write_nifti(path, voxels, nifti_header(opened.grid.affine), note)


def read_note(path: Path) -> str:
    """The note in the header of a mask that ``write_mask`` wrote; "" without one.

    Raises:
        VolumeError: as ``read_grid``.
    """
    opened = _open(Path(path))
    if opened.nifti is None:
        return opened.note
    return bytes(opened.nifti["descrip"]).rstrip(b"\0").decode(errors="replace")


def write_volume(path: Path, data: npt.NDArray[Any], affine: Affine) -> None:
    """Write an image or a probability map as float32.

    Args:
        path: ``.nii.gz``, ``.nii`` or ``.mha``; its folder is made.
        data: (x, y, z).
        affine: (4, 4), voxel to RAS+ mm.

    Raises:
        VolumeError: ``path`` cannot be written.
        ValueError: the array is not 3D, or the name has another extension.
    """
    path = Path(path)
    if data.ndim != 3:
        raise ValueError(f"expected an array (x, y, z), got shape {data.shape}")
    voxels = np.asarray(data, dtype=np.float32)
    if written_extension(path) == ".mha":
        write_itk(path, voxels, itk_geometry(affine))
    else:
        write_nifti(path, voxels, nifti_header(affine))


def _open(path: Path) -> Opened:
    """Read and judge the header."""
    extension = next((e for e in (*NIBABEL, *ITK_IO) if path.name.lower().endswith(e)), None)
    if extension is None:
        known = ", ".join((*NIBABEL, *ITK_IO))
        raise VolumeError(f"{path}: expected an image ({known}), found another extension")
    try:
        if path.is_dir():
            raise VolumeError(f"{path}: expected an image file, found a folder")
        if not path.exists():
            raise VolumeError(f"{path}: expected an image file, found nothing there")
        if path.stat().st_size == 0:
            raise VolumeError(f"{path}: expected an image file, found an empty file")
        if not path.is_file():  # a named pipe would wait for ever
            raise VolumeError(f"{path}: expected an image file, found something that is no file")
        with path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(f"{path}: expected an image that can be read, found: {error.strerror}") from error
    if extension in NIBABEL:
        return open_nibabel(path, extension)
    return open_itk(path, extension)

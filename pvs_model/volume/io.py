"""Reads image files as ``Volume`` and writes masks on exactly their grid.

NIfTI and MGH are read by nibabel (``nifti``), other formats by SimpleITK (``itk``). Both are imported on first use,
as that takes a second or more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.types import Affine, AnyArray, BoolArray, FloatArray, Grid, Mask, Volume
from pvs_model.volume.itk import ITK_IO, itk_geometry, open_itk, write_itk
from pvs_model.volume.nifti import NIBABEL, nifti_header, open_nibabel, write_nifti
from pvs_model.volume.validation import ImageHandle, format_shape, output_extension


def read(path: Path) -> Volume:
    """Reads one image.

    Voxels that are NaN or infinite become 0. Scaling (``scl_slope``) is applied. Negative values
    and a slightly sheared affine are kept.

    Args:
        path: File: ``.nii``, ``.nii.gz``, ``.mgz``, ``.mha``, ``.mhd``, ``.nrrd``, ``.tif`` or ``.tiff``.

    Returns:
        The volume: float32 (x, y, z) in the file's voxel order, affine from voxel to RAS+ mm.

    Raises:
        VolumeError: The file is missing, damaged or of another format; it holds several volumes, two dimensions, colour
            or complex values; its header has an implausible shape or spacing; or all its voxels are equal.
    """
    path = Path(path)
    data, grid = read_values(path)
    finite = np.isfinite(data)
    if not finite.all():
        if not finite.any():
            raise VolumeError(f"{path}: expected intensities, got no finite voxel")
        data = np.where(finite, data, np.float32(0))
    low, high = float(data.min()), float(data.max())
    if low == high and not finite.all():
        raise VolumeError(
            f"{path}: expected intensities within the range of float32, got NaN, infinite or larger ones in "
            f"{np.count_nonzero(~finite)} voxels and {low:g} in all others"
        )
    if low == high:
        raise VolumeError(f"{path}: expected an image, got {low:g} in every voxel")
    return Volume(data, grid.affine, path)


def read_values(path: Path) -> tuple[FloatArray, Grid]:
    """Reads the voxels of one volume, float32 (x, y, z) in the file's voxel order, and their grid.

    Unlike ``read``, this accepts any values, also NaN, infinite or constant ones.

    Raises:
        VolumeError: As ``read``, except for the values.
    """
    path = Path(path)
    opened = _open(path)
    try:
        # Values beyond float32 become infinite here.
        with np.errstate(over="ignore", invalid="ignore"):
            data: FloatArray = np.asarray(opened.load(), dtype=np.float32)
    except MemoryError as error:
        raise VolumeError(
            f"{path}: expected an image that fits into memory, got {format_shape(opened.grid.shape)} voxels"
        ) from error
    return data.reshape(opened.grid.shape, order="F"), opened.grid


def read_grid(path: Path) -> Grid:
    """Reads the grid of an image from its header alone.

    Raises:
        VolumeError: As ``read``, as far as the header shows.
    """
    return _open(Path(path)).grid


def write_mask(path: Path, mask: Mask | BoolArray, like: Path, note: str = "") -> None:
    """Writes a mask on exactly the grid of another file: uint8, 0 and 1.

    From NIfTI to NIfTI, sform, qform and their codes are copied bit for bit; from formats of SimpleITK to ``.mha``,
    spacing, origin and direction are. The file appears under its name only once it is complete.

    Args:
        path: Destination (``.nii.gz``, ``.nii`` or ``.mha``); its folder is created.
        mask: (x, y, z) in the voxel order of ``like``; foreground where not 0.
        like: Reference image.
        note: Text of up to 79 characters for the header, which ``read_note`` reads.

    Raises:
        VolumeError: ``like`` cannot be read, or ``path`` cannot be written.
        ValueError: The shape differs from that of the reference, or the extension is not supported.
    """
    path, like = Path(path), Path(like)
    opened = _open(like)
    if mask.shape != opened.grid.shape:
        raise ValueError(f"mask {mask.shape} is not on the grid of {like}, {opened.grid.shape}")
    voxels: Mask = np.not_equal(mask, 0).astype(np.uint8)
    if output_extension(path) == ".mha":
        write_itk(path, voxels, opened.itk or itk_geometry(opened.grid.affine), note)
    elif opened.nifti is not None:
        write_nifti(path, voxels, opened.nifti.copy(), note)
    else:
        write_nifti(path, voxels, nifti_header(opened.grid.affine), note)


def read_note(path: Path) -> str:
    """Reads the note of ``write_mask`` from the header of a mask; "" without one.

    Raises:
        VolumeError: As ``read_grid``.
    """
    opened = _open(Path(path))
    if opened.nifti is None:
        return opened.note
    return bytes(opened.nifti["descrip"]).rstrip(b"\0").decode(errors="replace")


def write_volume(path: Path, data: AnyArray, affine: Affine) -> None:
    """Writes an image or a probability map as float32.

    Args:
        path: Destination (``.nii.gz``, ``.nii`` or ``.mha``); its folder is created.
        data: (x, y, z).
        affine: (4, 4), voxel index to RAS+ mm.

    Raises:
        VolumeError: ``path`` cannot be written.
        ValueError: The array is not 3D, or the extension is not supported.
    """
    path = Path(path)
    if data.ndim != 3:
        raise ValueError(f"expected an array (x, y, z), got shape {data.shape}")
    voxels = np.asarray(data, dtype=np.float32)
    if output_extension(path) == ".mha":
        write_itk(path, voxels, itk_geometry(affine))
    else:
        write_nifti(path, voxels, nifti_header(affine))


def _open(path: Path) -> ImageHandle:
    """Opens an image file and checks its header."""
    extension = next((e for e in (*NIBABEL, *ITK_IO) if path.name.lower().endswith(e)), None)
    if extension is None:
        known = ", ".join((*NIBABEL, *ITK_IO))
        raise VolumeError(f"{path}: expected an image ({known}), got another extension")
    try:
        if path.is_dir():
            raise VolumeError(f"{path}: expected an image file, got a folder")
        if not path.exists():
            raise VolumeError(f"{path}: expected an image file, but it does not exist")
        if path.stat().st_size == 0:
            raise VolumeError(f"{path}: expected an image file, got an empty file")
        if not path.is_file():  # reading a named pipe would block
            raise VolumeError(f"{path}: expected an image file, got a pipe or device")
        with path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read: {error.strerror}") from error
    if extension in NIBABEL:
        return open_nibabel(path, extension)
    return open_itk(path, extension)

"""Reads and writes NIfTI and MGH files with nibabel, sheared affines included."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.files import write_atomically
from pvs_model.types import Affine, AnyArray, Grid
from pvs_model.volume.validation import (
    SPACING_RANGE_MM,
    ImageHandle,
    check_affine,
    check_shape,
    corrupt_file_error,
    format_shape,
)

NIBABEL = (".nii.gz", ".nii", ".mgz")

#: Largest compression ratio of deflate.
MAX_COMPRESSION = 1032


def open_nibabel(path: Path, extension: str) -> ImageHandle:
    """Reads and checks the header of a file whose extension is in ``NIBABEL``.

    Raises:
        VolumeError: The file is damaged, not 3D, colour or complex, holds several volumes, or has an implausible grid.
    """
    import nibabel as nib
    from nibabel.imageglobals import LoggingOutputSuppressor

    # Raised by nibabel, gzip and numpy for damaged files.
    read_errors = (
        nib.filebasedimages.ImageFileError,
        nib.spatialimages.HeaderDataError,
        nib.wrapstruct.WrapStructError,
        OSError,
        EOFError,
        zlib.error,
        ValueError,
        TypeError,
        KeyError,
        OverflowError,
        IndexError,
    )
    try:
        with LoggingOutputSuppressor():
            image: Any = _nibabel_class(path, extension).from_filename(os.fspath(path))
            shape = tuple(int(n) for n in image.shape)
            dtype = np.dtype(image.get_data_dtype())
            affine = np.array(image.affine, dtype=np.float64)
            pixdim = _raw_pixdim(image) if extension != ".mgz" else np.ones(3)
    except read_errors as error:
        raise corrupt_file_error(path, error) from error
    if dtype.fields is not None or dtype.kind == "c":
        voxels = "complex" if dtype.kind == "c" else "colour"
        raise VolumeError(f"{path}: expected one real value per voxel, got {voxels} voxels")
    xyz = check_shape(path, shape)
    if not (np.isfinite(pixdim) & (pixdim != 0)).all():
        raise VolumeError(
            f"{path}: expected a voxel spacing above {SPACING_RANGE_MM[0]} mm, got {format_shape(pixdim)} in its header"
        )
    check_affine(path, affine)
    max_bytes = path.stat().st_size * (1 if extension == ".nii" else MAX_COMPRESSION)
    if int(np.prod(xyz, dtype=np.int64)) * dtype.itemsize > max_bytes:
        raise corrupt_file_error(path)

    def load() -> AnyArray:
        try:
            with LoggingOutputSuppressor():
                if extension == ".nii":
                    plain: AnyArray = image.get_fdata(dtype=np.float32, caching="unchanged")
                    return plain
                with gzip.open(path, "rb") as file:
                    data: AnyArray = type(image).from_stream(file).get_fdata(dtype=np.float32)
                    while file.read(2**20):  # to its end, where gzip checks its checksum
                        pass
                    return data
        except read_errors as error:
            raise corrupt_file_error(path, error) from error

    nifti = image.header if isinstance(image, nib.Nifti1Pair) else None
    return ImageHandle(Grid(xyz, affine), load, nifti=nifti)


def _nibabel_class(path: Path, extension: str) -> Any:
    """Returns the image class by extension and, for NIfTI, by the size of the header."""
    import nibabel as nib

    if extension == ".mgz":
        return nib.MGHImage
    opener: Any = gzip.open if extension == ".nii.gz" else open
    with opener(path, "rb") as file:
        start = file.read(4)
    if 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big")):
        return nib.Nifti2Image
    return nib.Nifti1Image


def _raw_pixdim(image: Any) -> npt.NDArray[np.float64]:
    """Returns pixdim[1:4] of the file; nibabel's header replaces zeros by ones."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    return np.array(header["pixdim"][1:4], dtype=np.float64)


def nifti_header(affine: Affine) -> Any:
    """Returns a new NIfTI-1 header with sform and qform, as other software may use either.

    Only the sform, which most readers prefer, can represent shear.
    """
    import nibabel as nib

    header: Any = nib.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


def write_nifti(path: Path, voxels: AnyArray, header: Any, note: str = "") -> None:
    """Writes header and voxels without scaling, and a note as the description.

    The bytes are assembled here because nibabel's image class stores a slope of 1 as NaN.
    """
    pixdim = header["pixdim"].copy()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header["pixdim"] = pixdim  # set_data_shape resets those beyond the third axis
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    header["intent_code"], header["intent_name"] = 0, b""
    # Text of the reference may identify the patient.
    for text in ("descrip", "aux_file", "db_name"):
        if text in header:
            header[text] = b""
    header["descrip"] = note.encode()
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    stored = voxels.astype(voxels.dtype.newbyteorder(header.endianness), copy=False)
    content = header.binaryblock
    content += b"\0" * (int(header.single_vox_offset) - len(content))
    content += stored.tobytes(order="F")

    def write(part: Path) -> None:
        with part.open("wb") as file:
            if path.name.lower().endswith(".gz"):
                # Without name and time, equal masks give equal files.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    packed.write(content)
            else:
                file.write(content)

    write_atomically(path, write, VolumeError)

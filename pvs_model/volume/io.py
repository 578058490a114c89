"""Image files to ``Volume`` and masks back to files, nothing lost in between.

NIfTI and MGH go through nibabel, which reads any sform, sheared ones too; the rest goes through
SimpleITK, whose LPS+ coordinates are turned into RAS+ here. Both are imported when first needed:
they take a second or more.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import VolumeError
from pvs_model.types import Affine, FloatArray, Grid, Mask, Volume, spacing_of

#: More voxels than this are not an MRI scan but a header that lies (2^31 float32 are 8 GiB).
MAX_VOXELS = 2**31

#: Voxel spacing in mm beyond which a header is not believed: smallest excluded, largest included.
SPACING_RANGE_MM = (0.05, 50.0)

#: Least volume of the unit cell that the three axis directions span: 1 where they are orthogonal.
_LEAST_CELL = 0.1

_NIBABEL = (".nii.gz", ".nii", ".mgz")
_ITK_IO = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".tif": "TIFFImageIO",
    ".tiff": "TIFFImageIO",
}
_WRITTEN = (".nii.gz", ".nii", ".mha")

#: Deflate cannot shrink anything by more than this factor.
_MOST_COMPRESSION = 1032

#: RAS+ to LPS+ and back.
_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class _Opened:
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
    opened = _open(path)
    try:
        # Values beyond float32 become infinite here, and 0 below.
        with np.errstate(over="ignore", invalid="ignore"):
            data: FloatArray = np.asarray(opened.load(), dtype=np.float32)
    except MemoryError as error:
        raise VolumeError(
            f"{path}: expected an image that fits into memory, "
            f"found {_by(opened.grid.shape)} voxels"
        ) from error
    data = data.reshape(opened.grid.shape, order="F")
    finite = np.isfinite(data)
    if not finite.all():
        if not finite.any():
            raise VolumeError(f"{path}: expected intensities, found no finite voxel")
        data = np.where(finite, data, np.float32(0))
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise VolumeError(f"{path}: expected an image, found {low:g} in every voxel")
    return Volume(data, opened.grid.affine, path)


def read_grid(path: Path) -> Grid:
    """The grid of an image, from its header alone.

    Raises:
        VolumeError: as ``read``, for what the header shows.
    """
    return _open(Path(path)).grid


def write_mask(path: Path, mask: Mask | npt.NDArray[np.bool_], like: Path) -> None:
    """Write a mask on exactly the grid of another file: uint8, 0 and 1.

    From NIfTI to NIfTI, sform, qform and their codes are copied bit for bit; from what SimpleITK
    reads to ``.mha``, so are spacing, origin and direction. The file appears under its name only
    once it is complete.

    Args:
        path: ``.nii.gz``, ``.nii`` or ``.mha``; its folder is made.
        mask: (x, y, z) in the voxel order of ``like``; anything but 0 is inside.
        like: the reference image.

    Raises:
        VolumeError: ``like`` cannot be read, or ``path`` cannot be written.
        ValueError: the mask has another shape than the reference, or the name another extension.
    """
    path, like = Path(path), Path(like)
    opened = _open(like)
    if mask.shape != opened.grid.shape:
        raise ValueError(f"mask {mask.shape} is not on the grid of {like}, {opened.grid.shape}")
    voxels: Mask = np.not_equal(mask, 0).astype(np.uint8)
    if _written_extension(path) == ".mha":
        _write_itk(path, voxels, opened.itk or _itk_geometry(opened.grid.affine))
    elif opened.nifti is not None:
        _write_nifti(path, voxels, opened.nifti.copy())
    else:
        _write_nifti(path, voxels, _nifti_header(opened.grid.affine))


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
    if _written_extension(path) == ".mha":
        _write_itk(path, voxels, _itk_geometry(affine))
    else:
        _write_nifti(path, voxels, _nifti_header(affine))


def _open(path: Path) -> _Opened:
    """Read and judge the header."""
    extension = next((e for e in (*_NIBABEL, *_ITK_IO) if path.name.lower().endswith(e)), None)
    if extension is None:
        known = ", ".join((*_NIBABEL, *_ITK_IO))
        raise VolumeError(f"{path}: expected an image ({known}), found another extension")
    try:
        if path.is_dir():
            raise VolumeError(f"{path}: expected an image file, found a folder")
        if not path.exists():
            raise VolumeError(f"{path}: expected an image file, found nothing there")
        if path.stat().st_size == 0:
            raise VolumeError(f"{path}: expected an image file, found an empty file")
        with path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(
            f"{path}: expected an image that can be read, found: {error.strerror}"
        ) from error
    if extension in _NIBABEL:
        return _open_nibabel(path, extension)
    return _open_itk(path, extension)


def _damaged(path: Path, error: BaseException | None = None) -> VolumeError:
    reason = " ".join(str(error).split()) if error is not None else ""
    ending = f" ({reason:.160})" if reason else ""
    return VolumeError(
        f"{path}: expected a complete image, found a damaged or truncated file{ending}"
    )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in shape)


def _three(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the one volume in an array of ``shape``."""
    if len(shape) < 3 or (len(shape) == 3 and shape[2] == 1):
        raise VolumeError(f"{path}: expected a 3D image, found 2D ({_by(shape)})")
    if any(n < 1 for n in shape):
        raise VolumeError(f"{path}: expected a 3D image, found an empty one ({_by(shape)})")
    volumes = 1
    for n in shape[3:]:
        volumes *= n
    if volumes > 1:
        raise VolumeError(f"{path}: expected one volume, found {volumes} ({_by(shape)})")
    x, y, z = shape[:3]
    if min(x, y, z) < 2:
        raise VolumeError(f"{path}: expected a 3D image, found 2D ({_by(shape)})")
    if x * y * z > MAX_VOXELS:
        raise VolumeError(
            f"{path}: expected at most {MAX_VOXELS} voxels, found {_by(shape)} in its header"
        )
    return x, y, z


def _believable(path: Path, affine: Affine) -> Affine:
    """The affine, once its spacings and directions are judged possible."""
    spacing = np.array(spacing_of(affine)) if np.isfinite(affine).all() else np.full(3, np.nan)
    smallest, largest = SPACING_RANGE_MM
    slack = 1e-6  # 0.05 in float32 is a little more than 0.05
    if not ((spacing > smallest + slack) & (spacing <= largest + slack)).all():
        raise VolumeError(
            f"{path}: expected a voxel spacing above {smallest} and up to {largest:g} mm, "
            f"found {' x '.join(f'{s:g}' for s in spacing)}"
        )
    cell = abs(float(np.linalg.det(affine[:3, :3] / spacing)))
    if cell < _LEAST_CELL:
        raise VolumeError(
            f"{path}: expected axes about at right angles, found directions that coincide"
        )
    return affine


def _open_nibabel(path: Path, extension: str) -> _Opened:
    import nibabel as nib
    from nibabel.imageglobals import LoggingOutputSuppressor

    # What nibabel, gzip and numpy raise for files that are not what they say.
    broken = (
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
    except broken as error:
        raise _damaged(path, error) from error
    if dtype.fields is not None or dtype.kind == "c":
        kind = "complex" if dtype.kind == "c" else "colour"
        raise VolumeError(f"{path}: expected one real value per voxel, found {kind} voxels")
    xyz = _three(path, shape)
    if not (np.isfinite(pixdim) & (pixdim != 0)).all():
        raise VolumeError(
            f"{path}: expected a voxel spacing above {SPACING_RANGE_MM[0]} mm, found "
            f"{' x '.join(f'{s:g}' for s in pixdim)} in its header"
        )
    _believable(path, affine)
    most = path.stat().st_size * (1 if extension == ".nii" else _MOST_COMPRESSION)
    if int(np.prod(xyz, dtype=np.int64)) * dtype.itemsize > most:
        raise _damaged(path)

    def load() -> npt.NDArray[Any]:
        try:
            with LoggingOutputSuppressor():
                data: npt.NDArray[Any] = image.get_fdata(dtype=np.float32, caching="unchanged")
                return data
        except broken as error:
            raise _damaged(path, error) from error

    nifti = image.header if isinstance(image, nib.Nifti1Pair) else None
    return _Opened(Grid(xyz, affine), load, nifti=nifti)


def _nibabel_class(path: Path, extension: str) -> Any:
    """The image class by extension and, for NIfTI, by the size of the header."""
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
    """pixdim[1:4] as they stand in the file: nibabel's own header has zeros mended to ones."""
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    return np.array(header["pixdim"][1:4], dtype=np.float64)


def _sitk() -> Any:
    """SimpleITK, its warnings (on odd metadata, mostly) kept from the terminal."""
    import SimpleITK

    sitk: Any = SimpleITK
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def _open_itk(path: Path, extension: str) -> _Opened:
    sitk = _sitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_ITK_IO[extension])
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _damaged(path) from error
    dimensions = reader.GetDimension()
    shape = tuple(int(n) for n in reader.GetSize())
    components = reader.GetNumberOfComponents()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).lower()
    if components != 1 or "complex" in pixel:
        kind = "complex" if "complex" in pixel else f"{components} values per voxel"
        raise VolumeError(f"{path}: expected one real value per voxel, found {kind}")
    xyz = _three(path, shape)
    spacing = [float(s) for s in reader.GetSpacing()[:3]]
    origin = [float(o) for o in reader.GetOrigin()[:3]]
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = _LPS @ direction @ np.diag(spacing)
    affine[:3, 3] = _LPS @ np.array(origin)
    _believable(path, affine)

    def load() -> npt.NDArray[Any]:
        reader.SetOutputPixelType(sitk.sitkFloat32)
        if dimensions > 3:
            reader.SetExtractSize([*xyz, *[0] * (dimensions - 3)])
        try:
            data: npt.NDArray[Any] = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
            return data
        except RuntimeError as error:
            raise _damaged(path) from error

    geometry = (spacing, origin, [float(d) for d in direction.ravel()])
    return _Opened(Grid(xyz, affine), load, itk=geometry)


def _itk_geometry(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """(spacing, origin, direction) in LPS+, the direction flattened by rows."""
    spacing = spacing_of(affine)
    direction = _LPS @ affine[:3, :3] / np.array(spacing)
    origin = _LPS @ affine[:3, 3]
    return list(spacing), [float(o) for o in origin], [float(d) for d in direction.ravel()]


def _nifti_header(affine: Affine) -> Any:
    """A new NIfTI-1 header. Other software may look at either form, so both are set.

    The qform cannot hold shear; the sform, which most readers prefer, does.
    """
    import nibabel as nib

    header: Any = nib.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1)
    header.set_xyzt_units("mm")
    return header


def _written_extension(path: Path) -> str:
    for extension in _WRITTEN:
        if path.name.lower().endswith(extension):
            return extension
    raise ValueError(f"{path}: expected a name that ends in one of {', '.join(_WRITTEN)}")


def _write_nifti(path: Path, voxels: npt.NDArray[Any], header: Any) -> None:
    """Write header and voxels as they are.

    By hand and not by nibabel's image class, which would write NaN for a slope of 1.
    """
    pixdim = header["pixdim"].copy()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header["pixdim"] = pixdim  # set_data_shape resets those beyond the third axis
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, 0
    header["intent_code"], header["intent_name"] = 0, b""
    # The reference's own text may name the patient.
    for text in ("descrip", "aux_file", "db_name"):
        if text in header:
            header[text] = b""
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    stored = voxels.astype(voxels.dtype.newbyteorder(header.endianness), copy=False)
    content = header.binaryblock
    content += b"\0" * (int(header.single_vox_offset) - len(content))
    content += stored.tobytes(order="F")

    def write(part: Path) -> None:
        with part.open("wb") as file:
            if path.name.lower().endswith(".gz"):
                # No name and no time in it: the same mask is the same file.
                with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                    packed.write(content)
            else:
                file.write(content)

    _replace(path, write)


def _write_itk(
    path: Path,
    voxels: npt.NDArray[Any],
    geometry: tuple[list[float], list[float], list[float]],
) -> None:
    sitk = _sitk()
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing, origin, direction = geometry
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    _replace(
        path,
        lambda part: sitk.WriteImage(
            image, os.fspath(part), useCompression=True, imageIO="MetaImageIO"
        ),
    )


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file in a hidden folder beside ``path``, then put it in its place.

    In a folder of its own, so that a run that is killed leaves no second image beside the masks.

    Raises:
        VolumeError: it cannot be written.
    """
    hidden: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.mkdtemp(prefix=".part-", dir=path.parent)
        part = Path(hidden) / f"part{_written_extension(path)}"
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

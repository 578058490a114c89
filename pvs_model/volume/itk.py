"""Reads and writes other image files with SimpleITK, whose LPS+ coordinates are converted to RAS+."""

from __future__ import annotations

import glob
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.files import write_atomically
from pvs_model.types import Affine, AnyArray, Grid, spacing_of
from pvs_model.volume.validation import ImageHandle, check_affine, check_shape, corrupt_file_error

ITK_IO = {
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".nrrd": "NrrdImageIO",
    ".tif": "TIFFImageIO",
    ".tiff": "TIFFImageIO",
}

#: Key of the note in the header of a mask.
NOTE = "MadeFrom"

#: Longest header that is searched for the files of the voxels, bytes.
_HEADER_BYTES = 2**16
#: Line of a header that names them, with what follows, which is a list of files after ``LIST``.
_VOXEL_FILES = re.compile(
    rb"^(?:ElementDataFile[ \t]*=|data ?file:)[ \t]*(?P<name>[^\r\n]+)(?P<list>.*)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)

#: RAS+ to LPS+ and back.
LPS = np.diag([-1.0, -1.0, 1.0])

#: SimpleITK's number of threads is a setting of the process, which a registration sets to one. Re-entrant.
ITK_LOCK = threading.RLock()


def _sitk() -> Any:
    """Returns SimpleITK with its warnings, mostly about metadata, switched off."""
    import SimpleITK

    sitk: Any = SimpleITK
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return sitk


def open_itk(path: Path, extension: str) -> ImageHandle:
    """Reads and checks the header of a file whose extension is in ``ITK_IO``.

    Raises:
        VolumeError: The file is damaged, not 3D, holds several values per voxel, or has an implausible grid.
    """
    sitk = _sitk()
    reader = sitk.ImageFileReader()
    reader.SetImageIO(ITK_IO[extension])
    reader.SetFileName(os.fspath(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise corrupt_file_error(path) from error
    dimensions = reader.GetDimension()
    shape = tuple(int(n) for n in reader.GetSize())
    components = reader.GetNumberOfComponents()
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()).lower()
    if components != 1 or "complex" in pixel:
        voxels = "complex values" if "complex" in pixel else f"{components} values per voxel"
        raise VolumeError(f"{path}: expected one real value per voxel, got {voxels}")
    xyz = check_shape(path, shape)
    spacing = [float(s) for s in reader.GetSpacing()[:3]]
    origin = [float(o) for o in reader.GetOrigin()[:3]]
    direction = np.array(reader.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = LPS @ direction @ np.diag(spacing)
    affine[:3, 3] = LPS @ np.array(origin)
    check_affine(path, affine)

    def load() -> AnyArray:
        reader.SetOutputPixelType(sitk.sitkFloat32)
        if dimensions > 3:
            reader.SetExtractSize([*xyz, *[0] * (dimensions - 3)])
        try:
            data: AnyArray = sitk.GetArrayFromImage(reader.Execute()).transpose(2, 1, 0)
            return data
        except RuntimeError as error:
            raise corrupt_file_error(path) from error

    geometry = (spacing, origin, [float(d) for d in direction.ravel()])
    note = reader.GetMetaData(NOTE) if reader.HasMetaDataKey(NOTE) else ""
    return ImageHandle(Grid(xyz, affine), load, itk=geometry, note=note)


def voxel_files(path: Path) -> list[Path]:
    """Returns the existing files in which a header (``.mhd``, detached ``.nrrd``) says that its voxels are.

    Raises:
        OSError: The header cannot be read.
    """
    if path.suffix.lower() not in (".mha", ".mhd", ".nrrd"):
        return []
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if path.suffix.lower() == ".nrrd":  # the voxels follow the first empty line
        header = re.split(rb"\r?\n\r?\n", header, maxsplit=1)[0]
    match = _VOXEL_FILES.search(header)
    if match is None:
        return []
    names = [match["name"]]
    if match["name"].split()[:1] == [b"LIST"]:
        names = match["list"].splitlines()
    files: list[Path] = []
    for name in map(os.fsdecode, map(bytes.strip, names)):
        if "%" in name:  # slice%03d.raw 1 40: a file for each slice
            pattern = path.parent / re.sub(r"%\d*[a-z]", "*", glob.escape(name.split()[0]))
            files += pattern.parent.glob(pattern.name)
        elif name and name.upper() != "LOCAL":
            files.append(path.parent / name)
    return sorted(file for file in files if file.is_file())


def itk_geometry(affine: Affine) -> tuple[list[float], list[float], list[float]]:
    """Returns (spacing, origin, direction) in LPS+, the direction flattened by rows."""
    spacing = spacing_of(affine)
    direction = LPS @ affine[:3, :3] / np.array(spacing)
    origin = LPS @ affine[:3, 3]
    return list(spacing), [float(o) for o in origin], [float(d) for d in direction.ravel()]


def to_itk(voxels: AnyArray, geometry: tuple[list[float], list[float], list[float]]) -> Any:
    """Returns a SimpleITK image of voxels (x, y, z) with (spacing, origin, direction) in LPS+."""
    import SimpleITK

    sitk: Any = SimpleITK
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
    spacing, origin, direction = geometry
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


@contextmanager
def one_itk_thread() -> Iterator[None]:
    """Limits SimpleITK to one thread, as the order of sums over several varies; holds ``ITK_LOCK``."""
    import SimpleITK

    process: Any = SimpleITK.ProcessObject
    with ITK_LOCK:
        threads = process.GetGlobalDefaultNumberOfThreads()
        process.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            process.SetGlobalDefaultNumberOfThreads(threads)


def write_itk(
    path: Path,
    voxels: AnyArray,
    geometry: tuple[list[float], list[float], list[float]],
    note: str = "",
) -> None:
    """Writes voxels (x, y, z) as compressed MetaImage with (spacing, origin, direction) in LPS+ and an optional note.

    Raises:
        VolumeError: The file cannot be written.
    """
    sitk = _sitk()
    image = to_itk(voxels, geometry)
    if note:
        image.SetMetaData(NOTE, note)
    write_atomically(
        path,
        lambda part: sitk.WriteImage(image, os.fspath(part), useCompression=True, imageIO="MetaImageIO"),
        VolumeError,
    )

"""Converts DICOM series to NIfTI with dcm2niix, and unpacks archives."""

from __future__ import annotations

import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pvs_model.dicom.headers import Series
from pvs_model.errors import LayoutError, VolumeError


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """Unpacks a zip file into a temporary folder; a folder is returned as it is.

    Raises:
        LayoutError: The archive is damaged or cannot be unpacked.
    """
    if not source.is_file():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="pvs_dicom_") as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise LayoutError(f"{source}: expected a folder or zip file of DICOM series, got: {error}") from error
        yield Path(folder)


def convert(series: Series, target: Path) -> None:
    """Converts the images of a series to one NIfTI file.

    The file is not compressed: its bytes then only depend on the images.

    Args:
        series: Series of one volume.
        target: Destination, ``.nii``; its folder exists.

    Raises:
        VolumeError: dcm2niix cannot convert it, or not to one volume.
    """
    import dcm2niix

    with tempfile.TemporaryDirectory(prefix="pvs_dicom_") as scratch:
        images, output = Path(scratch, "images"), Path(scratch, "output")
        images.mkdir()
        output.mkdir()
        for number, path in enumerate(series.files):
            (images / f"{number:06d}.dcm").symlink_to(path.resolve())
        command = [dcm2niix.bin, "-z", "n", "-b", "n", "-w", "1", "-f", "image", "-o", str(output), str(images)]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        written = sorted(output.glob("*.nii"))
        if len(written) != 1:
            lines = [line for line in (ran.stdout + ran.stderr).splitlines() if "rror" in line or "arning" in line]
            got = f"{len(written)}: {', '.join(path.name for path in written)}" if written else "none"
            detail = f" ({lines[0].strip()})" if lines else ""
            raise VolumeError(f"series {series.label}: expected one volume from dcm2niix, got {got}{detail}")
        target.write_bytes(written[0].read_bytes())

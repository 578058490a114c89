"""Where an input is made: a case folder, and the ways in which an image can be written there."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.corpus.base import SHAPE, Affine, Base, nib

#: Offsets of NIfTI-1's fields in its header.
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTER = 40, 70, 72, 76, 108, 112, 116
QFORM_CODE, SFORM_CODE, QOFFSET, SROW, MAGIC = 252, 254, 268, 280, 344


class Place:
    """A case folder, made empty. What is not said otherwise is the base's T2w."""

    def __init__(self, folder: Path, base: Base) -> None:
        self.folder, self.base, self.case = folder, base, folder.name
        self.affine = base.affine
        folder.mkdir(parents=True)

    def __call__(self, ending: str = "_T2w.nii.gz") -> Path:
        return self.folder / f"{self.case}{ending}"

    def data(self, sequence: str = "T2w") -> npt.NDArray[np.float64]:
        """A copy to change."""
        return self.base.images[sequence].astype(np.float64)

    def raw(self, ending: str, content: bytes) -> Path:
        """Write bytes, compressed where the name says so."""
        path = self(ending)
        path.write_bytes(gzip.compress(content, 1, mtime=0) if ending.endswith(".gz") else content)
        return path

    def nifti(
        self, data: npt.NDArray[Any] | None = None, affine: Affine | None = None, sequence: str = "T2w",
        ending: str = ".nii.gz", dtype: Any = None, kind: Any = nib.Nifti1Image, endian: str = "<",
    ) -> Path:  # fmt: skip
        """Write a NIfTI file; without ``dtype`` as int16 where nothing is lost, else as float32."""
        values = self.base.images[sequence] if data is None else data
        if dtype is None:
            dtype = values.dtype if values.dtype.fields or values.dtype.kind == "c" else np.float32
            dtype = np.int16 if values.dtype == np.int16 else dtype
        header = kind.header_class(endianness=endian)
        header.set_data_dtype(dtype)
        image = kind(values.astype(dtype), self.affine if affine is None else affine, header=header)
        return self.raw(f"_{sequence}{ending}", image.to_bytes())

    def all(self, affine: Affine, **given: Any) -> None:
        """All three sequences with another affine."""
        for sequence in self.base.images:
            self.nifti(affine=affine, sequence=sequence, **given)

    def patched(self, *patches: tuple[int, bytes], sequence: str = "T2w", ending: str = ".nii.gz") -> Path:
        """The base's file with bytes of it overwritten: (offset, bytes)."""
        content = bytearray(self.base.files[sequence])
        for offset, part in patches:
            content[offset : offset + len(part)] = part
        return self.raw(f"_{sequence}{ending}", bytes(content))

    def patched_all(self, *patches: tuple[int, bytes]) -> None:
        for sequence in self.base.images:
            self.patched(*patches, sequence=sequence)

    def itk(self, ending: str, sequence: str = "T2w", data: npt.NDArray[Any] | None = None, **options: Any) -> Path:
        """Write through SimpleITK: .mha, .mhd, .nrrd, .tif."""
        import SimpleITK

        sitk: Any = SimpleITK
        values = self.base.images[sequence] if data is None else data
        vector = values.ndim == 4
        image = sitk.GetImageFromArray(values.transpose(2, 1, 0, 3) if vector else values.transpose(2, 1, 0), vector)
        image.SetOrigin((*(-self.affine[:2, 3]), self.affine[2, 3]))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        path = self(f"_{sequence}{ending}")
        sitk.WriteImage(image, str(path), **options)
        return path

    def grid(self, axis: int, spacing: float) -> Affine:
        """The base's affine with another spacing along an axis."""
        out = self.affine.copy()
        out[:3, axis] *= spacing
        return out

    def noise(self, *shape: int) -> npt.NDArray[np.float64]:
        return np.random.default_rng(0).uniform(100, 900, shape or SHAPE)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def shorts(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)

"""Every kind of input, and what is promised for it."""

from __future__ import annotations

import gzip
import os
import re
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.types import SEQUENCES
from tests.corpus.base import SHAPE, Affine, base, nib, turn, turned
from tests.corpus.place import (
    BITPIX,
    DATATYPE,
    DIM,
    INTER,
    MAGIC,
    PIXDIM,
    QFORM_CODE,
    QOFFSET,
    SFORM_CODE,
    SLOPE,
    SROW,
    VOX_OFFSET,
    Place,
    floats,
    shorts,
)

MASK, WARNED, REFUSED = "mask", "mask with a warning", "refused"
DAMAGED = r"expected a complete image, got a damaged or truncated file"
EXACT = 0.999


@dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: in words; also the name of the case, where ``case`` does not say another.
        outcome: ``MASK``, ``WARNED`` or ``REFUSED``.
        make: fills the case folder.
        says: regular expression of the warning, or of the sentence from the colon after the file's name on.
        file: what follows the case in the name of the file that is refused, or of the reference; "" for the folder.
        others: sequences of the base that lie beside what ``make`` writes.
        same: the least Dice with the base's mask; None where it may be any mask.
        moved: where the brain was moved to, from mm of the base to mm here.
        case: the case's name.
        run: kinds of one name share a process; "cases" is the large one.
        names: whether this is about the name of the case alone; those are run with reports.
        not_as_root: root may do what this is about.
        slow: many seconds or much memory.
        known_problem: what is wrong today; the stated outcome is the one that is wanted.
    """

    name: str
    outcome: str
    make: Callable[[Place], Any]
    says: str = ""
    file: str = "_T2w.nii.gz"
    others: tuple[str, ...] = ("T1w", "FLAIR")
    same: float | None = None
    moved: Affine | None = None
    case: str = ""
    run: str = "cases"
    not_as_root: bool = False
    slow: bool = False
    known_problem: str | None = None

    @property
    def shown(self) -> str:
        """The case's name as a line of text can have it."""
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in self.folder)

    @property
    def folder(self) -> str:
        return self.case or re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.")


@dataclass(frozen=True)
class FolderKind:
    """One kind of input folder, or of output: a process of its own that can run nothing.

    Attributes:
        make: given an empty folder, returns the paths of input and output.
        status: the exit status.
        says: regular expression of the last line on stderr, ``{}`` being the path that it must name.
        named: that path below the folder.
        output: whether this is about the output: left out where another command is run, which has its own.
    """

    name: str
    make: Callable[[Path], tuple[Path, Path]]
    says: str
    named: str
    status: int = 2
    output: bool = False
    not_as_root: bool = False
    known_problem: str | None = None
    outcome: str = REFUSED


def same(name: str, make: Callable[[Place], Any], least: float = EXACT, **more: Any) -> Kind:
    """The same brain, stored in another way: the same mask in physical space."""
    return Kind(name, MASK, make, same=least, **more)


def mask(name: str, make: Callable[[Place], Any], **more: Any) -> Kind:
    return Kind(name, MASK, make, **more)


def warned(name: str, says: str, make: Callable[[Place], Any], **more: Any) -> Kind:
    return Kind(name, WARNED, make, says, **more)


def refused(name: str, says: str, make: Callable[[Place], Any], **more: Any) -> Kind:
    return Kind(name, REFUSED, make, says, **more)


def alone(at: Place, sequence: str = "T2w") -> None:
    at(f"_{sequence}.nii.gz").write_bytes(at.base.packed[sequence])


# ---- files that are not what they say ------------------------------------------------------------------------------


def cut(at: Place, share: float, ending: str = "_T2w.nii.gz") -> None:
    raw = at.base.packed["T2w"] if ending.endswith(".gz") else at.base.files["T2w"]
    at(ending).write_bytes(raw[: int(len(raw) * share)])


def with_wrong_check_sum(at: Place) -> None:
    raw = bytearray(at.base.packed["T2w"])
    raw[-8] ^= 0xFF
    at().write_bytes(bytes(raw))


def with_a_flipped_bit(at: Place) -> None:
    """In a gzip that stores and does not compress: only the check sum can tell."""
    raw = bytearray(gzip.compress(at.base.files["T2w"], 0, mtime=0))
    raw[len(raw) // 2] ^= 0x40
    at().write_bytes(bytes(raw))


def in_members(at: Place) -> None:
    raw = at.base.files["T2w"]
    at().write_bytes(b"".join(gzip.compress(raw[i : i + 9999], 1) for i in range(0, len(raw), 9999)))


def without_its_raw(at: Place) -> None:
    at.itk(".mhd").with_suffix(".raw").unlink()


def cut_mha(at: Place) -> None:
    path = at.itk(".mha")
    path.write_bytes(path.read_bytes()[:-5000])


def mgz(at: Place, data: Any = None, share: float = 1.0) -> None:
    image = nib.MGHImage((at.base.images["T2w"] if data is None else data).astype(np.int32), at.affine)
    raw = image.to_bytes()
    at("_T2w.mgz").write_bytes(gzip.compress(raw[: int(len(raw) * share)], 1))


def bomb(at: Place) -> None:
    """2 GiB of zeros behind an honest header, in 2 MiB: gzip files may be strung together."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((1291, 1291, 1291))
    header.set_sform(at.affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    zeros = gzip.compress(bytes(2**26), 6, mtime=0)
    at().write_bytes(gzip.compress(header.binaryblock + bytes(4)) + zeros * 33)


def with_a_lying_extension(at: Place) -> None:
    """A header extension that says it is a gigabyte long."""
    raw = at.base.files["T2w"]
    content = bytearray(raw[:348] + bytes((1, 0, 0, 0)) + struct.pack("<ii", 2**30, 6) + bytes(8) + raw[352:])
    content[VOX_OFFSET : VOX_OFFSET + 4] = floats(368)
    at.raw("_T2w.nii.gz", bytes(content))


FILES = [
    refused("gzip cut in the middle", DAMAGED, lambda at: cut(at, 0.5)),
    refused("gzip cut in its last bytes", DAMAGED, lambda at: cut(at, 0.995)),
    refused("gzip cut in its header", DAMAGED, lambda at: at().write_bytes(at.base.packed["T2w"][:7])),
    refused("gzip with a wrong check sum", DAMAGED, with_wrong_check_sum),
    refused("one flipped bit in a stored gzip", DAMAGED, with_a_flipped_bit),
    refused("gzip of nothing", DAMAGED, lambda at: at().write_bytes(gzip.compress(b""))),
    refused("header only", DAMAGED, lambda at: at.raw("_T2w.nii.gz", at.base.files["T2w"][:352])),
    refused("header only, .nii", DAMAGED, lambda at: cut(at, 352 / len(at.base.files["T2w"]), "_T2w.nii"),
            file="_T2w.nii"),
    refused("half a header", DAMAGED, lambda at: at.raw("_T2w.nii.gz", at.base.files["T2w"][:200])),
    refused("wrong magic", DAMAGED, lambda at: at.patched((MAGIC, b"abc"))),
    refused("empty file", "expected an image file, got an empty file", lambda at: at().touch()),
    refused("text file with the name of an image", DAMAGED, lambda at: at().write_text("not an image\n" * 99)),
    refused("text file named .mha", DAMAGED, lambda at: at("_T2w.mha").write_text("not an image\n" * 99),
            file="_T2w.mha"),
    refused(".nii named .nii.gz", DAMAGED, lambda at: at().write_bytes(at.base.files["T2w"])),
    refused(".nii.gz named .nii", DAMAGED, lambda at: at("_T2w.nii").write_bytes(at.base.packed["T2w"]),
            file="_T2w.nii"),
    refused("data type that nobody knows", DAMAGED, lambda at: at.patched((DATATYPE, shorts(999)))),
    refused("data type of single bits", DAMAGED, lambda at: at.patched((DATATYPE, shorts(1)), (BITPIX, shorts(1)))),
    refused("voxels begin beyond the file", DAMAGED, lambda at: at.patched((VOX_OFFSET, floats(1e9)))),
    refused("voxels begin at NaN", DAMAGED, lambda at: at.patched((VOX_OFFSET, floats(np.nan)))),
    refused("header extension of a gigabyte", DAMAGED, with_a_lying_extension),
    refused("no axes", "expected ", lambda at: at.patched((DIM, shorts(0)))),
    refused("nine axes", "expected ", lambda at: at.patched((DIM, shorts(9)))),
    refused("length of an axis is 0", "expected a 3D image, got an empty one",
            lambda at: at.patched((DIM + 2, shorts(0)))),
    refused("length of an axis is negative", "expected ", lambda at: at.patched((DIM + 2, shorts(-48)))),
    refused("header declares 30000 voxels per axis", "expected at most 536870912 voxels, got 30000 x 30000 x 30000",
            lambda at: at.patched((DIM + 2, shorts(30000, 30000, 30000)))),
    refused("header declares more than the file can hold", DAMAGED,
            lambda at: at.patched((DIM + 2, shorts(800, 800, 800)))),
    refused("honest gzip of 2 GiB of zeros", "expected at most 536870912 voxels, got 1291 x 1291 x 1291", bomb),
    refused(".mhd without its .raw", DAMAGED, without_its_raw, file="_T2w.mhd"),
    refused(".mha cut short", DAMAGED, cut_mha, file="_T2w.mha"),
    refused(".mgz cut short", DAMAGED, lambda at: mgz(at, share=0.6), file="_T2w.mgz"),
    refused(".mgz of two frames", "expected one volume, got 2",
            lambda at: mgz(at, np.stack([at.data()] * 2, -1)), file="_T2w.mgz"),
]  # fmt: skip

# ---- dimensions and kinds of voxels --------------------------------------------------------------------------------


def coloured(at: Place) -> None:
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["R"] = at.data() / 4
    at.nifti(colour)


def quantised(at: Place, top: int, dtype: Any) -> None:
    data = at.data()
    at.nifti(np.round(data * (top / data.max())), dtype=dtype)


DIMENSIONS = [
    refused("2D", r"expected a 3D image, got 2D \(48 x 56\)", lambda at: at.nifti(at.data()[..., 20])),
    refused("one slice", r"expected a 3D image, got 2D \(48 x 56 x 1\)",
            lambda at: at.nifti(at.data()[..., 20:21])),
    mask("two slices", lambda at: at.nifti(at.data()[..., 20:22])),
    same("4D of one volume", lambda at: at.nifti(at.data()[..., None])),
    refused("4D of three volumes", r"expected one volume, got 3 \(48 x 56 x 40 x 3\)",
            lambda at: at.nifti(np.stack([at.data()] * 3, -1))),
    same("5D of one volume", lambda at: at.nifti(at.data()[..., None, None])),
    refused("5D of vectors", r"expected one volume, got 3 \(48 x 56 x 40 x 1 x 3\)",
            lambda at: at.nifti(np.stack([at.data()] * 3, -1)[..., None, :])),
    refused("colour", "expected one real value per voxel, got colour voxels", coloured),
    refused("complex", "expected one real value per voxel, got complex voxels",
            lambda at: at.nifti(at.data().astype(np.complex64))),
    refused(".mha of vectors", "expected one real value per voxel, got 3 values per voxel",
            lambda at: at.itk(".mha", data=np.stack([at.data()] * 3, -1)), file="_T2w.mha"),
]  # fmt: skip

# ---- formats and types ---------------------------------------------------------------------------------------------


def capitals(at: Place) -> None:
    at.nifti().rename(at("_T2W.NII.GZ"))


TYPES = ("int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64")


def typed(name: str) -> Callable[[Place], Path]:
    return lambda at: at.nifti(dtype=name)


def scaled(at: Place) -> None:
    raw = bytearray(nib.Nifti1Image(((at.data() + 100) / 2).astype(np.int16), at.affine).to_bytes())
    raw[SLOPE : INTER + 4] = floats(2, -100)
    at.raw("_T2w.nii.gz", bytes(raw))


FORMATS = [
    same("plain", alone, case="00-plain"),  # the first to be run
    same("big-endian", lambda at: at.nifti(endian=">", dtype=">i2")),
    same("NIfTI-2", lambda at: at.nifti(kind=nib.Nifti2Image)),
    same("NIfTI-2, big-endian float64", lambda at: at.nifti(kind=nib.Nifti2Image, endian=">", dtype=">f8")),
    same(".nii", lambda at: at.nifti(ending=".nii"), file="_T2w.nii"),
    same(".mha", lambda at: at.itk(".mha"), file="_T2w.mha"),
    same(".mha, compressed", lambda at: at.itk(".mha", useCompression=True), file="_T2w.mha"),
    same(".mhd with .raw", lambda at: at.itk(".mhd"), file="_T2w.mhd"),
    same(".nrrd", lambda at: at.itk(".nrrd"), file="_T2w.nrrd"),
    same(".mgz", mgz, file="_T2w.mgz"),
    mask(".tif, which has no place in space", lambda at: at.itk(".tif", data=(at.data() / 4).astype(np.uint8)),
         file="_T2w.tif", others=()),
    same("name in capitals", capitals, file="_T2W.NII.GZ"),
    same("gzip in many members", in_members),
    same("more bytes than the header says", lambda at: at.raw("_T2w.nii.gz", at.base.files["T2w"] + bytes(999))),
    *(same(f"{name} voxels", typed(name)) for name in TYPES),
    # 128 and 256 grey values in place of 345: voxels near the threshold fall on its other side. Measured: Dice 0.974
    # and 0.987 on a mask of 266 voxels; the bound leaves room for other processors.
    same("int8 voxels", lambda at: quantised(at, 127, np.int8), least=0.95),
    same("uint8 voxels", lambda at: quantised(at, 255, np.uint8), least=0.95),
    same("scl_slope 0", lambda at: at.patched((SLOPE, floats(0, 7)))),
    same("scl_slope NaN", lambda at: at.patched((SLOPE, floats(np.nan, np.nan)))),
    same("scl_slope infinite", lambda at: at.patched((SLOPE, floats(np.inf, 0)))),
    same("slope 2 and intercept -100", scaled),
]  # fmt: skip

# ---- values --------------------------------------------------------------------------------------------------------


def with_values(value: float, where: str) -> Callable[[Place], None]:
    """A value in a share of the voxels of the background or of the brain."""

    def make(at: Place) -> None:
        data = at.data()
        inside = data > 0
        chosen = np.random.default_rng(1).random(data.shape) < (0.3 if where == "background" else 0.02)
        data[chosen & (~inside if where == "background" else inside)] = value
        at.nifti(data)

    return make


def filled(value: float, sequence: str = "T2w") -> Callable[[Place], Path]:
    return lambda at: at.nifti(np.full(SHAPE, value), sequence=sequence)


def box(at: Place, noise: float = 0.0) -> None:
    data = np.zeros(SHAPE)
    inner = (slice(10, 38), slice(12, 44), slice(8, 32))
    data[inner] = 800 + noise * np.random.default_rng(0).normal(size=data[inner].shape)
    at.nifti(data)


def a_mask(at: Place, sequence: str) -> None:
    at.nifti((at.data(sequence) > 0).astype(np.float64), sequence=sequence)


def inverted(at: Place) -> None:
    data = at.data()
    at.nifti(np.where(data > 0, data.max() + 2 - data, 0))


def hot(at: Place) -> None:
    data = at.data()
    data[24, 28, 20] = 1e6
    at.nifti(data)


def in_noisy_air(at: Place) -> None:
    for number, sequence in enumerate(SEQUENCES):
        rng = np.random.default_rng(number)
        data = at.data(sequence)
        at.nifti(np.hypot(data + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE)), sequence=sequence)


VALUES = [
    same("huge values (1e30)", lambda at: at.nifti(at.data() * 2.0**90)),
    same("tiny values (1e-20)", lambda at: at.nifti(at.data() * 2.0**-76)),
    same("negative values", lambda at: at.nifti(at.data() - 700)),
    refused("values beyond float32 (1e300)", "expected intensities within the range of float32, got ",
            lambda at: at.nifti(at.data() * 1e300, dtype=np.float64)),
    same("NaN in the background", with_values(np.nan, "background")),
    mask("NaN in the brain", with_values(np.nan, "brain")),
    refused("NaN everywhere", "expected intensities, got no finite voxel", filled(np.nan)),
    mask("infinite values in the brain", with_values(np.inf, "brain")),
    same("infinite values in the background", with_values(-np.inf, "background")),
    refused("constant", "expected an image, got 7 in every voxel", filled(7)),
    refused("zero", "expected an image, got 0 in every voxel", filled(0)),
    refused("constant FLAIR beside good ones", "expected an image, got 7 in every voxel", filled(7, "FLAIR"),
            file="_FLAIR.nii.gz", others=("T1w", "T2w")),
    warned("mask in place of the T1w", "T1w has a single value throughout the head and was left out",
           lambda at: a_mask(at, "T1w"), others=("T2w", "FLAIR")),
    refused("mask in place of the T2w", "expected contrast within the head, got a single value throughout",
            lambda at: a_mask(at, "T2w")),
    mask("inverted contrast", inverted),
    mask("one hot voxel", hot),
    refused("bright box", "expected contrast within the head, got a single value throughout", box),
    mask("bright box with noise", lambda at: box(at, 30.0), others=()),
    mask("noise", lambda at: at.nifti(at.noise()), others=()),
    mask("brain in noisy air", in_noisy_air, others=()),
]  # fmt: skip

# ---- place in space ------------------------------------------------------------------------------------------------

OBLIQUE = turn(x=30, z=30)
SHEAR = np.eye(4)
SHEAR[0, 1] = 0.02
FAR = np.eye(4)
FAR[:3, 3] = 2000.0


def upside_down(at: Place, honest: bool) -> None:
    for sequence in SEQUENCES:
        data, affine = turned(at.base.images[sequence], at.affine, (0, 1, 2), (1, 1, -1))
        at.nifti(data, affine if honest else None, sequence=sequence)


def left_handed(at: Place) -> None:
    for sequence in SEQUENCES:
        at.nifti(*turned(at.base.images[sequence], at.affine, (0, 1, 2), (-1, 1, 1)), sequence=sequence)


def disagreeing(at: Place) -> None:
    """Brains lie where the sform says; the qform says half a metre away and turned."""
    at.patched_all((QFORM_CODE, shorts(1)), (QFORM_CODE + 4, floats(0, 0, 0.5)), (QOFFSET, floats(500, 500, 500)))


def t1w_elsewhere(at: Place, millimetres: float, sequence: str = "T1w") -> None:
    affine = at.affine.copy()
    affine[0, 3] += millimetres
    at.nifti(affine=affine, sequence=sequence)


def thick(at: Place, sequence: str, factor: int) -> None:
    data = at.data(sequence).reshape(*SHAPE[:2], -1, factor).mean(-1)
    affine = at.grid(2, factor)
    affine[2, 3] += (factor - 1) / 2
    at.nifti(data, affine, sequence)


def on_a_turned_grid(at: Place) -> None:
    """The same brain on a grid that is turned by 20 degrees about its middle, of 1.2 mm."""
    from pvs_model.types import Grid, Volume
    from pvs_model.volume.geometry import resample_onto

    middle = at.affine @ [23.5, 27.5, 19.5, 1]
    affine = turn(y=20, z=20) @ np.diag([1.2, 1.2, 1.2, 1])
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ [23.5, 27.5, 19.5]
    whole = Volume(at.data("FLAIR").astype(np.float32), at.affine)
    at.nifti(resample_onto(whole, Grid(SHAPE, affine)).data, affine, "FLAIR")


def padded(at: Place, *shape: int) -> None:
    """The base in the middle of a larger grid."""
    before = [(n - m) // 2 for n, m in zip(shape, SHAPE, strict=True)]
    affine = at.affine.copy()
    affine[:3, 3] -= before
    for sequence in SEQUENCES:
        data = np.zeros(shape, np.int16)
        data[tuple(slice(b, b + m) for b, m in zip(before, SHAPE, strict=True))] = at.base.images[sequence]
        at.nifti(data, affine, sequence)


def cut_out(at: Place, sequence: str, *sides: int) -> None:
    """The middle of the base alone."""
    start = [(m - n) // 2 for n, m in zip(sides, SHAPE, strict=True)]
    affine = at.affine.copy()
    affine[:3, 3] += start
    box = tuple(slice(s, s + n) for s, n in zip(start, sides, strict=True))
    at.nifti(at.base.images[sequence][box], affine, sequence)


def coarse(at: Place, spacing: float) -> None:
    at.nifti(at.data()[12:36:8, 16:40:8, 8:32:8], np.diag([spacing] * 3 + [1.0]))


SPACING = r"expected a voxel spacing above 0.05 (and up to 50 )?mm, got "
NO_FORMS = ((QFORM_CODE, shorts(0, 0)),)

SPACE = [
    same("oblique by 30 degrees", lambda at: at.all(OBLIQUE @ at.affine), moved=OBLIQUE, others=()),
    same("left-handed", left_handed, others=()),
    same("upside down, as the header says", lambda at: upside_down(at, True), others=()),
    mask("upside down, and the header lies", lambda at: upside_down(at, False), others=()),
    same("slight shear", lambda at: at.all(SHEAR @ at.affine), moved=SHEAR, others=()),
    refused("axes that coincide", "expected axes at about right angles, got nearly parallel directions",
            lambda at: at.patched((SROW, floats(1, 1, 0, 0, 0, 1e-3, 0, 0, 0, 0, 1, 0)))),
    same("qform against sform: the sform counts", disagreeing, others=()),
    same("sform alone", lambda at: at.patched_all((QFORM_CODE, shorts(0)), (SFORM_CODE, shorts(1))), others=()),
    same("qform alone", lambda at: at.patched_all((QFORM_CODE, shorts(1)), (SFORM_CODE, shorts(0))), others=()),
    mask("neither sform nor qform", lambda at: at.patched_all(*NO_FORMS), others=()),
    refused("sform of NaN", SPACING, lambda at: at.patched((SROW, floats(np.nan)))),
    refused("sform of zeros", SPACING, lambda at: at.patched((SROW, floats(*[0] * 12)))),
    refused("spacing 0", SPACING + "0 x 1 x 1", lambda at: at.patched((PIXDIM + 4, floats(0)))),
    same("negative spacing", lambda at: at.patched((PIXDIM + 4, floats(-1, -1, -1)))),
    refused("spacing 1e-9", SPACING, lambda at: at.nifti(affine=at.grid(2, 1e-9))),
    mask("slices of 50 mm", lambda at: at.nifti(at.data()[..., ::8], at.grid(2, 50.0)), others=()),
    refused("slices of 60 mm", SPACING + "1 x 1 x 60",
            lambda at: at.nifti(at.data()[..., ::8], at.grid(2, 60.0)), others=()),
    refused("voxels of 20 mm within slices", "expected .* within slices, got ", lambda at: coarse(at, 20.0),
            others=()),
    mask("voxels of 0.06 mm", lambda at: at.nifti(affine=np.diag([0.06, 0.06, 0.06, 1])), others=()),
    same("two metres from the origin", lambda at: at.all(FAR @ at.affine), moved=FAR, others=()),
    mask("16 x 16 x 16 voxels", lambda at: cut_out(at, "T2w", 16, 16, 16), others=()),
    mask("2 x 2 x 2 voxels", lambda at: at.nifti(at.noise(2, 2, 2)), others=()),
    same("far more air than brain", lambda at: padded(at, 100, 120, 90), others=()),
    refused("sequences that lie apart", "expected T1w to overlap in space with .*, but it covers only 0% of its",
            lambda at: t1w_elsewhere(at, 500), file="_T1w.nii.gz", others=("T2w", "FLAIR")),
    refused("T1w of a tiny field of view", "expected T1w to overlap in space with .*, but it covers only [0-9]% of",
            lambda at: cut_out(at, "T1w", 12, 12, 12), file="_T1w.nii.gz", others=("T2w", "FLAIR")),
    warned("FLAIR that covers one half", "FLAIR covers only 5[0-9]% of the field of view of T2w",
           lambda at: cut_out(at, "FLAIR", 48, 56, 20), others=("T1w", "T2w")),
    warned("T1w shifted by 20 mm", "T1w covers only 5[0-9]% of the field of view of T2w",
           lambda at: t1w_elsewhere(at, 20), others=("T2w", "FLAIR")),
    mask("T2w of a small field of view", lambda at: cut_out(at, "T2w", 24, 24, 24)),
    mask("T1w in slices of 4 mm", lambda at: thick(at, "T1w", 4), others=("T2w", "FLAIR")),
    mask("T2w in slices of 4 mm", lambda at: thick(at, "T2w", 4)),
    mask("FLAIR on a turned grid of 1.2 mm", on_a_turned_grid, others=("T1w", "T2w")),
    # Dice 0.994: the parenchyma of the padded volume differs by some voxels, and with it the place of the windows.
    same("512 x 512 x 400 voxels, three sequences", lambda at: padded(at, 512, 512, 400), others=(), run="large",
         slow=True, least=0.98),
]  # fmt: skip

# ---- what lies in the folder ---------------------------------------------------------------------------------------


def swapped(at: Place) -> None:
    for name, other in zip(SEQUENCES, ("T2w", "FLAIR", "T1w"), strict=True):
        at(f"_{name}.nii.gz").write_bytes(at.base.packed[other])


def doubled(at: Place) -> None:
    alone(at)
    at("_T2w.nii").write_bytes(at.base.files["T2w"])


def store(at: Place) -> Path:
    """A hidden folder in the input, where nobody looks for cases: links must not leave what a container is given."""
    folder = at.folder.parent / ".store"
    folder.mkdir(exist_ok=True)
    return folder


def unreadable(at: Place) -> None:
    alone(at)
    at().chmod(0)


def linked(at: Place) -> None:
    """To a file elsewhere, two links away."""
    (store(at) / "object").write_bytes(at.base.packed["T2w"])
    (store(at) / "link").symlink_to("object")
    at().symlink_to(Path("..", ".store", "link"))


def linked_folder(at: Place) -> None:
    """The case folder itself is a link."""
    folder = store(at) / "folder"
    folder.mkdir()
    for sequence in SEQUENCES:
        (folder / f"{at.case}_{sequence}.nii.gz").write_bytes(at.base.packed[sequence])
    at.folder.rmdir()
    at.folder.symlink_to(Path(".store", "folder"))


def dangling(at: Place) -> None:
    at().symlink_to(Path("..", ".store", "nowhere"))


def looped(at: Place) -> None:
    alone(at)
    (at.folder / "loop").symlink_to("..")
    (at.folder / "itself").symlink_to(".")


def with_more_files(at: Place) -> None:
    alone(at)
    at("_T2w.json").write_text('{"EchoTime": 0.08}')
    at(".txt").write_text("notes")
    at("_T2w.bval").write_text("0")
    truth = (at.data() > 500).astype(np.uint8)
    for label in ("PVS", "T2w_mask", "seg"):
        at.nifti(truth, dtype=np.uint8).rename(at(f"_{label}.nii.gz"))
    alone(at)
    (at.folder / ".DS_Store").write_bytes(b"x")
    (at.folder / ".hidden_T2w.nii.gz").write_bytes(b"x")


def other_names(at: Place) -> None:
    for name, sequence in (("t1_mprage", "T1w"), ("T2 tse", "T2w"), ("t2_tirm_dark-fluid", "FLAIR")):
        (at.folder / f"{name}.nii.gz").write_bytes(at.base.packed[sequence])


def unnamed(at: Place) -> None:
    (at.folder / "scan1.nii.gz").write_bytes(at.base.packed["T2w"])


def analyze(at: Place) -> None:
    for sequence in SEQUENCES:
        image = nib.Nifti1Pair(at.base.images[sequence], at.affine)
        nib.save(image, at(f"_{sequence}.img"))


def dicom(at: Place) -> None:
    for number in range(3):
        (at.folder / f"IM{number:04}.dcm").write_bytes(bytes(128) + b"DICM" + bytes(99))


def put(at: Place, *files: tuple[str, str]) -> None:
    """Write sequences of the base under other names: (path below the case folder, sequence)."""
    for name, sequence in files:
        path = at.folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(at.base.packed[sequence])


def freesurfer(at: Place) -> None:
    """Its names say nothing of T1w, which is there at three stages."""
    (at.folder / "mri").mkdir()
    for name in ("orig", "nu", "brain", "aseg"):
        image = nib.MGHImage(at.base.images["T1w"].astype(np.int32), at.affine)
        (at.folder / "mri" / f"{name}.mgz").write_bytes(gzip.compress(image.to_bytes(), 1))
    for name in ("tmp", "trash", "surf"):
        (at.folder / name).mkdir()


FOLDERS = [
    mask("T1w alone", lambda at: alone(at, "T1w"), file="_T1w.nii.gz", others=()),
    mask("T2w alone", alone, others=()),
    mask("FLAIR alone", lambda at: alone(at, "FLAIR"), file="_FLAIR.nii.gz", others=()),
    mask("names of sequences swapped", swapped, others=()),
    refused("two files for one sequence", r"expected one file per sequence, got .*_T2w.nii, .*_T2w.nii.gz for T2w",
            doubled, file=""),
    refused("file that cannot be read", "cannot be read: Permission denied",
            unreadable, not_as_root=True),
    same("link to a file elsewhere", linked),
    same("link to a folder elsewhere", linked_folder, others=()),
    refused("dangling link", "expected an image file, but it does not exist", dangling),
    refused("folder with the name of an image", "expected an image file, got a folder", lambda at: at().mkdir()),
    refused("named pipe with the name of an image", "expected an image file, got ", lambda at: os.mkfifo(at())),
    same("link to its own parent", looped),
    same("more files beside the images", with_more_files),
    same("names in other words", other_names, file="/T2 tse.nii.gz", others=()),
    same("names of Siemens' protocols", lambda at: put(
        at, ("3_t1_mprage_sag_p2_iso", "T1w"), ("5_t2_tse_tra", "T2w"), ("7_t2_spc_da-fl_sag", "FLAIR")),
        file="/5_t2_tse_tra.nii.gz", others=()),
    same("names of GE's protocols", lambda at: put(
        at, ("Sag_3D_T1_BRAVO", "T1w"), ("Ax_T2_FRFSE", "T2w"), ("Sag_CUBE_T2_FLAIR", "FLAIR")),
        file="/Ax_T2_FRFSE.nii.gz", others=()),
    same("names of Philips' protocols", lambda at: put(
        at, ("WIP_sT1W_3D_TFE_301", "T1w"), ("WIP_T2W_TSE_401", "T2w"), ("WIP_FLAIR_VISTA_501", "FLAIR")),
        file="/WIP_T2W_TSE_401.nii.gz", others=()),
    same("scans after contrast agent, and T2*, beside the others", lambda at: put(
        at, (f"{at.case}_T2w", "T2w"), ("t1_tra_KM", "T2w"), ("T1+C", "T2w"), ("t2_fl2d_tra_hemo", "T1w"),
        ("T2_GRE", "T1w"), ("t2_swi3d_tra", "T1w"))),
    same("a folder per sequence", lambda at: put(
        at, ("T1/scan", "T1w"), ("t2_tse_tra_0005/scan", "T2w"), ("FLAIR/scan", "FLAIR")),
        file="/t2_tse_tra_0005/scan.nii.gz", others=()),
    mask("FreeSurfer's subject folder", freesurfer, file="/mri/nu.mgz", others=()),
    refused("images of two subjects in one folder", "expected images of one subject, or names that begin with",
            lambda at: put(at, ("mueller_T1", "T1w"), ("schmidt_FLAIR", "FLAIR")), file="", others=()),
    refused("image whose name says no sequence", "expected a T1w, T2w or FLAIR image by its name, got scan1.nii.gz",
            unnamed, file="", others=()),
    refused("empty case folder", "expected a T1w, T2w or FLAIR image, got an empty folder", lambda at: None, file="",
            others=()),
    refused("Analyze pairs (.hdr, .img)", "expected an image", analyze, file="", others=()),
    refused("DICOM files", "expected ", dicom, file="", others=()),
]  # fmt: skip

# ---- names of cases: run with reports ------------------------------------------------------------------------------


def named(name: str, case: str, **more: Any) -> Kind:
    return mask(f"name: {name}", alone, case=case, others=(), **{"run": "names", **more})


NAMES = [
    named("spaces", "two words  and more "),
    named("Unicode", "größe-脳-🧠"),
    named("dots", "v1..2.nii.gz.x"),
    named("quotes", "it's \"quoted\" `so`"),
    named("a leading dash", "-rf"),
    named("a leading hash and percent signs", "#%s{0}%2e"),
    named("a command", "$(touch x);& |"),
    named("a script", "<script>alert(1)<img src=x onerror=alert(2)>"),
    named("a formula", "=cmd('calc')!A1"),
    named("text from right to left", "abc\u202edef"),
    named("200 characters", "x" * 200),
    named("a sequence", "FLAIR"),
    named("242 characters, the longest", "y" * 242),
    refused("name: 250 characters, too long for a mask", "expected .*, got: File name too long",
            lambda at: (at.folder / "T2.nii.gz").write_bytes(at.base.packed["T2w"]), case="z" * 250, others=(),
            file="_pred.nii.gz", run="too long a name"),
    named("a line break", "first\nerror: second"),
    refused("name: a line break, of a case that is refused", DAMAGED, lambda at: at().write_bytes(b"not an image"),
            case="one\ntwo", others=(), run="refused name with a line break"),
    named("bytes that are no text", os.fsdecode(b"caf\xe9"), run="name that is no text"),
]  # fmt: skip


# ---- the folders as a whole ----------------------------------------------------------------------------------------


def one_case(folder: Path) -> Path:
    """An input folder with a case that is quickly refused."""
    (folder / "in" / "a").mkdir(parents=True)
    (folder / "in" / "a" / "a_T2w.nii.gz").write_bytes(b"not an image")
    return folder / "in"


def empty_input(folder: Path) -> tuple[Path, Path]:
    (folder / "in").mkdir()
    return folder / "in", folder / "out"


def file_as_input(folder: Path) -> tuple[Path, Path]:
    (folder / "in").write_text("not a folder")
    return folder / "in", folder / "out"


def empty_cases(folder: Path) -> tuple[Path, Path]:
    for case in ("a", "b"):
        (folder / "in" / case).mkdir(parents=True)
    return folder / "in", folder / "out"


def locked_case(folder: Path) -> tuple[Path, Path]:
    source = one_case(folder)
    (source / "b").mkdir(mode=0)
    return source, folder / "out"


def output_below_a_file(folder: Path) -> tuple[Path, Path]:
    (folder / "file").write_text("")
    return one_case(folder), folder / "file" / "out"


def read_only_output(folder: Path) -> tuple[Path, Path]:
    (folder / "locked").mkdir(mode=0o555)
    return one_case(folder), folder / "locked" / "out"


def link_to_nowhere(folder: Path) -> tuple[Path, Path]:
    """A good case, and a link where another should be."""
    (folder / "in" / "a").mkdir(parents=True)
    (folder / "in" / "a" / "a_T2w.nii.gz").write_bytes(base().packed["T2w"])
    (folder / "in" / "b").symlink_to(folder / "nowhere")
    return folder / "in", folder / "out"


def numbers_alone(folder: Path) -> tuple[Path, Path]:
    """Two subjects, or two series of one."""
    (folder / "in").mkdir(parents=True)
    for name, sequence in (("001_T1", "T1w"), ("002_FLAIR", "FLAIR")):
        (folder / "in" / f"{name}.nii.gz").write_bytes(base().packed[sequence])
    return folder / "in", folder / "out"


WHOLE = [
    FolderKind("input: missing", lambda folder: (folder / "in", folder / "out"),
               "error: {}: expected an input folder, but it does not exist", "in"),
    FolderKind("input: a file", file_as_input, "error: {}: expected an input folder, got a file", "in"),
    FolderKind("input: an empty folder", empty_input, "error: {}: expected .*, got an empty folder", "in"),
    FolderKind("input: empty case folders alone", empty_cases, "error: {}: expected ", "in"),
    FolderKind("input: a case folder that may not be listed", locked_case, "error: .*{}: expected ", "in/b", 1,
               not_as_root=True),
    FolderKind("input: a case folder is a link that leads nowhere", link_to_nowhere,
               "error: b: {}: expected a folder of images, got a broken link to ", "in/b", 1),
    FolderKind("input: images that only a number distinguishes", numbers_alone,
               "error: .*{}: expected images of one subject, got .*numbers may be of series or of subjects", "in", 1),
    FolderKind("output: below a file", output_below_a_file,
               "error: {}: expected a writable output folder, got: ", "file/out", output=True),
    FolderKind("output: in a folder that is read-only", read_only_output,
               "error: {}: expected a writable output folder, got: ", "locked/out", output=True,
               not_as_root=True),
]  # fmt: skip

KINDS: list[Kind] = [*FORMATS, *FILES, *DIMENSIONS, *VALUES, *SPACE, *FOLDERS, *NAMES]


@cache
def is_root() -> bool:
    """Whether this user may read what nobody may: root, unless that right was taken away."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)
        return os.access(file.name, os.R_OK)

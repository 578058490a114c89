"""Reading images: every kind that is read, and one clear sentence for every kind that is not."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pvs_model.errors import VolumeError
from pvs_model.volume.io import read, read_grid, write_volume

SHAPE = (4, 5, 6)
AFFINE = np.array([[-1.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


def ramp(dtype: Any = np.int16) -> np.ndarray:
    return np.arange(120).reshape(SHAPE).astype(dtype)


def nifti(path: Path, data: np.ndarray | None = None, affine: np.ndarray = AFFINE, **header: Any) -> Path:
    image = nib.Nifti1Image(ramp() if data is None else data, affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def patched(path: Path, offset: int, content: bytes) -> Path:
    """Overwrite bytes of an uncompressed file (NIfTI-1 field offsets are in its standard)."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(content)] = content
    path.write_bytes(bytes(raw))
    return path


def metaimage(path: Path, data: np.ndarray | None = None, **options: Any) -> Path:
    image = sitk.GetImageFromArray((ramp() if data is None else data).transpose(2, 1, 0))
    image.SetSpacing((1, 2, 3))
    image.SetOrigin((-10, 20, 30))
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))  # LPS+ of AFFINE
    sitk.WriteImage(image, str(path), **options)
    return path


# What is read


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_of_every_type(tmp_path: Path, dtype: str, kind: Any) -> None:
    header = kind.header_class(endianness=np.dtype(dtype).str[0].replace("|", "<"))
    image = kind(ramp(dtype), AFFINE, header=header)
    image.set_data_dtype(np.dtype(dtype))
    path = tmp_path / "a b.é.nii.gz"
    nib.save(image, path)
    volume = read(path)
    assert volume.data.dtype == np.float32 and volume.affine.dtype == np.float64
    np.testing.assert_array_equal(volume.data, ramp())
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.source == path and volume.spacing_mm == (1, 2, 3)


@pytest.mark.parametrize("name", ["a.mha", "a.mhd", "a.nrrd", "a.mgz", "A.MHA", "A.NII.GZ", "A.MGZ"])
def test_other_formats_and_capitals(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.lower().endswith(".mgz"):
        nib.save(nib.MGHImage(ramp(), AFFINE), tmp_path / "lower.mgz")
        (tmp_path / "lower.mgz").rename(path)
    elif name.endswith(".GZ"):
        nifti(tmp_path / "lower.nii.gz").rename(path)
    elif name.endswith(".MHA"):
        metaimage(tmp_path / "lower.mha", useCompression=True).rename(path)
    else:
        metaimage(path)
    volume = read(path)
    np.testing.assert_array_equal(volume.data, ramp())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    grid = read_grid(path)
    assert grid.shape == SHAPE
    np.testing.assert_array_equal(grid.affine, volume.affine)


def test_tiff_stack(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(ramp(np.uint8).transpose(2, 1, 0)), str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(read(tmp_path / "a.tif").data, ramp())


def test_scaling_is_applied(tmp_path: Path) -> None:
    path = patched(nifti(tmp_path / "a.nii"), 112, struct.pack("<ff", 0.5, -3.0))  # slope, inter
    np.testing.assert_array_equal(read(path).data, ramp() * 0.5 - 3)


def test_shear_is_read_as_it_is(tmp_path: Path) -> None:
    for shear in (1e-3, 1e-2):
        affine = AFFINE.copy()
        affine[0, 1] = 2 * shear
        path = nifti(tmp_path / "a.nii.gz", affine=affine)
        np.testing.assert_allclose(read(path).affine, affine, rtol=1e-6)


def test_one_volume_in_four_or_five_dimensions(tmp_path: Path) -> None:
    nifti(tmp_path / "a.nii.gz", ramp()[..., None])
    nifti(tmp_path / "b.nii", ramp()[..., None, None])
    one = sitk.JoinSeries([sitk.ReadImage(str(metaimage(tmp_path / "x.mha")))])
    sitk.WriteImage(one, str(tmp_path / "c.mha"))
    for name in ("a.nii.gz", "b.nii", "c.mha"):
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.data, ramp())
        np.testing.assert_allclose(volume.affine, AFFINE)


def test_voxels_that_are_not_finite_become_zero(tmp_path: Path) -> None:
    data = ramp(np.float64) - 50
    data[0, 0, :4] = [np.nan, np.inf, -np.inf, 1e300]
    wanted = data.copy()
    wanted[0, 0, :4] = 0
    np.testing.assert_array_equal(read(nifti(tmp_path / "a.nii", data)).data, wanted)


def test_writing_a_volume_and_reading_it(tmp_path: Path) -> None:
    affine = AFFINE + np.array([[0, 0.01, 0, 0.1]] + [[0] * 4] * 3)
    for name in ("sub/a.nii.gz", "sub/a.nii", "sub/a.mha"):
        write_volume(tmp_path / name, ramp(np.float64) / 7, affine)
        volume = read(tmp_path / name)
        np.testing.assert_array_equal(volume.data, (ramp() / 7).astype(np.float32))
        np.testing.assert_allclose(volume.affine, affine, rtol=1e-6)
    assert sorted(p.name for p in (tmp_path / "sub").iterdir()) == ["a.mha", "a.nii", "a.nii.gz"]


def test_importing_is_light() -> None:
    code = (
        "import sys, pvs_model.layouts, pvs_model.volume.io, pvs_model.volume.geometry, "
        "pvs_model.volume.intensity; "
        "print([m for m in ('SimpleITK', 'nibabel', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What is not


def refuse(path: Path, words: str, header_shows_it: bool = True) -> None:
    with pytest.raises(VolumeError, match=f"{path.name}: expected .*{words}") as raised:
        read(path)
    assert "\n" not in str(raised.value)
    if header_shows_it:
        with pytest.raises(VolumeError):
            read_grid(path)


def test_no_such_file(tmp_path: Path) -> None:
    refuse(tmp_path / "a.nii.gz", "but it does not exist")
    (tmp_path / "gone.nii").symlink_to(tmp_path / "nowhere")
    refuse(tmp_path / "gone.nii", "but it does not exist")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    refuse(tmp_path / "a.nii.gz", "got a folder")


def test_another_extension(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x")
    refuse(tmp_path / "a.dcm", "got another extension")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mha", "a.mhd", "a.nrrd", "a.tif"])
def test_empty_and_foreign_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    refuse(tmp_path / name, "got an empty file")
    (tmp_path / name).write_bytes(b"not an image at all " * 40)
    refuse(tmp_path / name, "got a damaged or truncated file")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mha"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 9999, (16, 16, 16)).astype(np.int16)
    if name.endswith(".mha"):
        metaimage(path, noise, useCompression=True)
    else:
        nib.save((nib.MGHImage if name.endswith("mgz") else nib.Nifti1Image)(noise, AFFINE), path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    refuse(path, "got a damaged or truncated file", header_shows_it=False)


def test_damaged_gzip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 9999, (16, 16, 16)).astype(np.int16)
    path = nifti(tmp_path / "a.nii.gz", noise)
    patched(path, 4000, b"\xff" * 60)
    refuse(path, "got a damaged or truncated file", header_shows_it=False)
    path.write_bytes(gzip.compress(b""))
    refuse(path, "got a damaged or truncated file")


def test_metaimage_without_its_raw_file(tmp_path: Path) -> None:
    path = metaimage(tmp_path / "a.mhd")
    (tmp_path / "a.raw").unlink()
    refuse(path, "got a damaged or truncated file", header_shows_it=False)


def test_several_volumes(tmp_path: Path) -> None:
    refuse(nifti(tmp_path / "a.nii", np.zeros((4, 5, 6, 7))), r"one volume, got 7 \(4 x 5 x 6 x 7\)")
    two = sitk.ReadImage(str(metaimage(tmp_path / "x.mha")))
    sitk.WriteImage(sitk.JoinSeries([two, two]), str(tmp_path / "b.mha"))
    refuse(tmp_path / "b.mha", "one volume, got 2")


def test_two_dimensions(tmp_path: Path) -> None:
    refuse(nifti(tmp_path / "a.nii", ramp()[..., 0]), r"a 3D image, got 2D \(4 x 5\)")
    refuse(nifti(tmp_path / "b.nii", ramp()[..., :1]), "got 2D")
    refuse(nifti(tmp_path / "c.nii", ramp()[:1]), "got 2D")
    sitk.WriteImage(sitk.GetImageFromArray(ramp(np.uint8)[0]), str(tmp_path / "d.tif"))
    refuse(tmp_path / "d.tif", "got 2D")


def test_colour_and_complex(tmp_path: Path) -> None:
    colour = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refuse(nifti(tmp_path / "a.nii", colour), "one real value per voxel, got colour voxels")
    refuse(nifti(tmp_path / "b.nii", ramp(np.complex64)), "got complex voxels")
    vector = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.uint8), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "c.mha"))
    refuse(tmp_path / "c.mha", "one real value per voxel, got 3 values per voxel")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.full(SHAPE, 7.0), "got 7 in every voxel"),
        (np.zeros(SHAPE), "got 0 in every voxel"),
        (np.full(SHAPE, np.nan), "got no finite voxel"),
    ],
)
def test_nothing_in_it(tmp_path: Path, data: np.ndarray, words: str) -> None:
    refuse(nifti(tmp_path / "a.nii.gz", data), words, header_shows_it=False)


def test_impossible_spacing(tmp_path: Path) -> None:
    for pixdim in (0.0, np.nan, np.inf):
        path = patched(nifti(tmp_path / "a.nii"), 80, struct.pack("<f", pixdim))  # pixdim[1]
        refuse(path, r"a voxel spacing above 0.05 mm, got \S+ x 2 x 3 in its header")
    for first in (0.05, 50.1, 0.0):
        affine = np.diag([first, 1, 1, 1.0])
        path = nifti(tmp_path / "b.nii", affine=np.eye(4))
        image = nib.load(path)
        image.header["srow_x"][0] = first
        path.write_bytes(image.header.binaryblock + bytes(4) + ramp().tobytes("F"))
        patched(path, 108, struct.pack("<f", 352))  # vox_offset
        refuse(path, rf"a voxel spacing above 0.05 and up to 50 mm, got {affine[0, 0]:g} x 1 x 1")
    text = metaimage(tmp_path / "c.mha").read_bytes()
    (tmp_path / "c.mha").write_bytes(text.replace(b"ElementSpacing = 1", b"ElementSpacing = 0"))
    refuse(tmp_path / "c.mha", "a voxel spacing above 0.05 and up to 50 mm, got 0 x 2 x 3")


def test_axes_that_coincide(tmp_path: Path) -> None:
    path = nifti(tmp_path / "a.nii", affine=np.eye(4))
    patched(path, 280, struct.pack("<12f", 1, 1, 0, 0, 0, 1e-3, 0, 0, 0, 0, 1, 0))  # srow_x, y, z
    refuse(path, "axes at about right angles, got nearly parallel directions")


def test_a_header_that_declares_far_too_much(tmp_path: Path) -> None:
    path = patched(nifti(tmp_path / "a.nii"), 42, struct.pack("<3h", 30000, 30000, 30000))
    refuse(path, "at most 536870912 voxels, got 30000 x 30000 x 30000 in its header")
    text = metaimage(tmp_path / "b.mha").read_bytes()
    (tmp_path / "b.mha").write_bytes(text.replace(b"DimSize = 4 5 6", b"DimSize = 9999 9999 9999"))
    refuse(tmp_path / "b.mha", "at most 536870912 voxels")
    # Fewer, but still more than the file could hold: refused before memory is asked for.
    raw = patched(nifti(tmp_path / "c.nii"), 42, struct.pack("<3h", 800, 800, 800)).read_bytes()
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(raw))
    refuse(tmp_path / "c.nii", "got a damaged or truncated file")
    refuse(tmp_path / "c.nii.gz", "got a damaged or truncated file")


def test_negative_length(tmp_path: Path) -> None:
    path = patched(nifti(tmp_path / "a.nii"), 42, struct.pack("<h", -4))
    refuse(path, "expected |got ")

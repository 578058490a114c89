"""Writing masks: the grid of the reference, exactly, as nibabel and SimpleITK read it back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from pvs_model.errors import VolumeError
from pvs_model.volume.io import read_grid, write_mask, write_volume

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(3)
DATA = RNG.integers(0, 900, SHAPE).astype(np.int16)
MASK = (RNG.random(SHAPE) < 0.3).astype(np.uint8)


def oblique() -> np.ndarray:
    """An affine with none of its numbers round."""
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([0.4500001, 1 / 3, 5.4999])
    affine[:3, 3] = [-90.1234567, 1 / 7, 33.3]
    return affine


def itk_grid(path: Path) -> tuple[Any, ...]:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def reference(path: Path, kind: Any = nib.Nifti1Image, data: np.ndarray = DATA, **header: Any) -> Path:
    image = kind(data, oblique())
    image.header["descrip"] = b"NAME^OF PATIENT"
    image.header["cal_max"] = 500
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (1, 4), (0, 0)])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii"])
def test_nifti_like_nifti(tmp_path: Path, codes: tuple[int, int], kind: Any, name: str) -> None:
    image = kind(DATA, oblique())
    other = oblique()
    other[:3, 3] += 5  # sform and qform disagree, as they may
    image.set_sform(oblique(), code=codes[0])
    image.set_qform(other, code=codes[1])
    like = tmp_path / "like.nii.gz"
    nib.save(image, like)
    path = tmp_path / name
    write_mask(path, MASK, like)

    old, new = nib.load(like), nib.load(path)
    assert type(new) is kind and new.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(new.dataobj), MASK)
    fields = "pixdim sform_code srow_x srow_y srow_z qform_code quatern_b quatern_c quatern_d"
    for field in (*fields.split(), "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):
        np.testing.assert_array_equal(new.header[field], old.header[field], err_msg=field)
    np.testing.assert_array_equal(new.affine, old.affine)
    if kind is nib.Nifti1Image:  # ITK does not read NIfTI-2
        assert itk_grid(path) == itk_grid(like)


def test_the_rest_of_the_header(tmp_path: Path) -> None:
    like = reference(tmp_path / "like.nii", scl_slope=0.1, scl_inter=3)
    write_mask(tmp_path / "mask.nii", MASK * 7, like)
    raw = (tmp_path / "mask.nii").read_bytes()
    header = nib.Nifti1Header.from_fileobj((tmp_path / "mask.nii").open("rb"), check=False)
    assert float(np.frombuffer(raw, "<f4", 1, 112)[0]) == 1.0  # scl_slope, as stored
    assert float(np.frombuffer(raw, "<f4", 1, 116)[0]) == 0.0
    assert header["cal_max"] == 0 and header["descrip"] == b""
    assert len(raw) == 352 + MASK.size
    assert set(np.unique(nib.load(tmp_path / "mask.nii").dataobj)) == {0, 1}


def test_like_big_endian_sheared_and_one_volume_in_4d(tmp_path: Path) -> None:
    affine = oblique()
    affine[:3, 1] += 1e-3 * affine[:3, 0]
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(DATA[..., None].astype(">i2"), affine, header=header)
    nib.save(image, tmp_path / "like.nii")
    write_mask(tmp_path / "mask.nii.gz", MASK, tmp_path / "like.nii")
    new = nib.load(tmp_path / "mask.nii.gz")
    assert new.shape == SHAPE and new.header["dim"][0] == 3
    np.testing.assert_array_equal(new.affine, nib.load(tmp_path / "like.nii").affine)
    np.testing.assert_array_equal(np.asarray(new.dataobj), MASK)


@pytest.mark.parametrize("dimensions", [3, 4])
def test_mha_like_mha(tmp_path: Path, dimensions: int) -> None:
    write_volume(tmp_path / "like.mha", DATA, oblique())
    image = sitk.ReadImage(str(tmp_path / "like.mha"))
    image.SetSpacing((0.1 + 0.2, 1 / 3, np.pi))
    want = (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    stored = image if dimensions == 3 else sitk.JoinSeries([image])
    sitk.WriteImage(stored, str(tmp_path / "like.mha"))
    write_mask(tmp_path / "mask.mha", MASK, tmp_path / "like.mha")
    assert itk_grid(tmp_path / "mask.mha") == want
    new = sitk.ReadImage(str(tmp_path / "mask.mha"))
    assert new.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(new).transpose(2, 1, 0), MASK)
    text = (tmp_path / "mask.mha").read_bytes()
    assert b"CompressedData = True" in text and b"ElementDataFile = LOCAL" in text


@pytest.mark.parametrize("like", ["like.nii.gz", "like.mha", "like.mgz", "like.nrrd"])
@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.mha"])
def test_across_formats(tmp_path: Path, like: str, name: str) -> None:
    write_volume(tmp_path / "x.mha", DATA, oblique())
    if like.endswith("mgz"):
        nib.save(nib.MGHImage(DATA, oblique()), tmp_path / like)
    elif like.endswith("nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "x.mha")), str(tmp_path / like))
    else:
        write_volume(tmp_path / like, DATA, oblique())
    write_mask(tmp_path / name, MASK, tmp_path / like)
    grid = read_grid(tmp_path / name)
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, oblique(), atol=2e-5)
    if not like.endswith("mgz"):
        for got, want in zip(itk_grid(tmp_path / name), itk_grid(tmp_path / like), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-5)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name))).transpose(2, 1, 0)
    np.testing.assert_array_equal(stored, MASK)


def test_the_same_mask_is_the_same_file(tmp_path: Path) -> None:
    like = reference(tmp_path / "like.nii.gz")
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / "out" / name, MASK.astype(bool), like)
    assert (tmp_path / "out/a.nii.gz").read_bytes() == (tmp_path / "out/b.nii.gz").read_bytes()


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like = reference(tmp_path / "like.nii.gz")
    out = tmp_path / "out"
    write_mask(out / "mask.nii.gz", MASK, like)
    before = (out / "mask.nii.gz").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("mask.nii.gz", "mask.mha"):
        with pytest.raises(VolumeError, match=f"{name}: expected to write it, got: No space"):
            write_mask(out / name, 1 - MASK, like)
    assert [path.name for path in out.iterdir()] == ["mask.nii.gz"]
    assert (out / "mask.nii.gz").read_bytes() == before


def test_refusals(tmp_path: Path) -> None:
    like = reference(tmp_path / "like.nii.gz")
    with pytest.raises(ValueError, match=r"mask \(6, 5, 4\) is not on the grid of .*\(4, 5, 6\)"):
        write_mask(tmp_path / "mask.nii.gz", MASK.transpose(2, 1, 0), like)
    with pytest.raises(ValueError, match=r"expected a name that ends in one of \.nii\.gz"):
        write_mask(tmp_path / "mask.png", MASK, like)
    with pytest.raises(ValueError, match="expected an array"):
        write_volume(tmp_path / "a.nii", DATA[0], np.eye(4))
    with pytest.raises(VolumeError, match="gone.nii: expected an image file, but it does not exist"):
        write_mask(tmp_path / "mask.nii.gz", MASK, tmp_path / "gone.nii")
    (tmp_path / "file").touch()
    with pytest.raises(VolumeError, match="mask.nii: expected to write it, got: "):
        write_mask(tmp_path / "file" / "mask.nii", MASK, like)

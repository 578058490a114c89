"""Masks from files: what counts as inside, which grids are one, and what is no mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from pvs_model.errors import VolumeError
from pvs_model.types import Grid
from pvs_model.volume.masks import aligned, read_mask, read_region

AFFINE = np.array([[0, 0, 2.0, 5], [-1.0, 0, 0, 7], [0, 3.0, 0, -9], [0, 0, 0, 1]])  # (A-, S+, R+) axes


def save(path: Path, data: npt.NDArray[Any], affine: npt.NDArray[np.float64] = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(data, affine), path)  # type: ignore[attr-defined]
    return path


def two_values(value: float = 1) -> npt.NDArray[np.float32]:
    """(2, 2, 3): 0 in half of the voxels."""
    return np.array([0, value] * 6, np.float32).reshape(2, 2, 3)


@pytest.mark.parametrize("value", [1, 255, 0.5, 3])
def test_one_value_besides_0_is_inside_whatever_it_is(tmp_path: Path, value: float) -> None:
    path = save(tmp_path / "m.nii.gz", two_values(value))
    mask = read_mask(path)
    assert np.array_equal(mask.inside, two_values() > 0)
    assert mask.source == path and np.allclose(mask.grid.affine, AFFINE)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1e-6, 0.2, 0.999999], "values from 1e-06 to 1: this looks like a probability map"),
        ([0, 0.5, 1], "values from 0.5 to 1: this looks like a probability map"),
        ([0, 1, 2], "the labels 1, 2: this looks like a map of several structures; export the PVS label alone"),
        ([0, 2, 3, 4, 41, 42, 1001], "the labels 2, 3, 4, 41, 42, ...: this looks like a map of several"),
        ([0, -1, 1], "values from -1 to 1: this looks like an image"),
        ([0.5, 80.25, 700], "values from 0.5 to 700: this looks like an image"),
    ],
)
def test_what_is_no_mask_is_not_made_one(tmp_path: Path, values: list[float], said: str) -> None:
    path = save(tmp_path / "m.nii.gz", np.resize(np.array(values, np.float32), (2, 3, 4)))
    with pytest.raises(VolumeError) as refused:
        read_mask(path)
    assert str(refused.value).startswith(f"{path}: expected a mask of 0 and one positive value, got {said}")


def test_rounding_makes_no_second_value(tmp_path: Path) -> None:
    path = save(tmp_path / "m.nii.gz", two_values() * np.linspace(0.9995, 1, 12, dtype=np.float32).reshape(2, 2, 3))
    assert np.array_equal(read_mask(path).inside, two_values() > 0)


def test_an_empty_mask_and_a_full_one_are_masks(tmp_path: Path) -> None:
    for value in (0, 1):
        path = save(tmp_path / f"{value}.nii.gz", np.full((2, 3, 4), value, np.uint8))
        assert (read_mask(path).inside == value).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    data = two_values()
    data[0, 0, 0] = value
    with pytest.raises(VolumeError, match=r"m.nii.gz: expected a mask of finite values, got NaN or infinite"):
        read_mask(save(tmp_path / "m.nii.gz", data))


def test_a_region_that_is_nowhere_above_a_half_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.nii.gz", two_values(-1))
    with pytest.raises(VolumeError, match=r"m.nii.gz: expected voxels above 0.5, or 0 in all, got -1 to "):
        read_region([path])


def test_parts_of_a_region_are_added_up(tmp_path: Path) -> None:
    left, right = np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32)
    left[0, 0, :], right[0, 0, :] = (0.3, 0.6, 0), (0.3, 0, 0.5)
    paths = [save(tmp_path / "l.nii.gz", left), save(tmp_path / "r.nii.gz", right)]
    assert read_region(paths).inside[0, 0].tolist() == [1, 1, 0]  # 0.6, 0.6, 0.5
    assert read_region(paths[:1]).inside[0, 0].tolist() == [0, 1, 0]
    moved = AFFINE.copy()
    moved[0, 3] += 1
    with pytest.raises(VolumeError, match=r"o.nii.gz: expected the grid of .*l.nii.gz"):
        read_region([paths[0], save(tmp_path / "o.nii.gz", right, moved)])


def test_aligned_turns_to_ras_whatever_the_order(tmp_path: Path) -> None:
    data = (np.arange(24).reshape(2, 3, 4) % 5 == 0).astype(np.uint8)
    image = nib.Nifti1Image(data, AFFINE)  # type: ignore[attr-defined]
    nib.save(image, tmp_path / "a.nii.gz")  # type: ignore[attr-defined]
    nib.save(nib.as_closest_canonical(image), tmp_path / "b.nii.gz")  # type: ignore[attr-defined]
    stored, canonical = read_mask(tmp_path / "a.nii.gz"), read_mask(tmp_path / "b.nii.gz")
    assert stored.inside.shape != canonical.inside.shape
    assert np.array_equal(aligned(stored, canonical.grid, "b"), canonical.inside)
    assert np.array_equal(aligned(canonical, stored.grid, "a"), canonical.inside)


@pytest.mark.parametrize(("shift", "fits"), [(0.05, True), (0.3, False)])
def test_grids_are_one_to_a_tenth_of_a_voxel(shift: float, fits: bool, tmp_path: Path) -> None:
    mask = read_mask(save(tmp_path / "m.nii.gz", two_values()))
    moved = AFFINE.copy()
    moved[1, 3] += shift
    wanted = Grid((2, 2, 3), moved)
    if fits:
        aligned(mask, wanted, "other")
    else:
        with pytest.raises(VolumeError, match=r"m.nii.gz: expected the grid of other \(2 x 2 x 3 voxels .*\), got 2 x"):
            aligned(mask, wanted, "other")

"""Laws of the grids: what is changed can be taken back, and points keep their place in space."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.types import Grid, Triple, Volume
from pvs_model.volume.geometry import (
    Respacing,
    choose_reference,
    crop_to,
    find_slice_axis,
    fov_coverage,
    resample_onto,
    respacing,
    to_ras,
)


def resample_to_spacing(volume: Volume, spacing_mm: Triple) -> tuple[Volume, Respacing]:
    change = respacing(volume.grid, spacing_mm)
    return resample_onto(volume, change.new), change


ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def volume(shape: tuple[int, int, int] = (4, 5, 6), affine: np.ndarray | None = None) -> Volume:
    data = np.random.default_rng(0).random(shape, dtype=np.float32) + 1
    return Volume(data, np.eye(4) if affine is None else affine)


def rotation(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    return about_z @ about_z[[2, 0, 1]][:, [2, 0, 1]]


def oriented(axes: tuple[int, ...], signs: tuple[int, ...], tilt: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (row, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[row, column] = sign * (0.5, 1.0, 3.0)[column]
    affine[:3, :3] = rotation(tilt) @ affine[:3, :3]
    affine[:3, 3] = [-12, 7, 31]
    return affine


# to_ras


@given(st.sampled_from(ORIENTATIONS), st.sampled_from([0.0, 12.0, -25.0]))
@settings(max_examples=150, deadline=None)
def test_to_ras_and_back(orientation: tuple[tuple[int, ...], tuple[int, ...]], tilt: float) -> None:
    stored = volume(affine=oriented(*orientation, tilt))
    ras, undo = to_ras(stored)
    np.testing.assert_array_equal(undo.invert(ras.data), stored.data)
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.abs(np.linalg.det(ras.affine)), 1.5)
    # A point keeps its value: where voxel (1, 2, 3) lies, the same value lies.
    for voxel in ((1, 2, 3), (0, 0, 0), (3, 4, 5)):
        place = stored.affine @ [*voxel, 1]
        x, y, z = np.rint(np.linalg.solve(ras.affine, place)[:3]).astype(int)
        assert ras.data[x, y, z] == stored.data[voxel]


def test_to_ras_of_all_48_orientations() -> None:
    for orientation in ORIENTATIONS:
        stored = volume(affine=oriented(*orientation))
        ras, undo = to_ras(stored)
        np.testing.assert_array_equal(undo.invert(ras.data), stored.data)
        again, same = to_ras(ras)
        np.testing.assert_array_equal(again.data, ras.data)
        assert same.axes == (0, 1, 2) and same.flips == (False, False, False)


def test_to_ras_by_hand() -> None:
    # Stored as (S, L, A): its axes run up, left, forward.
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    affine = np.array([[0, -1.0, 0, 5], [0, 0, 2, 6], [3, 0, 0, 7], [0, 0, 0, 1]])
    ras, undo = to_ras(Volume(data, affine))
    assert (undo.axes, undo.flips) == ((1, 2, 0), (True, False, False))
    assert ras.data.shape == (3, 4, 2) and ras.data[0, 0, 0] == data[0, 2, 0]
    # The left-most plane was at index 2: 5 - 2 mm.
    np.testing.assert_array_equal(ras.affine, [[1, 0, 0, 3], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    assert undo.invert(np.zeros((3, 4, 2), np.uint8)).dtype == np.uint8


# resample_onto


def test_resampling_onto_itself_is_the_identity() -> None:
    for affine in (np.eye(4), oriented((2, 0, 1), (1, -1, 1), 17)):
        stored = volume(affine=affine)
        nearly = affine.copy()
        nearly[:3, 3] += 1e-5  # another file's header, written as float32
        out = resample_onto(stored, Grid(stored.data.shape, nearly))
        np.testing.assert_array_equal(out.data, stored.data)


@given(st.sampled_from(ORIENTATIONS))
@settings(max_examples=48, deadline=None)
def test_resampling_onto_another_orientation_is_reorienting(
    orientation: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    stored = volume(affine=oriented(*orientation))
    ras, _ = to_ras(stored)
    out = resample_onto(stored, ras.grid)
    np.testing.assert_allclose(out.data, ras.data, atol=1e-5)
    assert out.data.dtype == np.float32


def test_a_linear_ramp_is_kept_and_the_outside_is_zero() -> None:
    x, y, z = np.mgrid[:10, :10, :10]
    data = (1 + x + 2 * y + 3 * z).astype(np.float32)
    affine = np.eye(4)
    affine[:3, 3] = [0.25, 0.5, -0.75]
    out = resample_onto(Volume(data, np.eye(4)), Grid((10, 10, 10), affine)).data
    wanted = 1 + (x + 0.25) + 2 * (y + 0.5) + 3 * (z - 0.75)
    np.testing.assert_allclose(out[:9, :9, 1:], wanted[:9, :9, 1:], rtol=1e-6)
    assert (out[:, :, 0] == 0).all()  # 0.75 voxels below the first centre: outside the box
    assert (out[9, :9, 1:] > 0).all()  # 0.25 above the last centre: still inside its voxel


def test_downsampling_averages() -> None:
    # A plane one voxel thick, sampled every 4 voxels, must show wherever it lies.
    for place in range(8, 16):
        data = np.zeros((24, 8, 8), np.float32)
        data[place] = 1.0
        out, _ = resample_to_spacing(Volume(data, np.eye(4)), (4.0, 1.0, 1.0))
        assert out.data.shape == (6, 8, 8)
        assert 0.15 < out.data[:, 4, 4].sum() < 0.35  # a quarter of it, in all
    out, _ = resample_to_spacing(Volume(data, np.eye(4)), (1.2, 1.0, 1.0))
    assert out.data.max() >= 0.5  # mild steps are not blurred


# fov_coverage


@pytest.mark.parametrize(("shift", "share"), [((0, 0, 0), 1), ((5, 0, 0), 1 / 2), ((5, 5, -5), 1 / 8), ((10, 0, 0), 0)])
def test_overlap(shift: tuple[int, int, int], share: float) -> None:
    affine = np.eye(4)
    affine[:3, 3] = shift
    grid = Grid((10, 10, 10), np.eye(4))
    assert fov_coverage(Grid((10, 10, 10), affine), grid) == pytest.approx(share, abs=0.02)


def test_overlap_is_of_the_reference() -> None:
    small, large = Grid((10, 10, 10), np.eye(4)), Grid((20, 20, 20), np.eye(4))
    assert fov_coverage(large, small) == 1.0
    assert fov_coverage(small, large) == pytest.approx(1 / 8, abs=0.02)
    # The same box in coarse, flipped voxels: x = 9 - 5/2 and 9 - 5 - 5/2 are their centres.
    flipped = np.array([[-5.0, 0, 0, 7], [0, 2, 0, 0.5], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert fov_coverage(Grid((2, 5, 10), flipped), small) == 1.0


# resample_to_spacing


@given(
    st.tuples(*[st.integers(3, 12)] * 3),
    st.tuples(*[st.floats(0.3, 3.0)] * 3),
    st.tuples(*[st.floats(0.3, 3.0)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_respacing_keeps_the_box_and_gives_the_shape_back(
    shape: tuple[int, int, int],
    have: Triple,
    want: Triple,
) -> None:
    affine = np.diag([*have, 1.0])
    stored = volume(shape, affine)
    out, undo = resample_to_spacing(stored, want)
    for corner in ([-0.5] * 3, [n - 0.5 for n in shape]):
        new_corner = [-0.5] * 3 if corner[0] < 0 else [n - 0.5 for n in out.data.shape]
        np.testing.assert_allclose(out.affine @ [*new_corner, 1], affine @ [*corner, 1], atol=1e-9)
    assert fov_coverage(out.grid, stored.grid) == 1.0
    back = undo.invert(np.full(out.data.shape, 0.25, np.float32))
    assert back.shape == shape
    np.testing.assert_allclose(back, 0.25, rtol=1e-6)


def test_respacing_smooth_probabilities_returns_them() -> None:
    g = np.stack(np.mgrid[:24, :24, :24]) - 11.5
    blob = np.exp(-(g**2).sum(0) / 60).astype(np.float32)
    fine, undo = resample_to_spacing(Volume(blob, np.eye(4)), (0.5, 0.5, 0.5))
    assert fine.data.shape == (48, 48, 48) and fine.spacing_mm == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(undo.invert(fine.data), blob, atol=0.03)
    with pytest.raises(ValueError, match="expected an array of shape"):
        undo.invert(blob)
    with pytest.raises(ValueError, match="spacings above 0 mm"):
        resample_to_spacing(Volume(blob, np.eye(4)), (0.0, 1, 1))


# crop_to


@given(st.tuples(*[st.integers(0, 5)] * 6), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_crop_and_undo(corners: tuple[int, ...], margin: int) -> None:
    stored = volume((6, 6, 6), np.diag([1.0, 2, 3, 1]))
    mask = np.zeros((6, 6, 6), bool)
    mask[corners[:3]] = mask[corners[3:]] = True
    crop = crop_to(mask, margin)
    assert crop.apply(mask).sum() == mask.sum()
    np.testing.assert_array_equal(crop.invert(crop.apply(mask)), mask)
    two = np.stack([stored.data] * 2)
    np.testing.assert_array_equal(crop.apply(two)[1], crop.apply(stored.data))
    assert crop.invert(crop.apply(two)).shape == two.shape
    first = [part.start for part in crop.slices]
    np.testing.assert_array_equal(crop.affine(stored.affine) @ [0, 0, 0, 1], stored.affine @ [*first, 1])


def test_crop_by_hand() -> None:
    mask = np.zeros((8, 9, 10), np.uint8)
    mask[3, 4:6, 8] = 1
    assert crop_to(mask).slices == (slice(3, 4), slice(4, 6), slice(8, 9))
    assert crop_to(mask, (1, 0, 5)).slices == (slice(2, 5), slice(4, 6), slice(3, 10))
    assert crop_to(mask * 0, 2).slices == (slice(0, 8), slice(0, 9), slice(0, 10))
    with pytest.raises(ValueError, match="expected an array of shape"):
        crop_to(mask).apply(mask[1:])


# slices and the reference


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 3), 2), ((5.5, 0.7, 0.7), 0), ((1, 4, 1), 1), ((3, 3, 3), 2), ((1.0000001, 1, 1), 2)],
)
def test_slice_axis(spacing: Triple, axis: int) -> None:
    assert find_slice_axis(spacing) == axis


def test_the_reference() -> None:
    fine, coarse = volume(), volume(affine=np.diag([1, 1, 5.0, 1]))
    nearly = volume(affine=np.diag([1, 1, 0.9999999, 1]))
    assert choose_reference({"T1w": fine, "T2w": coarse, "FLAIR": fine}) == "T2w"
    assert choose_reference({"T1w": coarse, "FLAIR": fine}) == "FLAIR"
    assert choose_reference({"FLAIR": nearly, "T1w": fine}) == "T1w"
    with pytest.raises(ValueError, match="at least one volume"):
        choose_reference({})

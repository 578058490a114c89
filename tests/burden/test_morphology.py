"""Size and direction of single clusters: by hand where that can be done, by laws where not, and on painted tubes."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.morphology import MeasuredTube, draw, measured
from pvs_model.burden.morphology import MIN_LINEARITY, Shape, centre_line, shape_of, tube_width

Bool = npt.NDArray[np.bool_]
ISOTROPIC = np.eye(4)
THICK = np.diag([1.0, 1.0, 3.0, 1.0])


def cluster(*voxels: tuple[int, int, int]) -> Bool:
    """The voxels named, in the smallest array that starts at 0."""
    index = np.array(voxels)
    mask = np.zeros(index.max(0) + 1, bool)
    mask[tuple(index.T)] = True
    return mask


def block(x: int, y: int, z: int) -> Bool:
    return np.ones((x, y, z), bool)


@st.composite
def wandering(draw: st.DrawFn) -> Bool:
    """A connected cluster: a walk over neighbours, sometimes thickened along one axis."""
    steps = draw(st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=0, max_size=12))
    index = np.concatenate([[[0, 0, 0]], np.array(steps, int).reshape(-1, 3)]).cumsum(0)
    mask = np.zeros(np.ptp(index, axis=0) + 2, bool)
    index -= index.min(0)
    mask[tuple(index.T)] = True
    thicken = draw(st.sampled_from([None, 0, 1, 2]))
    if thicken is not None:
        mask |= np.roll(mask, 1, thicken)  # the last layer is empty: nothing comes round
    return mask


def same(a: Shape, b: Shape, mm: float = 1.0) -> None:
    """Equal but for rounding, where b's voxels are ``mm`` times as large."""
    assert a.voxels == b.voxels
    assert (a.direction is None) == (b.direction is None)
    assert b.volume_mm3 == pytest.approx(a.volume_mm3 * mm**3)
    assert b.length_mm == pytest.approx(a.length_mm * mm) and b.width_mm == pytest.approx(a.width_mm * mm)
    assert b.linearity == pytest.approx(a.linearity, abs=1e-9)
    if a.direction is not None:
        assert b.direction == pytest.approx(a.direction, abs=1e-6)


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_one_voxel_is_as_long_as_its_edge_and_as_wide_as_its_ball() -> None:
    affine = ISOTROPIC.copy()
    affine[:3, 3] = 5, -6, 7
    shape = shape_of(block(1, 1, 1), affine)
    assert shape.voxels == 1 and shape.volume_mm3 == 1 and shape.length_mm == pytest.approx(1)
    assert shape.width_mm == pytest.approx((6 / math.pi) ** (1 / 3))  # ball of 1 mm3
    assert shape.centre_mm == (5, -6, 7)
    assert shape.linearity == 0 and shape.direction is None and shape.angle_to_superior_degrees is None


def test_one_thick_voxel_is_as_long_as_its_longest_edge() -> None:
    shape = shape_of(block(1, 1, 1), THICK)
    assert shape.volume_mm3 == pytest.approx(3) and shape.length_mm == pytest.approx(3)
    assert math.pi / 4 * shape.width_mm**2 * (3 - shape.width_mm / 3) == pytest.approx(3)
    assert shape.direction is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [2, 3, 8])
def test_a_row_of_voxels_is_as_long_as_its_edges(voxels: int, axis: int) -> None:
    sides = [1, 1, 1]
    sides[axis] = voxels
    shape = shape_of(block(*sides), ISOTROPIC)
    assert shape.length_mm == pytest.approx(voxels)
    assert shape.width_mm == pytest.approx(tube_width(voxels, voxels))
    assert shape.direction == tuple(float(k == axis) for k in range(3))
    assert shape.angle_to_superior_degrees == pytest.approx(0 if axis == 2 else 90)
    assert shape.elongation == pytest.approx(shape.length_mm / shape.width_mm)


def test_a_column_of_thick_voxels_is_as_long_as_its_edges() -> None:
    shape = shape_of(block(1, 1, 4), THICK)
    assert shape.length_mm == pytest.approx(12) and shape.volume_mm3 == pytest.approx(12)
    assert shape.direction == (0, 0, 1)


@pytest.mark.parametrize("voxels", [2, 5])
def test_a_slanting_row_is_as_long_as_its_diagonal(voxels: int) -> None:
    shape = shape_of(cluster(*((k, voxels - 1 - k, 0) for k in range(voxels))), ISOTROPIC)
    assert shape.length_mm == pytest.approx(voxels * math.sqrt(2))  # each voxel is crossed corner to corner
    assert shape.direction == pytest.approx((-math.sqrt(1 / 2), math.sqrt(1 / 2), 0))
    assert shape.angle_to_superior_degrees == pytest.approx(90)


def test_linearity_takes_off_the_voxel_itself() -> None:
    """Three in a row: spread 2/3, less 1/12 of the voxel's own is 7/12; across 0. (7/12) / (7/12 + 1/12) = 7/8."""
    assert shape_of(block(3, 1, 1), ISOTROPIC).linearity == pytest.approx(7 / 8)


@pytest.mark.parametrize("sides", [(2, 2, 1), (2, 2, 2), (3, 3, 3), (3, 3, 1)])
def test_blocks_and_plates_have_no_direction(sides: tuple[int, int, int]) -> None:
    shape = shape_of(block(*sides), ISOTROPIC)
    assert shape.direction is None and shape.linearity == pytest.approx(0, abs=1e-9) and shape.linearity < MIN_LINEARITY


@pytest.mark.parametrize("side", [2, 3, 4])
def test_a_cube_is_at_least_its_edge_and_at_most_its_diagonal_long(side: int) -> None:
    assert side - 1e-9 <= shape_of(block(side, side, side), ISOTROPIC).length_mm <= side * math.sqrt(3) + 1e-9


@pytest.mark.parametrize(("sides", "length"), [((2, 2, 13), 13), ((2, 13, 2), 13), ((3, 3, 12), 12), ((2, 8, 4), 8)])
def test_thick_rods_are_not_cut_short(sides: tuple[int, int, int], length: float) -> None:
    """Thinning eats their ends, or all of them."""
    assert shape_of(block(*sides), ISOTROPIC).length_mm == pytest.approx(length, abs=1.3)


def test_a_bend_is_measured_along_the_line() -> None:
    """Half a circle of radius 8 mm: 25.1 mm along it and a voxel for its ends, 17 mm from end to end."""
    angle = np.linspace(0, np.pi, 200)
    index = np.round(8 * np.stack([np.cos(angle) + 1, np.sin(angle), 0 * angle], 1)).astype(int)
    assert shape_of(cluster(*map(tuple, index)), ISOTROPIC).length_mm == pytest.approx(8 * math.pi + 1, abs=1.0)


def test_a_side_branch_adds_nothing_to_the_length() -> None:
    straight = block(12, 1, 1)
    branched = np.zeros((12, 4, 1), bool)
    branched[:, 0], branched[6, :] = True, True
    assert shape_of(branched, ISOTROPIC).length_mm == pytest.approx(shape_of(straight, ISOTROPIC).length_mm, abs=0.8)


def test_the_direction_points_up_else_forward_else_right() -> None:
    for signs, wanted in (((1, 1, -1), (-1, -1, 1)), ((1, -1, 1), (1, -1, 1)), ((-1, -1, -1), (1, 1, 1))):
        affine = np.diag([*(float(s) for s in signs), 1.0])  # what the array's diagonal is in space
        shape = shape_of(cluster(*((k, k, k) for k in range(4))), affine)
        assert shape.direction == pytest.approx(np.array(wanted) / math.sqrt(3))
    assert shape_of(block(1, 4, 1), np.diag([1.0, -1, 1, 1])).direction == (0, 1, 0)
    assert shape_of(block(4, 1, 1), np.diag([-1.0, 1, 1, 1])).direction == (1, 0, 0)


@pytest.mark.parametrize(("width", "length"), [(1, 2), (2, 2), (0.5, 20), (3, 3.01)])
def test_tube_width_gives_back_the_width_of_a_round_ended_tube(width: float, length: float) -> None:
    volume = math.pi / 4 * width**2 * (length - width) + math.pi / 6 * width**3
    assert tube_width(volume, length) == pytest.approx(width)


def test_more_than_a_ball_holds_is_the_ball_of_that_volume() -> None:
    assert tube_width(math.pi / 6 * 8, 1.0) == pytest.approx(2)


def test_an_empty_cluster_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a cluster of one voxel or more, got an empty one"):
        shape_of(np.zeros((2, 2, 2), bool), ISOTROPIC)


# ---- laws --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(wandering(), st.sampled_from([ISOTROPIC, THICK]))
def test_every_cluster_has_a_sound_shape(mask: Bool, affine: npt.NDArray[np.float64]) -> None:
    shape = shape_of(mask, affine)
    assert all(math.isfinite(v) for v in (shape.length_mm, shape.width_mm, shape.linearity, shape.elongation))
    assert shape.voxels == mask.sum() and shape.width_mm > 0 and 0 <= shape.linearity < 1
    assert shape.length_mm >= 1 - 1e-9
    # Never longer than all voxels crossed corner to corner, one after the other.
    assert shape.length_mm <= shape.voxels * np.linalg.norm(np.diag(affine)[:3]) + 1e-9
    if shape.direction is not None:
        assert np.linalg.norm(shape.direction) == pytest.approx(1) and shape.direction[2] >= -1e-9
        assert 0 <= shape.angle_to_superior_degrees <= 90  # type: ignore[operator]
    line = centre_line(mask, affine[:3, :3])
    assert mask[tuple(np.round(line / np.diag(affine)[:3]).astype(int).T)].all()


@settings(max_examples=30, deadline=None)
@given(wandering(), st.sampled_from([0.25, 0.5, 2.0, 4.0]), st.sampled_from([ISOTROPIC, THICK]))
def test_larger_voxels_scale_lengths_and_volumes(mask: Bool, k: float, affine: npt.NDArray[np.float64]) -> None:
    same(shape_of(mask, affine), shape_of(mask, affine @ np.diag([k, k, k, 1])), k)


@settings(max_examples=30, deadline=None)
@given(wandering(), st.tuples(*[st.integers(-64, 64)] * 3))
def test_moving_a_cluster_moves_its_centre_alone(mask: Bool, by: tuple[int, int, int]) -> None:
    moved = THICK.copy()
    moved[:3, 3] = by
    here, there = shape_of(mask, THICK), shape_of(np.pad(mask, ((1, 0), (0, 2), (3, 0))), moved)
    same(here, there)
    assert there.centre_mm == pytest.approx(np.array(here.centre_mm) + by + THICK[:3, :3] @ [1, 0, 3])


@settings(max_examples=30, deadline=None)
@given(wandering(), st.floats(-math.pi, math.pi))
def test_turning_the_scanner_turns_the_direction_alone(mask: Bool, angle: float) -> None:
    """About the inferior-superior axis, so that the angle to it stays, too."""
    turn = np.eye(4)
    turn[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    here, there = shape_of(mask, THICK), shape_of(mask, turn @ THICK)
    assert there.linearity == pytest.approx(here.linearity, abs=1e-9)
    if here.direction is not None and abs(here.linearity - MIN_LINEARITY) > 1e-6:
        assert there.direction is not None
        assert abs(np.dot(turn[:3, :3] @ here.direction, there.direction)) == pytest.approx(1)
        assert there.angle_to_superior_degrees == pytest.approx(here.angle_to_superior_degrees, abs=1e-4)


# ---- painted tubes (docs/burden.md has the table) ------------------------------------------------------------------


def test_painted_tubes_come_out_as_long_and_wide_as_they_are() -> None:
    voxel = (1.0, 1.0, 1.0)
    measurements = [
        m for seed in range(7000, 7012) if isinstance(m := measured(draw(seed, voxel, "curved"), voxel), MeasuredTube)
    ]
    assert len(measurements) >= 9
    lengths = [m.shape.length_mm - m.tube.length_mm for m in measurements]
    widths = [m.shape.width_mm - m.tube.width_mm for m in measurements]
    assert np.median(np.abs(lengths)) < 0.8 and np.median(np.abs(widths)) < 0.2
    for m in measurements:
        if m.shape.direction is not None and m.shape.elongation > 4:
            assert abs(np.dot(m.shape.direction, m.tube.direction)) > math.cos(math.radians(8))


def test_a_tube_is_drawn_again_by_its_seed() -> None:
    first, again = (draw(7100, (1.0, 1.0, 3.0), "straight") for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(asdict(first).values(), asdict(again).values(), strict=True))

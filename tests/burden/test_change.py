"""Change between visits: what is the same PVS, by hand; laws of the matching; the space in the middle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from pvs_model.burden.change import CHANGE_COLUMNS, GONE, NEW, OUTSIDE, STABLE, Visit, change_between, middle_space
from pvs_model.burden.measure import measure

SHAPE = (40, 30, 20)
Place = tuple[slice | int, slice | int, slice | int]
Matrix = npt.NDArray[np.float64]


def visit(name: str, *places: Place, affine: Matrix | None = None, move: Matrix | None = None) -> Visit:
    """A visit with a PVS at each place; WM is x < 20, BG the rest."""
    affine = np.eye(4) if affine is None else affine
    mask = np.zeros(SHAPE, bool)
    for place in places:
        mask[place] = True
    half = np.zeros(SHAPE, bool)
    half[:20] = True
    burden = measure(mask, {"WM": half, "BG": ~half}, affine, pvs_fraction=mask.astype(np.float32) / 2)
    return Visit(name, mask, affine, burden, np.eye(4) if move is None else move)


def test_a_change_by_hand() -> None:
    """One PVS is shifted by a voxel, one breaks into two, one is gone, one is new."""
    first = visit("a", np.s_[5, 5:9, 5], np.s_[10, 5:15, 10], np.s_[30, 5, 5])
    second = visit("b", np.s_[6, 5:9, 5], np.s_[10, 5:9, 10], np.s_[10, 11:15, 10], np.s_[25, 25, 15])
    change = change_between(first, second)
    assert [(m.status, m.others) for m in change.earlier_pvs] == [(STABLE, (1,)), (STABLE, (2, 3)), (GONE, ())]
    assert [(m.status, m.others) for m in change.later_pvs] == [
        (STABLE, (1,)), (STABLE, (2,)), (STABLE, (2,)), (NEW, ()),
    ]  # fmt: skip
    rows = {row["region"]: row for row in change.rows()}
    assert list(rows) == ["WM", "BG", "all"] and all(tuple(row) == CHANGE_COLUMNS for row in rows.values())
    white = rows["WM"]
    assert [white[k] for k in ("count_from", "count_to", "stable_from", "stable_to", "gone", "new")] == [
        2,
        3,
        2,
        3,
        0,
        0,
    ]
    assert [white[f"volume_{k}"] for k in ("from_mm3", "to_mm3", "change_mm3")] == [14, 12, -2]
    assert white["volume_change_percent"] == pytest.approx(-100 / 7)
    assert white["fluid_change_mm3"] == -1.0 and white["expected_fluid_change_mm3"] == -1.0
    assert [rows["BG"][k] for k in ("count_change", "gone", "new", "volume_change_mm3")] == [0, 1, 1, 0]
    assert [row["status"] for row in change.pvs_rows()] == [STABLE, STABLE, GONE, STABLE, STABLE, STABLE, NEW]


def test_an_unchanged_visit_is_stable_in_any_pose_and_without_pvs_nothing_changes() -> None:
    places = np.s_[5, 5:9, 5], np.s_[30, 5, 5]
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("xyz", (20, -15, 30), degrees=True).as_matrix()
    pose[:3, 3] = (12, -30, 7)
    moved = visit("b", *places, affine=pose @ np.eye(4), move=np.linalg.inv(pose))
    change = change_between(visit("a", *places), moved)
    assert {m.status for m in (*change.earlier_pvs, *change.later_pvs)} == {STABLE}
    for a, b in zip(change.earlier_pvs, change.later_pvs, strict=True):
        assert a.middle_mm == pytest.approx(b.middle_mm)
    assert change_between(visit("a"), visit("b")).earlier_pvs == ()
    assert [m.status for m in change_between(visit("a"), visit("b", *places)).later_pvs] == [NEW, NEW]


@pytest.mark.parametrize(("distance", "status"), [(2, STABLE), (3, GONE)])
def test_pvs_are_the_same_up_to_2_mm(distance: int, status: str) -> None:
    change = change_between(visit("a", np.s_[5, 5, 5]), visit("b", np.s_[5 + distance, 5, 5]))
    assert change.earlier_pvs[0].status == status


def test_exchanging_the_visits_exchanges_new_and_gone() -> None:
    a = visit("a", np.s_[5, 5:9, 5], np.s_[30, 5, 5])
    b = visit("b", np.s_[5, 5:9, 5], np.s_[25, 25, 15])
    there, back = change_between(a, b), change_between(b, a)
    exchanged = {STABLE: STABLE, GONE: NEW, NEW: GONE}
    assert [exchanged[m.status] for m in there.earlier_pvs] == [m.status for m in back.later_pvs]
    assert [r["count_change"] for r in there.rows()] == [-int(r["count_change"] or 0) for r in back.rows()]


def test_a_pvs_that_the_other_visit_does_not_image_is_not_gone() -> None:
    shift = np.eye(4)
    shift[0, 3] = 20.0
    change = change_between(visit("a", np.s_[5, 5, 5], np.s_[25, 5, 5]), visit("b", affine=shift))
    assert [m.status for m in change.earlier_pvs] == [OUTSIDE, GONE]


def test_the_middle_is_as_far_from_every_visit() -> None:
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix()
    move[:3, 3] = (6, 0, 2)
    first, second = middle_space([np.eye(4), move])
    np.testing.assert_allclose(np.linalg.inv(first) @ second, move, atol=1e-9)
    np.testing.assert_allclose(second @ first, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(Rotation.from_matrix(second[:3, :3]).magnitude(), np.radians(10), atol=1e-9)
    with_three = middle_space([np.eye(4), move, np.linalg.inv(move)])
    np.testing.assert_allclose(with_three[0], np.eye(4), atol=1e-9)

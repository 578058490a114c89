"""A whole case: which PVS counts where, volumes, what is unknown, and laws of the grid."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.burden.measure import MIN_FRACTION, measure
from pvs_model.burden.morphology import shape_of
from pvs_model.burden.records import (
    MCPVS,
    POTTER,
    PVS_COLUMNS,
    REGION_COLUMNS,
    Burden,
    pvs_values,
    region_values,
)
from pvs_model.evaluation.tables import csv_text

Array = npt.NDArray[Any]
HALF = np.diag([0.5, 0.5, 0.5, 1.0])
THICK = np.diag([1.0, 1.0, 3.0, 1.0])
SHAPE = (12, 10, 8)


def empty() -> Array:
    return np.zeros(SHAPE, bool)


def halves() -> dict[str, Array]:
    """BG is y < 5, CSO the rest."""
    bg = empty()
    bg[:, :5] = True
    return {"BG": bg, "CSO": ~bg}


def sides() -> Array:
    """RAS: left is x < 6."""
    hemispheres = np.full(SHAPE, 2, np.uint8)
    hemispheres[:6] = 1
    return hemispheres


def masks(seed: int) -> Array:
    """A few short lines, some of which touch."""
    rng = np.random.default_rng(seed)
    mask = empty()
    for _ in range(rng.integers(0, 7)):
        start, step = rng.integers((0, 0, 0), SHAPE), rng.integers(-1, 2, 3)
        for k in range(rng.integers(1, 6)):
            at = start + k * step
            if (at >= 0).all() and (at < SHAPE).all():
                mask[tuple(at)] = True
    return mask


def close(a: Burden, b: Burden) -> None:
    """Equal but for rounding."""
    assert flat(a.as_json()) == pytest.approx(flat(b.as_json()), abs=1e-9)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in flat(part, f"{name}.{key}").items()}
    if isinstance(value, list):
        return {k: v for key, part in enumerate(value) for k, v in flat(part, f"{name}.{key}").items()}
    return {name: value}


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_a_case_by_hand() -> None:
    mask = empty()
    mask[1, 1, 2:6] = True  # 4 voxels, left BG, vertical
    mask[8, 2, 3] = True  # 1 voxel, right BG
    mask[8:11, 8, 3] = True  # 3 voxels, right CSO
    burden = measure(mask, halves(), HALF, intracranial=np.ones(SHAPE, bool), hemispheres=sides())
    assert [(p.number, p.region, p.hemisphere, p.shape.voxels, p.slices) for p in burden.pvs] == [
        (1, "BG", "left", 4, (2, 5)),
        (2, "BG", "right", 1, (3, 3)),
        (3, "CSO", "right", 3, (3, 3)),
    ]
    assert burden.pvs[0].shape.length_mm == pytest.approx(2) and burden.pvs[0].shape.centre_mm == (0.5, 0.5, 1.75)
    assert [(r.region, r.hemisphere, r.count, r.volume_mm3) for r in burden.regions] == [
        ("BG", "both", 2, 5 / 8),
        ("BG", "left", 1, 4 / 8),
        ("BG", "right", 1, 1 / 8),
        ("CSO", "both", 1, 3 / 8),
        ("CSO", "left", 0, 0),
        ("CSO", "right", 1, 3 / 8),
        ("all", "both", 3, 8 / 8),
        ("all", "left", 1, 4 / 8),
        ("all", "right", 2, 4 / 8),
    ]
    row = burden.row("BG")
    assert row.region_mm3 == 480 / 8 and row.intracranial_mm3 == 960 / 8
    assert row.count_per_cm3 == pytest.approx(2 / 0.060) and row.volume_percent == pytest.approx(100 * 5 / 480)
    assert row.pvsnm == pytest.approx(1e6 * 5 / 960)
    assert burden.row("BG", "left").pvsnm == pytest.approx(1e6 * 4 / 960)  # the whole head for either side
    assert row.mean_length_mm == pytest.approx((2 + 0.5) / 2) == row.median_length_mm
    width = (burden.pvs[0].shape.width_mm + burden.pvs[1].shape.width_mm) / 2
    assert row.mean_width_mm == pytest.approx(width) == row.median_width_mm
    assert burden.row("CSO", "left").mean_length_mm is None and burden.row("CSO", "left").median_width_mm is None
    assert burden.row("all").region_mm3 is None and burden.row("all").count_per_cm3 is None
    assert burden.slices_per_slab == 10 and burden.slab_mm == 5 and burden.spacing_mm == (0.5, 0.5, 0.5)
    assert [(s.scale, s.region, s.score, s.counted, s.hemisphere) for s in burden.scores] == [
        (POTTER, "BG", 1, 1, "left"),
        (MCPVS, "BG", 1, 2, "both"),
        (POTTER, "CSO", 1, 1, "right"),
    ]
    assert burden.warnings == ()


@pytest.mark.parametrize(("low", "high", "region"), [(2, 6, "BG"), (4, 8, "CSO"), (3, 7, "BG")])
def test_a_pvs_that_crosses_counts_once_where_most_of_it_lies(low: int, high: int, region: str) -> None:
    """Rows 2 to 5: 3 in BG, 1 in CSO; 4 to 7: 1 and 3; 3 to 6: 2 and 2, which goes to the region named first."""
    mask = empty()
    mask[3, low:high, 3] = True
    burden = measure(mask, halves(), THICK)
    assert [p.region for p in burden.pvs] == [region]
    assert {name: burden.row(name).count for name in ("BG", "CSO")} == {"BG": 0, "CSO": 0, region: 1}
    assert burden.row("BG").volume_mm3 == pytest.approx(3 * (5 - low))  # volumes go by voxels
    assert burden.row("CSO").volume_mm3 == pytest.approx(3 * (high - 5)) and burden.row("all").volume_mm3 == 12


def test_a_pvs_that_crosses_the_midline_counts_on_the_side_of_most_of_it() -> None:
    mask = empty()
    mask[5:8, 2, 3] = True  # 1 voxel left, 2 right
    mask[4:8, 6, 3] = True  # 2 and 2: left
    burden = measure(mask, halves(), HALF, hemispheres=sides())
    assert [(p.region, p.hemisphere) for p in burden.pvs] == [("CSO", "left"), ("BG", "right")]
    assert burden.row("BG", "left").count == 0 and burden.row("BG", "left").volume_mm3 == 1 / 8
    assert burden.row("BG", "right").count == 1 and burden.row("BG", "right").volume_mm3 == 2 / 8


def test_what_lies_on_neither_side_counts_in_both_together_alone() -> None:
    mask = empty()
    mask[5, 2, 3] = True
    middle = sides()
    middle[5] = 0
    burden = measure(mask, halves(), HALF, hemispheres=middle)
    assert burden.pvs[0].hemisphere is None
    assert [burden.row("BG", side).count for side in ("both", "left", "right")] == [1, 0, 0]
    assert [burden.row("BG", side).volume_mm3 for side in ("both", "left", "right")] == [1 / 8, 0, 0]
    assert burden.estimated_score(POTTER, "BG").score == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(("voxels", "region"), [(2, "other"), (3, "BG")])
def test_a_pvs_mostly_outside_of_all_regions_is_of_none(voxels: int, region: str) -> None:
    """5 or 6 voxels, of which 2 or 3 in BG: the region wins from half on."""
    bg = empty()
    bg[:3] = True
    mask = empty()
    mask[3 - voxels : 6, 4, 4] = True
    burden = measure(mask, {"BG": bg}, HALF)
    assert burden.pvs[0].region == region and burden.row("BG").volume_mm3 == voxels / 8
    assert burden.row("all").count == 1 and burden.row("BG").count == (region == "BG")


def test_a_voxel_of_two_regions_belongs_to_the_first() -> None:
    mask = empty()
    mask[1, 1, 1] = True
    everywhere = np.ones(SHAPE, np.uint8)
    burden = measure(mask, {"hippocampus": everywhere, "BG": everywhere}, HALF)
    assert burden.pvs[0].region == "hippocampus" and burden.row("BG").volume_mm3 == 0
    assert burden.row("BG").region_mm3 == 0 and burden.row("BG").count_per_cm3 is None


def test_the_mask_named_all_is_a_volume_and_hides_nothing() -> None:
    mask = empty()
    mask[1, 1, 1] = mask[9, 9, 7] = True
    whole = empty()
    whole[:6] = True
    burden = measure(mask, {"all": whole, **halves()}, HALF, hemispheres=sides())
    assert [row.region for row in burden.regions if row.hemisphere == "both"] == ["BG", "CSO", "all"]
    assert burden.row("all").count == 2 and burden.row("all").region_mm3 == 480 / 8
    assert burden.row("all", "left").region_mm3 == 480 / 8 and burden.row("all", "right").region_mm3 == 0
    assert burden.row("all").count_per_cm3 == pytest.approx(2 / 0.060)


def test_an_empty_mask_is_a_measurement() -> None:
    regions = {**halves(), "midbrain": empty()}
    burden = measure(empty(), regions, THICK, intracranial=~empty(), hemispheres=sides())
    assert burden.pvs == () and all(row.count == 0 and row.volume_mm3 == 0 for row in burden.regions)
    assert burden.row("BG").pvsnm == 0 and burden.row("BG").count_per_cm3 == 0
    assert burden.row("midbrain").count_per_cm3 is None  # no midbrain in the image
    assert burden.row("all").mean_width_mm is None
    assert [(s.scale, s.region, s.score) for s in burden.scores] == [
        (POTTER, "BG", 0), (MCPVS, "BG", 1), (POTTER, "CSO", 0), (POTTER, "midbrain", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("head", [None, np.zeros(SHAPE, bool)])
def test_without_an_intracranial_volume_there_is_no_pvsnm(head: Array | None) -> None:
    burden = measure(~empty(), halves(), HALF, intracranial=head, hemispheres=sides())
    assert all(row.pvsnm is None and row.intracranial_mm3 is None for row in burden.regions)
    assert burden.warnings == ("The intracranial volume is unknown: no PVSnm.",)


def test_without_sides_there_are_no_rows_of_sides_and_no_potter() -> None:
    burden = measure(~empty(), {**halves(), "midbrain": empty()}, THICK, intracranial=~empty())
    assert {row.hemisphere for row in burden.regions} == {"both"}
    assert [(s.scale, s.region) for s in burden.scores] == [(MCPVS, "BG"), (POTTER, "midbrain")]
    assert burden.warnings == (
        "Slices of 3 mm: volumes and widths of PVS are overestimated, directions uncertain.",
        "Left and right are unknown: no estimated Potter scores of BG and CSO.",
    )
    with pytest.raises(KeyError, match="'BG', 'left'"):
        burden.row("BG", "left")


def test_parts_of_a_region_by_hand() -> None:
    """The part is x < 4, the rated section z = 3: a PVS of 4 voxels with 2 in the part is in it, with 1 it is not."""
    mask = empty()
    mask[2:6, 1, 1] = True  # left, half of it in the part, not on the section
    mask[3:7, 8, 3] = True  # a quarter of it in the part; most of it on the left by the tie
    mask[0, 5, 2:5] = True  # left, all in the part, across the section
    part, section = empty(), empty()
    part[:4], section[:, :, 3] = True, True
    burden = measure(
        mask,
        {"WM": ~empty()},
        HALF,
        hemispheres=sides(),
        parts={"CSO": part, "deep WM": ~part},
        potter_sections={"CSO": section},
    )
    assert [(p.region, p.parts, p.potter_sections) for p in burden.pvs] == [
        ("WM", ("CSO",), ("CSO",)),
        ("WM", ("CSO", "deep WM"), ()),
        ("WM", ("deep WM",), ("CSO",)),
    ]
    assert [(r.region, r.count, r.volume_mm3, r.region_mm3) for r in burden.regions if r.hemisphere == "both"] == [
        ("WM", 3, 11 / 8, 960 / 8),
        ("CSO", 2, 6 / 8, 320 / 8),
        ("deep WM", 2, 5 / 8, 640 / 8),
        ("all", 3, 11 / 8, None),
    ]
    assert [burden.row("CSO", side).volume_mm3 for side in ("left", "right")] == [6 / 8, 0]
    score = burden.estimated_score(POTTER, "CSO")
    assert score is not None and (score.counted, score.hemisphere, score.slices) == (1, "left", None)
    assert score.on_rated_section and burden.estimated_score(MCPVS, "WM") is not None
    lines = pvs_csv([("a", burden)]).splitlines()
    assert [line.split(",")[3] for line in lines] == ["parts", "CSO", "CSO; deep WM", "deep WM"]


def test_parts_need_names_of_their_own() -> None:
    with pytest.raises(ValueError, match="expected parts with other names than the regions, got BG"):
        measure(empty(), halves(), HALF, parts={"BG": empty()})


def test_diagonal_neighbours_are_one_pvs() -> None:
    mask = empty()
    mask[1, 1, 1] = mask[2, 2, 2] = mask[2, 2, 4] = True
    assert [p.shape.voxels for p in measure(mask, {}, HALF).pvs] == [2, 1]


def test_slabs_run_along_the_axis_nearest_to_superior() -> None:
    """Stored as (superior, right, anterior), 3 mm slices: three dots on one slice, one 9 mm above."""
    affine = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [3.0, 0.2, 0, 0], [0, 0, 0, 1]])
    mask = np.zeros((8, 12, 10), bool)
    mask[2, 1, [1, 4, 7]] = mask[5, 1, 1] = True
    burden = measure(mask, {"CSO": ~mask | mask}, affine, hemispheres=np.ones(mask.shape))
    assert burden.slices_per_slab == 2 and burden.spacing_mm[2] == 3
    score = burden.estimated_score(POTTER, "CSO")
    assert score is not None and (score.counted, score.score) == (3, 1) and score.slices == (2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mask": np.zeros((2, 2), bool)}, "expected a mask (x, y, z), got 2 axes"),
        ({"regions": {"BG": np.zeros((2, 2, 2))}}, "BG: expected the shape of the mask, (12, 10, 8), got (2, 2, 2)"),
        ({"intracranial": np.zeros((2, 2, 2))}, "intracranial mask: expected the shape"),
        ({"hemispheres": np.zeros((2, 2, 2))}, "map of hemispheres: expected the shape"),
        ({"hemispheres": np.full(SHAPE, 3)}, "expected 0, 1 (left) and 2 (right)"),
        ({"hemispheres": np.full(SHAPE, 0.5)}, "expected 0, 1 (left) and 2 (right)"),
        ({"hemispheres": np.full(SHAPE, -1)}, "expected 0, 1 (left) and 2 (right)"),
        ({"regions": {"other": np.zeros(SHAPE)}}, "none of them 'other'"),
        ({"regions": {"": np.zeros(SHAPE)}}, "regions with names"),
        ({"affine": np.eye(3)}, "expected a finite, invertible affine (4, 4)"),
        ({"affine": np.zeros((4, 4))}, "expected a finite, invertible affine (4, 4)"),
        ({"affine": np.full((4, 4), np.nan)}, "expected a finite, invertible affine (4, 4)"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        measure(**{"mask": empty(), "regions": halves(), "affine": HALF, **change})
    assert said in str(error.value)


def test_nothing_given_is_changed() -> None:
    mask, regions, side = masks(3), halves(), sides()
    measure(mask, regions, HALF, regions["BG"], side)
    assert np.array_equal(mask, masks(3)) and np.array_equal(side, sides())
    assert all(np.array_equal(regions[name], halves()[name]) for name in regions)


# ---- laws --------------------------------------------------------------------------------------------------------

GRIDS = st.sampled_from([HALF, THICK])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), GRIDS, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3)
)  # fmt: skip
def test_the_order_in_which_a_scan_is_stored_changes_nothing(
    seed: int, affine: Array, axes: list[int], flips: tuple[bool, ...]
) -> None:
    def stored(array: Array) -> Array:
        turned = array.transpose(axes)
        return turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]

    old_from_new = np.eye(4)
    old_from_new[:3, :3] = 0
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        old_from_new[old, new] = -1 if flip else 1
        old_from_new[old, 3] = SHAPE[old] - 1 if flip else 0
    mask, regions = masks(seed), halves()
    here = measure(mask, regions, affine, ~empty(), sides())
    turned = {name: stored(region) for name, region in regions.items()}
    close(here, measure(stored(mask), turned, affine @ old_from_new, stored(~empty()), stored(sides())))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), GRIDS, st.tuples(*[st.integers(0, 3)] * 6))
def test_a_margin_changes_nothing(seed: int, affine: Array, margin: tuple[int, ...]) -> None:
    pad = list(zip(margin[:3], margin[3:], strict=True))
    moved = affine.copy()
    moved[:3, 3] -= affine[:3, :3] @ margin[:3]
    here = measure(masks(seed), halves(), affine, ~empty(), sides())
    wide = {name: np.pad(region, pad) for name, region in halves().items()}
    there = measure(np.pad(masks(seed), pad), wide, moved, np.pad(~empty(), pad), np.pad(sides(), pad))
    assert [(s.region, s.score, s.counted) for s in here.scores] == [
        (s.region, s.score, s.counted) for s in there.scores
    ]
    for part in ("regions", "pvs"):
        assert flat(here.as_json()[part]) == pytest.approx(flat(there.as_json()[part]))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 2.0, 4.0]))
def test_larger_voxels_scale_volumes_and_keep_shares(seed: int, k: float) -> None:
    here, there = (measure(masks(seed), halves(), THICK @ np.diag([s, s, s, 1]), ~empty()) for s in (1.0, k))
    for a, b in zip(here.regions, there.regions, strict=True):
        assert b.count == a.count and b.pvsnm == pytest.approx(a.pvsnm)
        assert b.volume_percent == pytest.approx(a.volume_percent)
        assert b.volume_mm3 == pytest.approx(a.volume_mm3 * k**3)
        assert a.mean_length_mm is None or b.mean_length_mm == pytest.approx(a.mean_length_mm * k)
        assert a.median_width_mm is None or b.median_width_mm == pytest.approx(a.median_width_mm * k)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), GRIDS)
def test_a_mirrored_head_swaps_the_sides(seed: int, affine: Array) -> None:
    """Counts and volumes: the thinning behind lengths does not work the same from both sides."""
    mask = masks(seed)
    mask[5:7] = False  # no ties on the midline
    here = measure(mask, halves(), affine, ~empty(), sides())
    there = measure(mask[::-1], halves(), affine, ~empty(), sides())
    for region, (side, other) in itertools.product(("BG", "CSO", "all"), (("left", "right"), ("both", "both"))):
        a, b = here.row(region, side), there.row(region, other)
        assert (a.count, a.volume_mm3, a.pvsnm) == (b.count, b.volume_mm3, b.pvsnm)
    assert sorted((s.scale, s.region, s.score) for s in here.scores) == sorted(
        (s.scale, s.region, s.score) for s in there.scores
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), GRIDS)
def test_masks_far_apart_add_up(seed: int, other: int, affine: Array) -> None:
    gap = np.zeros((2, *SHAPE[1:]), bool)
    together = measure(np.concatenate([masks(seed), gap, masks(other)]), {}, affine)
    one, two = (measure(masks(s), {}, affine) for s in (seed, other))
    assert together.row("all").count == one.row("all").count + two.row("all").count
    assert together.row("all").volume_mm3 == pytest.approx(one.row("all").volume_mm3 + two.row("all").volume_mm3)
    lengths = sorted(p.shape.length_mm for p in (*one.pvs, *two.pvs))
    assert sorted(p.shape.length_mm for p in together.pvs) == pytest.approx(lengths)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), GRIDS)
def test_rows_add_up(seed: int, affine: Array) -> None:
    burden = measure(masks(seed), halves(), affine, ~empty(), sides())
    for side in ("both", "left", "right"):
        parts = [burden.row(name, side) for name in ("BG", "CSO")]
        assert sum(row.count for row in parts) == burden.row("all", side).count  # no voxel lies outside both
        assert sum(row.volume_mm3 for row in parts) == pytest.approx(burden.row("all", side).volume_mm3)
    assert burden.row("all").count == len(burden.pvs)
    assert sum(p.shape.volume_mm3 for p in burden.pvs) == pytest.approx(burden.row("all").volume_mm3)


# ---- tables ------------------------------------------------------------------------------------------------------


def test_fluid_is_summed_over_each_pvs_and_the_voxels_around_it() -> None:
    mask, pvs_fraction = empty(), np.full(SHAPE, 0.5)
    mask[2, 2, 2] = mask[8, 2, 2] = True
    pvs_fraction[2, 2, 2], pvs_fraction[8, 2, 2] = 1.0, 0.8
    burden = measure(mask, halves(), HALF, hemispheres=sides(), pvs_fraction=pvs_fraction)
    # 27 voxels of 1/8 mm3: the one that is marked and 26 neighbours that are half full.
    assert [p.fluid_mm3 for p in burden.pvs] == pytest.approx([(1.0 + 13) / 8, (0.8 + 13) / 8])
    assert burden.row("BG").fluid_mm3 == burden.row("all").fluid_mm3 == pytest.approx((1.8 + 26) / 8)
    assert burden.row("BG", "left").fluid_mm3 == pytest.approx(14 / 8) and burden.row("CSO").fluid_mm3 == 0
    # Across thick slices the next voxel is another place: 9 voxels of 3 mm3.
    thick = measure(mask, {}, THICK, pvs_fraction=pvs_fraction)
    assert [p.fluid_mm3 for p in thick.pvs] == pytest.approx([3 * (1.0 + 4), 3 * (0.8 + 4)])
    rounded = measure(mask, {}, np.diag([1.0, 1.0, 2.49995, 1.0]), pvs_fraction=pvs_fraction)  # 2.5 mm in float32
    assert [p.fluid_mm3 for p in rounded.pvs] == pytest.approx([2.5 * (1.0 + 4), 2.5 * (0.8 + 4)], rel=1e-3)
    # At the edge of the image there are fewer neighbours, and two that touch share their surroundings once.
    corner = empty()
    corner[0, 0, 0] = True
    assert measure(corner, {}, HALF, pvs_fraction=np.ones(SHAPE)).pvs[0].fluid_mm3 == pytest.approx(8 / 8)
    near = empty()
    near[2, 2, 2] = near[4, 2, 2] = True
    assert measure(near, {}, HALF, pvs_fraction=np.ones(SHAPE)).row("all").fluid_mm3 == pytest.approx(5 * 9 / 8)


def test_expected_fluid_is_summed_over_regions_whether_marked_or_not() -> None:
    pvs_fraction = np.full(SHAPE, MIN_FRACTION / 2)
    bg, cso = (np.argwhere(halves()[name] != 0)[0] for name in ("BG", "CSO"))
    pvs_fraction[tuple(bg)], pvs_fraction[tuple(cso)] = 0.5, 0.25
    burden = measure(empty(), halves(), HALF, hemispheres=sides(), pvs_fraction=pvs_fraction)
    assert [burden.row(name).expected_fluid_mm3 for name in ("BG", "CSO", "all")] == [0.5 / 8, 0.25 / 8, 0.75 / 8]
    assert all(row.fluid_mm3 == 0 for row in burden.regions)
    both = burden.row("BG").expected_fluid_mm3 or 0
    assert sum(burden.row("BG", side).expected_fluid_mm3 or 0 for side in ("left", "right")) == both
    # The whole is that of the regions; without any it is unknown, though the fluid of marked PVS is not.
    one_region = measure(empty(), {"BG": halves()["BG"]}, HALF, pvs_fraction=pvs_fraction)
    assert one_region.row("all").expected_fluid_mm3 == 0.5 / 8
    without = measure(empty(), {}, HALF, pvs_fraction=pvs_fraction).row("all")
    assert without.expected_fluid_mm3 is None and without.fluid_mm3 == 0
    part = measure(empty(), halves(), HALF, pvs_fraction=pvs_fraction, parts={"near": halves()["CSO"]})
    assert part.row("near").expected_fluid_mm3 == 0.25 / 8
    assert measure(empty(), {}, HALF).row("all").expected_fluid_mm3 is None


@given(st.integers(0, 200))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_fluid_does_not_depend_on_how_voxels_are_stored_and_is_unknown_without_a_map(seed: int) -> None:
    mask, pvs_fraction = masks(seed), np.random.default_rng(seed).random(SHAPE)
    turned = np.diag([-0.5, 0.5, 0.5, 1.0])
    there, back = (
        measure(mask, {"WM": mask}, HALF, pvs_fraction=pvs_fraction),
        measure(mask[::-1], {"WM": mask[::-1]}, turned, pvs_fraction=pvs_fraction[::-1]),
    )
    assert there.row("all").fluid_mm3 == pytest.approx(back.row("all").fluid_mm3)
    assert sum(p.fluid_mm3 or 0 for p in there.pvs) == pytest.approx(there.row("all").fluid_mm3)
    assert there.row("all").expected_fluid_mm3 == pytest.approx(back.row("all").expected_fluid_mm3)
    unknown = measure(mask, {}, HALF)
    assert unknown.row("all").fluid_mm3 is None and all(p.fluid_mm3 is None for p in unknown.pvs)


def test_a_map_of_fluid_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="PVS fraction"):
        measure(empty(), {}, HALF, pvs_fraction=np.zeros((2, 2, 2)))


def one_column() -> Burden:
    mask = empty()
    mask[1, 1, 2:4] = True
    return measure(mask, {"=BG": empty(), "midbrain": ~empty()}, np.diag([1.0, 1.0, 1.0, 1.0]), ~empty())


def burden_csv(cases: Iterable[tuple[str, Burden]]) -> str:
    rows = ({"case": name, **region_values(burden, row)} for name, burden in cases for row in burden.regions)
    return csv_text(["case", *REGION_COLUMNS], rows)


def pvs_csv(cases: Iterable[tuple[str, Burden]]) -> str:
    rows = ({"case": name, **pvs_values(pvs)} for name, burden in cases for pvs in burden.pvs)
    return csv_text(["case", *PVS_COLUMNS], rows)


def test_burden_csv_has_a_row_per_case_region_and_side() -> None:
    lines = burden_csv([("-a", one_column()), ("b, c", one_column())]).split("\n")
    assert lines[0] == ",".join(["case", *REGION_COLUMNS]) and len(lines) == 8 and lines[-1] == ""
    assert lines[1] == " -a, =BG,both,0,0.0,,,0.0,960.0,,,0.0,,,,,,,"  # no formula for a spreadsheet
    cells = lines[5].split('"')[2].split(",")[1:]
    named = dict(zip(REGION_COLUMNS, cells, strict=True))
    assert lines[5].startswith('"b, c",midbrain,both,1,2.0,,,960.0,960.0,')
    assert float(named["pvsnm_mm3_per_million_mm3"]) == pytest.approx(1e6 * 2 / 960)
    assert named["estimated_potter_midbrain_score_0_to_1"] == "1" and named["estimated_potter_score_0_to_4"] == ""


def test_pvs_csv_has_a_row_per_pvs() -> None:
    lines = pvs_csv([("a", one_column())]).split("\n")
    assert lines[0] == ",".join(["case", *PVS_COLUMNS]) and len(lines) == 3
    cells = dict(zip(["case", *PVS_COLUMNS], lines[1].split(","), strict=True))
    assert cells["pvs"] == "1" and cells["region"] == "midbrain" and cells["hemisphere"] == ""
    assert [cells[f"direction_{to}"] for to in ("right", "anterior", "superior")] == ["0.0", "0.0", "1.0"]
    assert [cells[f"centre_{to}_mm"] for to in ("right", "anterior", "superior")] == ["1.0", "1.0", "2.5"]
    assert cells["angle_to_superior_degrees"] == "0.0" and float(cells["length_mm"]) == pytest.approx(2)
    empty_case = measure(empty(), {}, HALF)
    assert pvs_csv([("a", empty_case)]) == lines[0] + "\n"


def test_a_dot_has_no_direction_in_csv() -> None:
    mask = empty()
    mask[1, 1, 1] = True
    cells = pvs_csv([("a", measure(mask, {}, HALF))]).split("\n")[1].split(",")
    assert cells[12:16] == ["", "", "", ""]


def test_json_holds_what_the_tables_hold() -> None:
    burden = measure(masks(5), {**halves(), "midbrain": empty()}, THICK, hemispheres=sides())
    content = json.loads(json.dumps(burden.as_json(), allow_nan=False))
    assert [set(row) for row in content["regions"]] == [set(REGION_COLUMNS)] * len(burden.regions)
    assert [set(row) for row in content["pvs"]] == [set(PVS_COLUMNS)] * len(burden.pvs)
    assert content["slab_mm"] == 6 and content["slices_per_slab"] == 2
    for score in content["estimated_scores"]:
        assert set(score) == {
            "scale",
            "region",
            "estimated_score",
            "counted",
            "hemisphere",
            "slices",
            "on_rated_section",
        }
    assert not [name for name in flat(content["regions"]) if "score" in name and "estimated" not in name]


def test_each_pvs_is_measured_as_if_it_were_alone() -> None:
    """In the box of its own, whatever else lies in that box."""
    mask = empty()
    mask[1:6, 1, 1], mask[1, 1:6, 1] = True, True  # an L
    mask[4, 4, 1] = True  # within its box
    burden = measure(mask, {}, HALF)
    alone = mask.copy()
    alone[4, 4, 1] = False
    assert [p.shape.voxels for p in burden.pvs] == [9, 1]
    assert burden.pvs[0].shape.length_mm == pytest.approx(shape_of(alone, HALF).length_mm)
    assert math.isclose(burden.pvs[0].shape.volume_mm3, 9 / 8)


def test_a_region_in_the_middle_has_no_rows_of_sides() -> None:
    mask = np.zeros((9, 5, 5), bool)
    mask[4, 2, 2] = True
    middle, left = np.zeros_like(mask), np.zeros_like(mask)
    middle[3:6], left[:3] = True, True
    sides = np.zeros(mask.shape, np.uint8)
    sides[:3], sides[6:] = 1, 2
    burden = measure(mask, {"midbrain": middle, "BG": left}, np.eye(4), None, sides)
    assert [row.hemisphere for row in burden.regions if row.region == "midbrain"] == ["both"]
    assert [row.hemisphere for row in burden.regions if row.region == "BG"] == ["both", "left", "right"]
    assert burden.row("midbrain").count == 1

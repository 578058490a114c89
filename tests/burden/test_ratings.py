"""Estimated scores: every rule at its boundaries, and what is counted on a slab."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvs_model.burden.morphology import Shape
from pvs_model.burden.ratings import (
    estimate,
    fullest_slab,
    mcpvs_bg_score,
    mcpvs_wm_score,
    midbrain_score,
    potter_score,
    slices_per_slab,
)
from pvs_model.burden.records import MCPVS, POTTER, EstimatedScore, Pvs

SHAPE = Shape(1, 1.0, 1.0, 1.0, 0.0, None, (0.0, 0.0, 0.0))
SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


def pvs(region: str, side: str | None, *slices: int) -> list[Pvs]:
    """One PVS on each of the slices."""
    return [Pvs(k, region, side, SHAPE, (z, z)) for k, z in enumerate(slices, 1)]


@pytest.mark.parametrize(
    ("count", "score"), [(0, 0), (1, 1), (10, 1), (11, 2), (20, 2), (21, 3), (40, 3), (41, 4), (500, 4)]
)
def test_potter(count: int, score: int) -> None:
    assert potter_score(count) == score


@pytest.mark.parametrize(("count", "score"), [(0, 0), (1, 1), (30, 1)])
def test_midbrain(count: int, score: int) -> None:
    assert midbrain_score(count) == score


@pytest.mark.parametrize(("total", "score"), [(0, 1), (4, 1), (5, 2), (10, 2), (11, 3), (1000, 3)])
def test_mcpvs_basal_ganglia_never_is_uncountable(total: int, score: int) -> None:
    assert mcpvs_bg_score(total) == score


@pytest.mark.parametrize(
    ("total", "fullest", "score"),
    [
        (0, 0, 1),
        (9, 9, 1),
        (10, 1, 1),  # exactly 10 in all: the wording has neither 1 nor 2
        (10, 10, 1),  # ... and 3 by the section alone
        (11, 1, 2),
        (11, 10, 2),  # exactly 10 on a section: the wording has both 2 and 3
        (11, 11, 3),
        (300, 20, 3),
        (300, 21, 4),
    ],
)
def test_mcpvs_white_matter(total: int, fullest: int, score: int) -> None:
    assert mcpvs_wm_score(total, fullest) == score


def test_impossible_counts_are_refused() -> None:
    for score in (potter_score, midbrain_score, mcpvs_bg_score):
        with pytest.raises(ValueError, match="expected a count of 0 or more, got -1"):
            score(-1)
    with pytest.raises(ValueError, match="got -1"):
        mcpvs_wm_score(3, -1)
    with pytest.raises(ValueError, match="got 4 of 3"):
        mcpvs_wm_score(3, 4)


@pytest.mark.parametrize(
    ("slice_mm", "slices"),
    [(0.5, 10), (0.8, 6), (1, 5), (1.2, 4), (2, 3), (2.5, 2), (3, 2), (3.3, 2), (3.4, 1), (5, 1), (6, 1), (12, 1)],
)
def test_slabs_are_as_near_to_5_mm_as_whole_slices_allow(slice_mm: float, slices: int) -> None:
    assert slices_per_slab(slice_mm) == slices


def test_no_pvs_fill_no_slab() -> None:
    assert fullest_slab([], 5) == (0, None)


def test_a_line_through_several_slabs_counts_once_on_each() -> None:
    assert fullest_slab([(0, 30)], 5)[0] == 1
    assert fullest_slab([(0, 30), (14, 14)], 5)[0] == 2


@pytest.mark.parametrize(
    ("slices", "spans", "count"),
    [
        (1, [(3, 3), (4, 4)], 1),
        (1, [(3, 3), (3, 4), (4, 4)], 2),
        # 5 slices to a slab: how many of the 5 ways to cut leave both on one slab?
        (5, [(0, 0), (1, 1)], 2),  # 4
        (5, [(0, 0), (2, 2)], 2),  # 3
        (5, [(0, 0), (3, 3)], 1),  # 2
        (5, [(0, 0), (4, 4)], 1),  # 1
        (5, [(0, 0), (5, 5)], 1),  # none
        (2, [(0, 0), (1, 1)], 1),  # 1 of 2: the lower of the two middle counts
        (4, [(0, 0), (1, 1)], 2),  # 3 of 4
        (4, [(0, 0), (2, 2)], 1),  # 2 of 4
    ],
)
def test_the_count_is_the_median_over_the_ways_to_cut(slices: int, spans: list[tuple[int, int]], count: int) -> None:
    assert fullest_slab(spans, slices)[0] == count


@given(SPANS, st.integers(1, 7), st.integers(-20, 20))
def test_where_the_image_begins_changes_nothing(spans: list[tuple[int, int]], slices: int, by: int) -> None:
    count, slab = fullest_slab(spans, slices)
    assert fullest_slab([(a + by, b + by) for a, b in spans], slices)[0] == count
    assert fullest_slab([(-b, -a) for a, b in spans], slices)[0] == count  # upside down
    assert (slab is None) == (count == 0) == (not spans)
    if slab is not None:
        first, last = slab
        assert 0 <= last - first < slices
        assert sum(a <= last and b >= first for a, b in spans) == count


@given(SPANS, st.integers(1, 7))
def test_the_count_lies_between_the_fullest_slice_and_all(spans: list[tuple[int, int]], slices: int) -> None:
    on_a_slice = max((sum(a <= z <= b for a, b in spans) for z in range(40)), default=0)
    assert on_a_slice <= fullest_slab(spans, slices)[0] <= len(spans)


def test_potter_takes_the_worse_side_and_its_fullest_slab() -> None:
    ratings = estimate(
        [
            *pvs("BG", "left", *[7] * 10, *range(20, 60)),
            *pvs("BG", "right", *[3] * 11),
            *pvs("CSO", "left", *[3] * 50),
            *pvs("WM", "left", *[3] * 50),
        ],
        ["BG", "CSO", "WM", "midbrain"],
        slices=1,
        sides=True,
    )
    assert ratings == (
        EstimatedScore(POTTER, "BG", 2, 11, "right", (3, 3)),
        EstimatedScore(MCPVS, "BG", 3, 61, "both", None),
        EstimatedScore(POTTER, "CSO", 4, 50, "left", (3, 3)),
        EstimatedScore(MCPVS, "WM", 4, 50, "both", (3, 3)),
        EstimatedScore(POTTER, "midbrain", 0, 0, "both", None),
    )


def test_mcpvs_takes_both_sides_together_and_those_without_a_side() -> None:
    here = [*pvs("WM", "left", *[3] * 8), *pvs("WM", "right", *[3] * 2), *pvs("WM", None, 3, 9)]
    assert estimate(here, ["WM"], slices=1, sides=True) == (EstimatedScore(MCPVS, "WM", 3, 11, "both", (3, 3)),)
    assert estimate(here[:10], ["WM"], 1, True) == (EstimatedScore(MCPVS, "WM", 1, 10, "both", None),)


def test_potter_counts_the_centrum_semiovale_on_its_rated_section() -> None:
    """A slab below it has more; a PVS of the white matter elsewhere is not counted, even on the section."""
    below = [replace(p, region="WM", parts=("CSO",)) for p in pvs("CSO", "left", *[3] * 50)]
    on_it = [replace(p, region="WM", parts=("CSO",), potter_sections=("CSO",)) for p in pvs("CSO", "right", *[9] * 11)]
    elsewhere = [replace(p, region="WM", potter_sections=("CSO",)) for p in pvs("CSO", "right", *[9] * 30)]
    (score,) = estimate([*below, *on_it, *elsewhere], ["CSO"], slices=1, sides=True, potter_sections=["CSO"])
    assert score == EstimatedScore(POTTER, "CSO", 2, 11, "right", None, on_rated_section=True)


def test_what_is_unknown_gets_no_score() -> None:
    here = pvs("BG", None, 1, 2)
    assert [(s.scale, s.region) for s in estimate(here, ["BG"], 1, sides=False)] == [(MCPVS, "BG")]
    assert estimate(here, ["hippocampus"], 1, sides=True) == ()
    assert estimate([], ["midbrain", "BG"], 1, True)[0] == EstimatedScore(POTTER, "BG", 0, 0, "left", None)

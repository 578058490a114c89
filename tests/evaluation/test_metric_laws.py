"""Laws of the scores: what may change without changing them, and what follows from what, on random small masks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from drawings import Bool, small_masks
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.evaluation.metrics import (
    MATCH_IOU,
    Overlap,
    Values,
    all_sets,
    clusters,
    detection,
    dice,
    official,
    overlap,
    penalty_scores,
    surface_dice,
    volume,
    voxels,
)

Pair = tuple[Bool, Bool]

pairs = small_masks(2)
#: Exact in binary, and so are their sums, products and squares.
spacings = st.tuples(*[st.sampled_from((0.5, 0.75, 1.0, 1.5, 3.0))] * 3)
margins = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=3)
law = settings(max_examples=120, deadline=None, derandomize=True)
#: With the surface Dice, which costs some milliseconds.
law_of_surfaces = settings(max_examples=50, deadline=None, derandomize=True)


def ratios(o: Overlap) -> dict[str, Values]:
    """The three sets that need no millimetres."""
    return {"official": official(o), "detection": detection(o), "voxels": voxels(o)}


def mirrored(o: Overlap) -> Overlap:
    """The counts with truth and prediction exchanged."""
    return Overlap(
        reference_voxels=o.predicted_voxels,
        predicted_voxels=o.reference_voxels,
        shared_voxels=o.shared_voxels,
        reference_clusters=o.predicted_clusters,
        predicted_clusters=o.reference_clusters,
        detected_reference_clusters=o.true_positive_clusters,
        true_positive_clusters=o.detected_reference_clusters,
        matched=o.matched,
    )


def known(values: Values) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


# What changes nothing


@given(pairs, spacings, st.permutations(range(3)), st.sets(st.integers(0, 2)))
@law_of_surfaces
def test_turning_and_flipping_changes_nothing(
    pair: Pair, spacing_mm: tuple[float, float, float], axes: list[int], flipped: set[int]
) -> None:
    turned = [np.flip(mask, tuple(flipped)).transpose(axes) for mask in pair]
    assert all_sets(*turned, tuple(spacing_mm[axis] for axis in axes)) == all_sets(*pair, spacing_mm)


@given(pairs, margins, spacings)
@law_of_surfaces
def test_empty_space_around_changes_nothing(
    pair: Pair, margin: list[tuple[int, int]], spacing_mm: tuple[float, float, float]
) -> None:
    prediction, truth = (np.pad(mask, margin) for mask in pair)
    assert all_sets(prediction, truth, spacing_mm) == all_sets(*pair, spacing_mm)


@given(pairs, *[st.tuples(*[st.integers(0, 4)] * 3)] * 2)
@law
def test_the_place_within_the_image_changes_nothing(
    pair: Pair, first: tuple[int, int, int], second: tuple[int, int, int]
) -> None:
    def at(place: tuple[int, int, int]) -> Overlap:
        images = np.zeros((2, 10, 10, 10), bool)
        for image, mask in zip(images, pair, strict=True):
            image[tuple(slice(p, p + n) for p, n in zip(place, mask.shape, strict=True))] = mask
        return overlap(*images)

    assert at(first) == at(second)


@given(pairs, st.sampled_from((np.uint8, np.int16, np.float32, np.float64)), st.integers(0, 2**32 - 1))
@law
def test_any_number_but_0_is_inside(pair: Pair, dtype: type[Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = [1, 2, 100, 255] if dtype is np.uint8 else [1, -1, 7, -300]
    values += [0.25, -1e-30, np.inf] if np.issubdtype(dtype, np.floating) else []
    numbers = [np.where(mask, rng.choice(np.array(values, dtype), mask.shape), dtype(0)) for mask in pair]
    kept = [array.copy() for array in numbers]
    assert overlap(*numbers) == overlap(*pair)
    assert surface_dice(*numbers, (1.0, 1.0, 1.0)) == surface_dice(*pair, (1.0, 1.0, 1.0))
    assert all(np.array_equal(a, b) for a, b in zip(numbers, kept, strict=True))  # only read


@pytest.mark.parametrize("score", [overlap, lambda *masks: all_sets(*masks, (1.0, 1.0, 1.0))])
def test_unequal_shapes_are_refused(score: Callable[..., object]) -> None:
    for other in ((6, 6, 5), (6, 6, 1), (1, 6, 6)):  # the last two would broadcast
        with pytest.raises(ValueError, match=r"\(6, 6, 6\) and \(\d, 6, \d\)"):
            score(np.ones((6, 6, 6), bool), np.ones(other, bool))


def test_surfaces_of_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 2\) and \(2, 2, 1\)"):
        surface_dice(np.ones((2, 2, 2), bool), np.ones((2, 2, 1), bool), (1.0, 1.0, 1.0))


# Truth and prediction exchanged


@given(pairs, spacings)
@law_of_surfaces
def test_exchanging_truth_and_prediction_exchanges_the_scores(
    pair: Pair, spacing_mm: tuple[float, float, float]
) -> None:
    prediction, truth = pair
    o, here = all_sets(prediction, truth, spacing_mm)
    back, there = all_sets(truth, prediction, spacing_mm)
    assert back == mirrored(o)
    for name, a, b in (
        ("voxels", "sensitivity", "ppv"),
        ("detection", "recall", "precision"),
        ("detection", "matched_recall", "matched_precision"),
        ("volume", "reference_mm3", "predicted_mm3"),
    ):
        assert there[name][a] == here[name][b] and there[name][b] == here[name][a]
    for name, score in (
        ("official", "dice"),
        ("voxels", "dice"),
        ("voxels", "iou"),
        ("detection", "f1"),
        ("detection", "matched_f1"),
        ("volume", "absolute_mm3"),
        ("volume", "symmetric_difference_mm3"),
        ("volume", "surface_dice_1mm"),
    ):
        assert there[name][score] == here[name][score], score
    assert there["volume"]["signed_mm3"] == -here["volume"]["signed_mm3"]
    # The challenge's recall, mirrored, is the precision of predicted clusters: not its own precision.
    assert there["official"]["recall"] == (here["detection"]["precision"] or 0)


# What follows from what


@given(pairs)
@law
def test_scores_lie_between_0_and_1_but_for_two(pair: Pair) -> None:
    o = overlap(*pair)
    sets = ratios(o)
    unbounded = {"avd": known(sets["official"]).get("avd", 0.0), "precision": sets["official"].pop("precision")}
    sets["official"].pop("avd")
    assert all(0 <= value <= 1 for values in sets.values() for value in known(values).values())
    assert all(value is not None and value >= 0 for value in unbounded.values())
    # The challenge's precision passes 1 exactly where more truth clusters are touched than there are predicted ones.
    assert (unbounded["precision"] > 1) == (o.detected_reference_clusters > o.predicted_clusters > 0)


@given(pairs)
@law
def test_counts_fit_together(pair: Pair) -> None:
    prediction, truth = pair
    o = overlap(prediction, truth)
    assert (o.reference_voxels, o.predicted_voxels) == (truth.sum(), prediction.sum())
    assert o.shared_voxels <= min(o.reference_voxels, o.predicted_voxels)
    assert o.matched <= min(o.detected_reference_clusters, o.true_positive_clusters)
    assert o.detected_reference_clusters <= o.reference_clusters <= o.reference_voxels
    assert o.true_positive_clusters <= o.predicted_clusters <= o.predicted_voxels
    assert bool(o.detected_reference_clusters) == bool(o.true_positive_clusters) == bool(o.shared_voxels)


@given(pairs)
@law
def test_dice_follows_from_iou(pair: Pair) -> None:
    scores = voxels(overlap(*pair))
    if scores["iou"] is None:
        assert scores["dice"] is None and np.isnan(dice(*pair))
    else:
        assert scores["dice"] == pytest.approx(2 * scores["iou"] / (1 + scores["iou"]), rel=1e-14)
        assert scores["iou"] <= scores["dice"] == dice(*pair)
    assert official(overlap(*pair))["dice"] == scores["dice"]


@given(pairs)
@law
def test_f1_lies_between_recall_and_precision(pair: Pair) -> None:
    scores = detection(overlap(*pair))
    for prefix in ("", "matched_"):
        recall, precision, f1 = (scores[prefix + name] for name in ("recall", "precision", "f1"))
        if f1 is None:
            assert recall is None and precision is None
        elif recall is None or precision is None:
            assert f1 == 0
        else:
            assert min(recall, precision) <= f1 <= max(recall, precision)
    both = [
        (known(scores).get(name, 0.0), known(scores).get(f"matched_{name}", 0.0))
        for name in ("recall", "precision", "f1")
    ]
    assert all(matched <= touched for touched, matched in both)


@given(small_masks(1))
@law_of_surfaces
def test_the_truth_itself_scores_1(masks: tuple[Bool]) -> None:
    (truth,) = masks
    if not truth.any():
        truth = np.ones_like(truth)
    _, sets = all_sets(truth.copy(), truth, (0.5, 0.5, 2.0))
    assert sets["official"] == {"dice": 1, "avd": 0, "avd_capped": 0, "recall": 1, "precision": 1}
    assert set(sets["detection"].values()) == set(sets["voxels"].values()) == {1}
    half = truth.sum() / 2
    assert list(sets["volume"].values()) == [half, half, 0, 0, 0, 1]


@given(pairs)
@law
def test_a_false_cluster_lowers_precision_only(pair: Pair) -> None:
    prediction, truth = (np.pad(mask, ((0, 2), (0, 0), (0, 0))) for mask in pair)
    before = overlap(prediction, truth)
    prediction[-1, 0, 0] = True
    after = overlap(prediction, truth)
    assert after == replace(
        before,
        predicted_voxels=before.predicted_voxels + 1,
        predicted_clusters=before.predicted_clusters + 1,
    )
    then, now = detection(before), detection(after)
    assert (now["recall"], now["matched_recall"]) == (then["recall"], then["matched_recall"])
    for name in ("precision", "matched_precision", "f1", "matched_f1"):
        assert now[name] is not None and now[name] <= (then[name] or 0)  # type: ignore[operator]


@given(pairs)
@settings(law, max_examples=300)
def test_matching_is_the_best_of_all_choices(pair: Pair) -> None:
    guessed, real = ([labels == k + 1 for k in range(count)] for labels, count in (clusters(mask) for mask in pair))
    near = [[Fraction(int((r & g).sum()), int((r | g).sum())) >= MATCH_IOU for g in guessed] for r in real]

    def most(row: int, taken: frozenset[int]) -> int:
        if row == len(near):
            return 0
        free = [column for column, close in enumerate(near[row]) if close and column not in taken]
        return max(most(row + 1, taken), *(1 + most(row + 1, taken | {column}) for column in free), 0)

    assert overlap(*pair).matched == most(0, frozenset())


# Millimetres


@given(pairs, spacings, st.sampled_from((0.25, 0.5, 2.0, 3.0)))
@law
def test_volumes_grow_with_the_cube_of_the_spacing(
    pair: Pair, spacing_mm: tuple[float, float, float], factor: float
) -> None:
    o = overlap(*pair)
    small = volume(o, float(np.prod(spacing_mm)), None)
    large = volume(o, float(np.prod([factor * s for s in spacing_mm])), None)
    assert {name: value * factor**3 for name, value in known(small).items()} == known(large)


@given(pairs)
@law
def test_volumes_fit_together(pair: Pair) -> None:
    scores = known(volume(overlap(*pair), 0.75, None))
    assert scores["signed_mm3"] == scores["predicted_mm3"] - scores["reference_mm3"]
    assert scores["absolute_mm3"] == abs(scores["signed_mm3"])
    either, both = (0.75 * int(mask.sum()) for mask in (pair[0] | pair[1], pair[0] & pair[1]))
    assert scores["symmetric_difference_mm3"] == either - both
    assert (
        scores["absolute_mm3"]
        <= scores["symmetric_difference_mm3"]
        <= scores["reference_mm3"] + scores["predicted_mm3"]
    )


@given(pairs, spacings, st.sampled_from((0.0, 0.5, 1.0, 1.5, 3.0)))
@law
def test_surface_dice_by_its_definition(
    pair: Pair, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    def surface(mask: Bool) -> npt.NDArray[np.float64]:
        inside = {tuple(map(int, voxel)) for voxel in np.argwhere(mask)}
        steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1]
        edge = [v for v in inside if any(tuple(a + b for a, b in zip(v, s, strict=True)) not in inside for s in steps)]
        return np.array(edge, float).reshape(-1, 3) * spacing_mm

    prediction, truth = map(surface, pair)
    score = surface_dice(*pair, spacing_mm, tolerance_mm)
    if not len(prediction) + len(truth):
        assert score is None
        return
    squared = ((prediction[:, None] - truth[None]) ** 2).sum(-1) <= tolerance_mm**2
    near = squared.any(1).sum() + squared.any(0).sum()
    assert score == pytest.approx(near / (len(prediction) + len(truth)), rel=1e-6)


@given(pairs, spacings)
@law_of_surfaces
def test_more_tolerance_never_lowers_the_surface_dice(pair: Pair, spacing_mm: tuple[float, float, float]) -> None:
    scores = [surface_dice(*pair, spacing_mm, tolerance_mm) or 0.0 for tolerance_mm in (0.0, 1.0, 2.0, 100.0)]
    assert scores == sorted(scores)
    assert scores[-1] == float(pair[0].any() and pair[1].any())


# Regions: a region is applied by masking both, and clusters are counted afterwards.


@given(small_masks(3), spacings)
@law_of_surfaces
def test_masking_is_cropping_to_the_box_of_the_region(
    three: tuple[Bool, Bool, Bool], spacing_mm: tuple[float, float, float]
) -> None:
    prediction, truth, region = three
    inside = np.argwhere(region)
    if not len(inside):
        return
    box = tuple(slice(low, high + 1) for low, high in zip(inside.min(0), inside.max(0), strict=True))
    masked, within = prediction & region, truth & region
    assert all_sets(masked[box], within[box], spacing_mm) == all_sets(masked, within, spacing_mm)


@given(small_masks(4))
@law
def test_masking_twice_is_masking_with_what_the_regions_share(four: tuple[Bool, Bool, Bool, Bool]) -> None:
    prediction, truth, first, second = four
    together = overlap(prediction & (first & second), truth & (first & second))
    assert overlap(prediction & first & second, truth & first & second) == together
    assert overlap(prediction & second & first, truth & second & first) == together
    once = overlap(prediction & first, truth & first)
    assert overlap(prediction & first & first, truth & first & first) == once


@given(small_masks(3))
@law
def test_a_region_that_holds_both_masks_changes_nothing(three: tuple[Bool, Bool, Bool]) -> None:
    prediction, truth, more = three
    region = prediction | truth | more
    assert overlap(prediction & region, truth & region) == overlap(prediction, truth)


@given(small_masks(3))
@law
def test_masking_one_keeps_what_is_shared(three: tuple[Bool, Bool, Bool]) -> None:
    """And with it every ratio whose denominator belongs to the masked one; Dice can only fall."""
    prediction, truth, region = three
    both = overlap(prediction & region, truth & region)
    only_prediction = overlap(prediction & region, truth)
    only_truth = overlap(prediction, truth & region)
    assert both.shared_voxels == only_prediction.shared_voxels == only_truth.shared_voxels
    assert voxels(only_prediction)["ppv"] == voxels(both)["ppv"]
    assert voxels(only_truth)["sensitivity"] == voxels(both)["sensitivity"]
    assert only_prediction.true_positive_clusters == both.true_positive_clusters
    assert only_truth.detected_reference_clusters == both.detected_reference_clusters
    for one in (only_prediction, only_truth):
        for name in ("dice", "iou"):
            assert (voxels(one)[name] or 0) <= (voxels(both)[name] or 0)


@given(small_masks(4))
@law
def test_regions_that_share_nothing_and_cover_all_add_up(four: tuple[Bool, Bool, Bool, Bool]) -> None:
    """Voxels do so exactly; clusters only from above, since a border between regions cuts some in two."""
    prediction, truth, first, second = four
    parts = [overlap(prediction & region, truth & region) for region in (first, second & ~first, ~first & ~second)]
    whole = overlap(prediction, truth)
    for name in ("reference_voxels", "predicted_voxels", "shared_voxels"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    for name in ("reference_clusters", "predicted_clusters", "detected_reference_clusters", "true_positive_clusters"):
        assert sum(getattr(part, name) for part in parts) >= getattr(whole, name)


def test_a_region_can_raise_and_lower_the_challenges_scores() -> None:
    """So no order between a region's recall and the whole image's can be stated."""
    bar = np.ones((5, 1, 1), bool)
    end = np.zeros_like(bar)
    end[0] = True
    cut = ~np.isin(np.arange(5), 2)[:, None, None]
    assert official(overlap(end, bar))["recall"] == 1
    assert official(overlap(end & cut, bar & cut))["recall"] == 1 / 2
    gap = bar & cut
    near = np.isin(np.arange(5), (0, 1))[:, None, None]
    assert official(overlap(end, gap))["recall"] == 1 / 2
    assert official(overlap(end & near, gap & near))["recall"] == 1


# No prediction


@given(pairs, spacings)
@law_of_surfaces
def test_nothing_scores_worse_than_no_prediction(pair: Pair, spacing_mm: tuple[float, float, float]) -> None:
    """But for the uncapped avd, which an empty mask gets 1 in and a far too large one more, and mm3."""
    prediction, truth = pair
    _, sets = all_sets(prediction, truth, spacing_mm)
    _, none = penalty_scores(truth, spacing_mm)
    for name, values in sets.items():
        for score, value in known(values).items():
            least = none[name][score]
            assert least is not None
            if score in ("avd", "avd_capped"):
                assert least == 1 and least >= min(1, value)
            elif not score.endswith("_mm3"):
                assert least == 0 <= value
    assert none["volume"]["absolute_mm3"] == none["volume"]["reference_mm3"] == sets["volume"]["reference_mm3"]
    assert all(value is not None for values in none.values() for value in values.values())


@given(small_masks(1))
@law
def test_no_prediction_is_an_empty_one_where_that_has_a_value(masks: tuple[Bool]) -> None:
    (truth,) = masks
    o, none = penalty_scores(truth, (1.0, 1.0, 1.0))
    counts, empty = all_sets(np.zeros_like(truth), truth, (1.0, 1.0, 1.0))
    assert o == counts and {n: list(v) for n, v in none.items()} == {n: list(v) for n, v in empty.items()}
    for name, values in empty.items():
        assert {score: none[name][score] for score in known(values)} == known(values)

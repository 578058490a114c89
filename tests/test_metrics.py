"""Scores of small masks, counted by hand: expected values are exact fractions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from pvs_model.evaluation.metrics import clusters, dice, scores


def mask(*voxels: tuple[int, int, int]) -> npt.NDArray[np.bool_]:
    """(6, 6, 6), True at the voxels."""
    out = np.zeros((6, 6, 6), bool)
    for voxel in voxels:
        out[voxel] = True
    return out


EMPTY = mask()
#: Three clusters: a rod of 3 voxels, a pair that touches only by a corner, a single voxel.
TRUTH = mask((0, 0, 0), (0, 0, 1), (0, 0, 2), (3, 3, 3), (4, 4, 4), (0, 5, 5))


def test_clusters_touch_by_faces_edges_and_corners() -> None:
    labels, count = clusters(TRUTH)
    assert count == 3
    assert labels[3, 3, 3] == labels[4, 4, 4] != labels[0, 0, 0]
    assert clusters(mask((0, 0, 0), (0, 0, 2)))[1] == 2
    assert clusters(EMPTY)[1] == 0


def test_the_truth_itself() -> None:
    found = scores(TRUTH, TRUTH)
    assert (found.dice, found.recall, found.precision) == (1, 1, 1)
    assert (found.truth_clusters, found.predicted_clusters) == (3, 3)
    assert (found.truth_voxels, found.predicted_voxels) == (6, 6)


def test_some_found_some_missed_some_invented() -> None:
    # Hits: 2 of the rod, 1 of the pair. Beside them a voxel joined to the rod, and one on its own.
    prediction = mask((0, 0, 1), (0, 0, 2), (0, 0, 3), (4, 4, 4), (5, 0, 5))
    found = scores(prediction, TRUTH)
    assert found.dice == 2 * 3 / (5 + 6)
    assert found.recall == 2 / 3
    assert found.precision == 2 / 3
    assert (found.truth_clusters, found.predicted_clusters) == (3, 3)
    assert (found.truth_voxels, found.predicted_voxels) == (6, 5)


def test_the_challenges_own_precision_can_pass_one() -> None:
    # One bar touches both voxels of truth: 2 truth clusters touched / 1 predicted cluster.
    found = scores(mask(*((0, 0, k) for k in range(5))), mask((0, 0, 0), (0, 0, 4)))
    assert found.challenge_precision == 2 and found.precision == 1 and found.f1 == 1


def test_volume_difference_and_f1_by_hand() -> None:
    prediction = mask((0, 0, 1), (0, 0, 2), (0, 0, 3), (4, 4, 4), (5, 0, 5))  # 5 voxels, truth has 6
    found = scores(prediction, TRUTH)
    assert found.volume_difference == pytest.approx(1 / 6)
    assert found.f1 == pytest.approx(2 / 3)
    everywhere = scores(np.ones((6, 6, 6), bool), mask((0, 0, 0)))
    assert everywhere.volume_difference == 1  # capped
    assert math.isnan(scores(prediction, EMPTY).volume_difference)
    assert scores(mask((5, 5, 0)), mask((0, 0, 0))).f1 == 0
    assert math.isnan(scores(EMPTY, TRUTH).f1)


def test_one_cluster_over_two_and_two_over_one() -> None:
    # A bar that joins the rod's end to two other voxels: one predicted cluster, two truths touched.
    truth = mask((0, 0, 0), (0, 0, 4))
    bar = mask(*((0, 0, k) for k in range(5)))
    joined = scores(bar, truth)
    assert (joined.recall, joined.precision, joined.dice) == (1, 1, 4 / 7)
    split = scores(truth, bar)
    assert (split.recall, split.precision, split.dice) == (1, 1, 4 / 7)
    assert (joined.predicted_clusters, split.predicted_clusters) == (1, 2)


def test_touching_from_outside_is_not_a_hit() -> None:
    beside = scores(mask((1, 1, 1)), mask((0, 0, 0)))
    assert (beside.dice, beside.recall, beside.precision) == (0, 0, 0)


def test_the_empty_cases() -> None:
    both = scores(EMPTY, EMPTY)
    assert math.isnan(both.dice) and math.isnan(both.recall) and math.isnan(both.precision)
    missed = scores(EMPTY, TRUTH)
    assert (missed.dice, missed.recall) == (0, 0) and math.isnan(missed.precision)
    invented = scores(TRUTH, EMPTY)
    assert (invented.dice, invented.precision) == (0, 0) and math.isnan(invented.recall)
    assert math.isnan(dice(EMPTY, EMPTY))


def test_masks_of_numbers_count_as_masks() -> None:
    as_numbers = scores(TRUTH.astype(np.uint8) * 255, TRUTH.astype(np.int16))  # type: ignore[arg-type]
    assert as_numbers == scores(TRUTH, TRUTH)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(6, 6, 6\) and \(6, 6, 5\)"):
        scores(EMPTY, EMPTY[..., :5])

"""Scores of drawn masks against fractions worked out by hand: README.md in this folder explains each.

A score must be the fraction's own float, bit for bit. Only the surface Dice may be 1e-6 off: MONAI divides in
float32.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from drawings import Bool, drawn, explained, small_masks
from hypothesis import given, settings

from pvs_model.evaluation.metrics import (
    SETS,
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
)


@dataclass(frozen=True)
class Case:
    """A drawing and all that is to be found in it; ``-`` where a score has no value.

    Attributes:
        counts: voxels of truth, of prediction, shared; clusters of truth, of prediction; touched, touching; matched.
        official: dice, avd, avd_capped, recall, precision.
        detection: recall, precision, f1, then the same matched one to one.
        volume: truth, predicted, signed, absolute, symmetric difference (mm3); surface Dice.
        voxels: dice, iou, sensitivity, ppv.
    """

    name: str
    drawing: str
    counts: str
    official: str
    detection: str
    volume: str
    voxels: str
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def expected(self) -> dict[str, dict[str, Fraction | None]]:
        texts = {name: getattr(self, name).split() for name in SETS}
        return {
            name: {s: None if t == "-" else Fraction(t) for s, t in zip(scores, texts[name], strict=True)}
            for name, scores in SETS.items()
        }

    def overlap(self) -> Overlap:
        return Overlap(*map(int, self.counts.split()))


CASES = [
    Case(
        "The truth itself",
        """
##... | ##...
..... | .....
...#. | ...#.
""",
        counts="3 3 3  2 2  2 2  2",
        official="1 0 0 1 1",
        detection="1 1 1  1 1 1",
        volume="3 3 0 0 0  1",
        voxels="1 1 1 1",
    ),
    Case(
        "Shifted by one",
        """
###. | .###
""",
        counts="3 3 2  1 1  1 1  1",
        official="2/3 0 0 1 1",
        detection="1 1 1  1 1 1",
        volume="3 3 0 0 2  1",
        voxels="2/3 1/2 2/3 2/3",
    ),
    Case(
        "Shifted by two",
        """
###.. | ..###
""",
        counts="3 3 1  1 1  1 1  1",
        official="1/3 0 0 1 1",
        detection="1 1 1  1 1 1",
        volume="3 3 0 0 4  2/3",
        voxels="1/3 1/5 1/3 1/3",
    ),
    Case(
        "Some found, some missed, some invented",
        """
###..... | .###....
........ | .......#
.#...... | .#......
..#....# | ........
""",
        counts="6 5 3  3 3  2 2  2",
        official="6/11 1/6 1/6 2/3 2/3",
        detection="2/3 2/3 2/3  2/3 2/3 2/3",
        volume="6 5 -1 1 5  8/11",
        voxels="6/11 3/8 1/2 3/5",
    ),
    Case(
        "One joined over two",
        """
#...# | #####
""",
        counts="2 5 2  2 1  2 1  1",
        official="4/7 3/2 1 1 2",
        detection="1 1 1  1/2 1 2/3",
        volume="2 5 3 3 3  6/7",
        voxels="4/7 2/5 1 2/5",
    ),
    Case(
        "Two over one",
        """
##### | #...#
""",
        counts="5 2 2  1 2  1 2  1",
        official="4/7 3/5 3/5 1 1/2",
        detection="1 1 1  1 1/2 2/3",
        volume="5 2 -3 3 3  6/7",
        voxels="4/7 2/5 2/5 1",
    ),
    Case(
        "A false one behind a precision of 1",
        """
#.#.... | ###...#
""",
        counts="2 4 2  2 2  2 1  1",
        official="2/3 1 1 1 1",
        detection="1 1/2 2/3  1/2 1/2 1/2",
        volume="2 4 2 2 2  5/6",
        voxels="2/3 1/2 1 1/2",
    ),
    Case(
        "Five guesses, one hit",
        """
#........ | #.#.#.#.#
""",
        counts="1 5 1  1 5  1 1  1",
        official="1/3 4 1 1 1/5",
        detection="1 1/5 1/3  1 1/5 1/3",
        volume="1 5 4 4 4  1/3",
        voxels="1/3 1/5 1 1/5",
    ),
    Case(
        "Clusters by corners",
        """
#.. | #..
.#. | ...
..# | ..#
""",
        counts="3 2 2  1 2  1 2  1",
        official="4/5 1/3 1/3 1 1/2",
        detection="1 1 1  1 1/2 2/3",
        volume="3 2 -1 1 1  4/5",
        voxels="4/5 2/3 2/3 1",
    ),
    Case(
        "Diagonal chains in space",
        """
#.. ... ... | ... ... #..
... .#. ... | ... .#. ...
... ... ..# | ..# ... ...
""",
        counts="3 3 1  1 1  1 1  1",
        official="1/3 0 0 1 1",
        detection="1 1 1  1 1 1",
        volume="3 3 0 0 4  1/3",
        voxels="1/3 1/5 1/3 1/3",
    ),
    Case(
        "Beside by a face",
        """
#. | .#
""",
        counts="1 1 0  1 1  0 0  0",
        official="0 0 0 0 0",
        detection="0 0 0  0 0 0",
        volume="1 1 0 0 2  1",
        voxels="0 0 0 0",
    ),
    Case(
        "Beside by an edge",
        """
#. | ..
.. | .#
""",
        counts="1 1 0  1 1  0 0  0",
        official="0 0 0 0 0",
        detection="0 0 0  0 0 0",
        volume="1 1 0 0 2  0",
        voxels="0 0 0 0",
    ),
    Case(
        "Beside by a corner",
        """
#. .. | .. ..
.. .. | .. .#
""",
        counts="1 1 0  1 1  0 0  0",
        official="0 0 0 0 0",
        detection="0 0 0  0 0 0",
        volume="1 1 0 0 2  0",
        voxels="0 0 0 0",
    ),
    Case(
        "Empty truth",
        """
... | #.#
""",
        counts="0 2 0  0 2  0 0  0",
        official="0 - 1 0 0",
        detection="- 0 0  - 0 0",
        volume="0 2 2 2 2  0",
        voxels="0 0 - 0",
    ),
    Case(
        "Empty prediction",
        """
#.# | ...
""",
        counts="2 0 0  2 0  0 0  0",
        official="0 1 1 0 0",
        detection="0 - 0  0 - 0",
        volume="2 0 -2 2 2  0",
        voxels="0 0 0 -",
    ),
    Case(
        "Both empty",
        """
... | ...
""",
        counts="0 0 0  0 0  0 0  0",
        official="- - 1 0 0",
        detection="- - -  - - -",
        volume="0 0 0 0 0  -",
        voxels="- - - -",
    ),
    Case(
        "No prediction",
        """
#.# | ???
""",
        counts="2 0 0  2 0  0 0  0",
        official="0 1 1 0 0",
        detection="0 0 0  0 0 0",
        volume="2 0 -2 2 2  0",
        voxels="0 0 0 0",
    ),
    Case(
        "No prediction of an empty truth",
        """
... | ???
""",
        counts="0 0 0  0 0  0 0  0",
        official="0 1 1 0 0",
        detection="0 0 0  0 0 0",
        volume="0 0 0 0 0  0",
        voxels="0 0 0 0",
    ),
    Case(
        "Everything predicted",
        """
... | ###
.#. | ###
... | ###
""",
        counts="1 9 1  1 1  1 1  1",
        official="1/5 8 1 1 1",
        detection="1 1 1  1 1 1",
        volume="1 9 8 8 8  3/5",
        voxels="1/5 1/9 1 1/9",
    ),
    Case(
        "An IoU of 1 in 10",
        """
########## | #.........
""",
        counts="10 1 1  1 1  1 1  1",
        official="2/11 9/10 9/10 1 1",
        detection="1 1 1  1 1 1",
        volume="10 1 -9 9 9  3/11",
        voxels="2/11 1/10 1/10 1",
    ),
    Case(
        "An IoU of 1 in 11",
        """
########### | #..........
""",
        counts="11 1 1  1 1  1 1  0",
        official="1/6 10/11 10/11 1 1",
        detection="1 1 1  0 0 0",
        volume="11 1 -10 10 10  1/4",
        voxels="1/6 1/11 1/11 1",
    ),
    Case(
        "An IoU of 3 in 30",
        """
######.... | .....#####
######.... | .....#####
######.... | .....#####
.......... | ..........
""",
        counts="18 15 3  1 1  1 1  1",
        official="2/11 1/6 1/6 1 1",
        detection="1 1 1  1 1 1",
        volume="18 15 -3 3 27  4/11",
        voxels="2/11 1/10 1/6 1/5",
    ),
    Case(
        "An IoU of 3 in 31",
        """
######.... | .....#####
######.... | .....#####
######.... | .....#####
#......... | ..........
""",
        counts="19 15 3  1 1  1 1  0",
        official="3/17 4/19 4/19 1 1",
        detection="1 1 1  0 0 0",
        volume="19 15 -4 4 28  6/17",
        voxels="3/17 3/31 3/19 1/5",
    ),
    Case(
        "Where a greedy choice fails",
        """
######.# | ##.#####
""",
        counts="7 7 6  2 2  2 2  2",
        official="6/7 0 0 1 1",
        detection="1 1 1  1 1 1",
        volume="7 7 0 0 2  1",
        voxels="6/7 3/4 6/7 6/7",
    ),
    Case(
        "One over two beside two over one",
        """
#.#.### | ###.#.#
""",
        counts="5 5 4  3 3  3 3  2",
        official="4/5 0 0 1 1",
        detection="1 1 1  2/3 2/3 2/3",
        volume="5 5 0 0 2  1",
        voxels="4/5 2/3 4/5 4/5",
    ),
    Case(
        "A region that cuts a cluster in two",
        """
##### | ##... | ##.##
""",
        counts="4 2 2  2 1  1 1  1",
        official="2/3 1/2 1/2 1/2 1",
        detection="1/2 1 2/3  1/2 1 2/3",
        volume="4 2 -2 2 2  2/3",
        voxels="2/3 1/2 1/2 1",
    ),
    Case(
        "A region that cuts away the touch",
        """
###... | ..#### | ##.###
""",
        counts="2 3 0  1 1  0 0  0",
        official="0 1/2 1/2 0 0",
        detection="0 0 0  0 0 0",
        volume="2 3 1 1 5  0",
        voxels="0 0 0 0",
    ),
    Case(
        "A region that leaves nothing",
        """
#.. | ##. | ..#
""",
        counts="0 0 0  0 0  0 0  0",
        official="- - 1 0 0",
        detection="- - -  - - -",
        volume="0 0 0 0 0  -",
        voxels="- - - -",
    ),
    Case(
        "Slices of 3 mm",
        """
## ## | ## ..
""",
        counts="4 2 2  1 1  1 1  1",
        official="2/3 1/2 1/2 1 1",
        detection="1 1 1  1 1 1",
        volume="12 6 -6 6 6  2/3",
        voxels="2/3 1/2 1/2 1",
        spacing_mm=(1.0, 1.0, 3.0),
    ),
    Case(
        "A step in the slice, a step to the next",
        """
#...# ..... | .#... ....#
""",
        counts="2 2 0  2 2  0 0  0",
        official="0 0 0 0 0",
        detection="0 0 0  0 0 0",
        volume="6 6 0 0 12  1/2",
        voxels="0 0 0 0",
        spacing_mm=(1.0, 1.0, 3.0),
    ),
    Case(
        "A neighbour at 1.5 mm",
        """
#. | .#
""",
        counts="1 1 0  1 1  0 0  0",
        official="0 0 0 0 0",
        detection="0 0 0  0 0 0",
        volume="3/2 3/2 0 0 3  0",
        voxels="0 0 0 0",
        spacing_mm=(1.0, 1.5, 1.0),
    ),
    Case(
        "Two steps of 0.5 mm",
        """
#... | ..##
""",
        counts="1 2 0  1 1  0 0  0",
        official="0 1 1 0 0",
        detection="0 0 0  0 0 0",
        volume="1/4 1/2 1/4 1/4 3/4  2/3",
        voxels="0 0 0 0",
        spacing_mm=(0.5, 0.5, 1.0),
    ),
    Case(
        "The inside of a thick tube is no surface",
        """
##### ##### ##### ##### ##### | ..... ..... ..... ..... .....
##### ##### ##### ##### ##### | ..... ..... ..... ..... .....
##### ##### ##### ##### ##### | ..... ..... ..#.. ..... .....
##### ##### ##### ##### ##### | ..... ..... ..... ..... .....
##### ##### ##### ##### ##### | ..... ..... ..... ..... .....
""",
        counts="125 1 1  1 1  1 1  0",
        official="1/63 124/125 124/125 1 1",
        detection="1 1 1  0 0 0",
        volume="125 1 -124 124 124  0",
        voxels="1/63 1/125 1/125 1",
    ),
    Case(
        "A hole",
        """
### ### ### | ### ### ###
### ### ### | ### #.# ###
### ### ### | ### ### ###
""",
        counts="27 26 26  1 1  1 1  1",
        official="52/53 1/27 1/27 1 1",
        detection="1 1 1  1 1 1",
        volume="27 26 -1 1 1  1",
        voxels="52/53 26/27 26/27 1",
    ),
    Case(
        "A mask that fills the image",
        """
### ### ### | ### ... ...
### ### ### | ### ... ...
### ### ### | ### ... ...
""",
        counts="27 9 9  1 1  1 1  1",
        official="1/2 2/3 2/3 1 1",
        detection="1 1 1  1 1 1",
        volume="27 9 -18 18 18  26/35",
        voxels="1/2 1/3 1/3 1",
    ),
    Case(
        "Opposite edges of the image",
        """
#.# | ...
... | ...
#.# | #.#
""",
        counts="4 2 2  4 2  2 2  2",
        official="2/3 1/2 1/2 1/2 1",
        detection="1/2 1 2/3  1/2 1 2/3",
        volume="4 2 -2 2 2  2/3",
        voxels="2/3 1/2 1/2 1",
    ),
]
by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@by_name
def test_scores_are_the_fractions_of_the_drawing(case: Case) -> None:
    masks = drawn(case.drawing)
    if masks.prediction is None:
        counts, sets = penalty_scores(masks.truth, case.spacing_mm)
    else:
        counts, sets = all_sets(masks.prediction, masks.truth, case.spacing_mm)
    assert counts == case.overlap()
    expected = case.expected()
    assert {name: tuple(values) for name, values in sets.items()} == SETS
    surface, by_hand = sets["volume"].pop("surface_dice_1mm"), expected["volume"].pop("surface_dice_1mm")
    assert surface == (None if by_hand is None else pytest.approx(float(by_hand), rel=1e-6))
    for name, scores in expected.items():
        assert sets[name] == {s: None if exact is None else float(exact) for s, exact in scores.items()}, name
        assert all(value is None or type(value) is float for value in sets[name].values())


def test_the_readme_shows_and_explains_every_drawing() -> None:
    sections = explained(Path(__file__).parent / "README.md")
    assert list(sections) == [case.name for case in CASES]
    for case in CASES:
        drawing, said = sections[case.name]
        assert drawing == case.drawing.strip(), case.name
        o = case.overlap()
        assert said.strip().startswith(
            f"T {o.reference_voxels}, P {o.predicted_voxels}, shared {o.shared_voxels};"
            f" clusters {o.reference_clusters} and {o.predicted_clusters},"
            f" touched {o.detected_reference_clusters} and {o.true_positive_clusters}, matched {o.matched}."
        ), case.name


# The official set once more, from the formulas, one cluster after the other.


def slow_clusters(mask: Bool) -> list[set[tuple[int, ...]]]:
    """The 26-connected components as sets of voxels: each grown from a seed until nothing is left beside it."""
    left = {tuple(map(int, voxel)) for voxel in np.argwhere(mask != 0)}
    steps = list(itertools.product((-1, 0, 1), repeat=3))
    clusters = []
    while left:
        seed = left.pop()
        cluster, edge = {seed}, [seed]
        while edge:
            at = edge.pop()
            beside = {tuple(a + b for a, b in zip(at, step, strict=True)) for step in steps} & left
            left -= beside
            cluster |= beside
            edge += beside
        clusters.append(cluster)
    return clusters


def slow_official(prediction: Bool, truth: Bool) -> Values:
    real, guessed = slow_clusters(truth), slow_clusters(prediction)
    true_voxels, guessed_voxels = set().union(*real), set().union(*guessed)
    touched = 0
    for cluster in real:
        if cluster & guessed_voxels:
            touched += 1
    values = {
        "dice": divided(2 * len(true_voxels & guessed_voxels), len(true_voxels) + len(guessed_voxels)),
        "avd": divided(abs(len(guessed_voxels) - len(true_voxels)), len(true_voxels)),
        "recall": touched / len(real) if real else 0.0,
        "precision": touched / len(guessed) if guessed else 0.0,
    }
    values["avd_capped"] = min(1, values["avd"])  # of a NaN, too: nothing is below 1 that compares with nothing
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def divided(part: int, whole: int) -> float:
    """As numpy divides: 0 / 0 is NaN, and any other number over 0 is infinity."""
    if whole:
        return part / whole
    return math.inf if part else math.nan


@by_name
def test_the_slow_way_agrees_with_the_drawings(case: Case) -> None:
    masks = drawn(case.drawing)
    if masks.prediction is not None:
        expected = case.expected()["official"]
        assert slow_official(masks.prediction, masks.truth) == {
            name: None if exact is None else float(exact) for name, exact in expected.items()
        }


@given(small_masks(3))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_official_set_is_the_slow_way_on_any_masks(three: tuple[Bool, Bool, Bool]) -> None:
    prediction, truth, region = three
    assert official(overlap(prediction, truth)) == slow_official(prediction, truth)
    prediction, truth = prediction & region, truth & region
    assert official(overlap(prediction, truth)) == slow_official(prediction, truth)


# What no drawing shows


def test_components_join_by_corners_and_carry_labels() -> None:
    mask = drawn("#.. ... | ... ...\n.#. ... | ... ...\n... ..# | ... ...\n#.. ... | ... ...").truth
    labels, count = clusters(mask)
    assert count == 2 and labels.shape == mask.shape and set(np.unique(labels)) == {0, 1, 2}
    assert labels[0, 0, 0] == labels[1, 1, 0] == labels[2, 2, 1] != labels[3, 0, 0]
    assert np.array_equal(labels != 0, mask)
    assert clusters(np.zeros((2, 2, 2), bool))[1] == 0


def test_f1_is_rounded_once() -> None:
    """The harmonic mean of two rounded ratios would often be a bit off: 1 and 1/5 gave 0.33333333333333337."""
    for t, p in itertools.product(range(1, 9), repeat=2):
        for touched, touching in itertools.product(range(1, t + 1), range(1, p + 1)):
            recall, precision = Fraction(touched, t), Fraction(touching, p)
            scores = detection(Overlap(99, 99, 9, t, p, touched, touching, matched=0))
            assert scores["f1"] == float(2 * recall * precision / (recall + precision)), (recall, precision)


@pytest.mark.parametrize("spacing", [1 - 6e-8, 1 + 1.2e-7, 1.00001])
def test_a_millimetre_may_be_rounded(spacing: float) -> None:
    """Headers hold float32, and an oblique affine's columns are seldom exactly 1 mm long."""
    masks = drawn("#. | .#")
    assert masks.prediction is not None
    assert surface_dice(masks.prediction, masks.truth, (spacing,) * 3) == 1
    assert surface_dice(masks.prediction, masks.truth, (1.001,) * 3) == 0


def test_dice_alone() -> None:
    masks = drawn("###. | .###")
    assert masks.prediction is not None
    assert dice(masks.prediction, masks.truth) == 2 / 3
    assert math.isnan(dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)))

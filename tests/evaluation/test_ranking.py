"""The challenge's ranking: the paper's tables, examples worked by hand, laws."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from challenge_tables import PRINTED_RANKS, SCORES, TABLE_5
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.evaluation.ranking import METRICS, Ranking, Score, ScoresError, rank
from pvs_model.evaluation.significance import holm, significance
from pvs_model.evaluation.stability import stability
from pvs_model.reports.ranking_plot import PlotError, plot_stability

#: What our scheme makes of Tables 6 and 7; Table 5 was made from the scores themselves, before rounding.
OURS = {
    "BIG_AEHRC": (2.0, 1.0, 1.5),
    "CCNU_CS_24": (4.75, 2.75, 3.75),
    "SHIVA": (4.875, 3.5, 4.1875),
    "HufsAim": (4.5, 4.0, 4.25),
    "nic-vicorob": (3.625, 5.5, 4.5625),
    "bear_walker": (7.25, 4.25, 5.75),
    "GDVL": (10.0, 7.0, 8.5),
    "thefridge": (3.75, None, None),
    "AbdulQayyum": (6.25, None, None),
    "umb_zw": (8.0, None, None),
}


def score(team: str, case: str | None, *values: float | None, region: str = "CSO", phase: str = "test") -> Score:
    """Recall, precision, Dice and AVD; one value stands for (v, v, v, 1 - v)."""
    if len(values) == 1:
        v = values[0]
        values = (v, v, v, None if v is None else 1 - v)
    return Score(team, phase, region, case, *values)


def ranks_of(ranking: Ranking, phase: int = 0) -> dict[str, list[float]]:
    p = ranking.phases[phase]
    return {team: p.ranks[t].tolist() for t, team in enumerate(p.teams)}


# ---- the paper --------------------------------------------------------------------------------------------------


def test_tables_6_and_7_give_table_5() -> None:
    ranking = rank(SCORES)
    assert [p.phase for p in ranking.phases] == ["validation", "test"]
    assert [s.team for s in ranking.rows] == list(TABLE_5)  # the same order, to the last line
    assert [s.position for s in ranking.rows] == [1, 2, 3, 4, 5, 6, 7, None, None, None]
    for s in ranking.rows:
        ranks = (*s.gross, s.final)
        assert ranks == OURS[s.team]
        for ours, printed in zip(ranks, TABLE_5[s.team], strict=True):
            assert (ours is None) == (printed is None)
            assert ours is None or abs(ours - printed) <= 0.25


def test_ranks_within_regions_are_those_in_brackets() -> None:
    """Up to means that are equal as printed: there, the ranks in brackets are some order of the shared ones."""
    for phase in rank(SCORES).phases:
        printed = PRINTED_RANKS[phase.phase]
        for r, region in enumerate(phase.regions):
            for m in range(len(METRICS)):
                means, ours = phase.region_means[:, r, m], phase.region_ranks[:, r, m]
                theirs = np.array([printed[team, region][m] for team in phase.teams], float)
                for mean in set(means):
                    assert ours[means == mean].sum() == theirs[means == mean].sum(), (phase.phase, region, METRICS[m])
                    assert len(set(ours[means == mean])) == 1


# ---- by hand ----------------------------------------------------------------------------------------------------


def by_hand() -> list[Score]:
    """Three teams, two regions, two cases; B lacks case 2 in both regions.

    ======  ==============  ==============  ==============  ==============
    means   recall          precision       Dice            AVD
    ======  ==============  ==============  ==============  ==============
    A CSO   (.6 + .4) / 2   (.5 + .5) / 2   (.8 + .6) / 2   (.2 + .4) / 2
    A BG    (.6 + .6) / 2   (.7 + .5) / 2   (.9 + .7) / 2   (.0 + .2) / 2
    A       .55             .55             .75             .2
    B CSO   (.8 + 0) / 2    (1.2 + 0) / 2   (.9 + 0) / 2    (.1 + 1) / 2
    B BG    (1.0 + 0) / 2   (1.0 + 0) / 2   (.9 + 0) / 2    (.1 + 1) / 2
    B       .45             .55             .45             .55
    C CSO   (.5 + .5) / 2   (.1 + .3) / 2   (.8 + .8) / 2   (.5 + .3) / 2
    C BG    (.6 + .6) / 2   (.5 + .1) / 2   (.7 + .7) / 2   (.7 + .7) / 2
    C       .55             .25             .75             .55
    ranks   A 1.5 B 3 C 1.5 A 1.5 B 1.5 C 3 A 1.5 B 3 C 1.5 A 1 B 2.5 C 2.5
    ======  ==============  ==============  ==============  ==============
    """
    return [
        score("A", "1", 0.6, 0.5, 0.8, 0.2),
        score("A", "2", 0.4, 0.5, 0.6, 0.4),
        score("A", "1", 0.6, 0.7, 0.9, 0.0, region="BG"),
        score("A", "2", 0.6, 0.5, 0.7, 0.2, region="BG"),
        score("B", "1", 0.8, 1.2, 0.9, 0.1),
        score("B", "1", 1.0, 1.0, 0.9, 0.1, region="BG"),
        score("C", "1", 0.5, 0.1, 0.8, 0.5),
        score("C", "2", 0.5, 0.3, 0.8, 0.3),
        score("C", "1", 0.6, 0.5, 0.7, 0.7, region="BG"),
        score("C", "2", 0.6, 0.1, 0.7, 0.7, region="BG"),
    ]


def test_three_teams_with_ties_and_a_missing_case() -> None:
    ranking = rank(by_hand())
    (phase,) = ranking.phases
    assert phase.means == pytest.approx(
        np.array([[0.55, 0.55, 0.75, 0.2], [0.45, 0.55, 0.45, 0.55], [0.55, 0.25, 0.75, 0.55]])
    )
    assert ranks_of(ranking) == {"A": [1.5, 1.5, 1.5, 1], "B": [3, 1.5, 3, 2.5], "C": [1.5, 3, 1.5, 2.5]}
    assert [(s.team, s.position, s.final) for s in ranking.rows] == [("A", 1, 1.375), ("C", 2, 2.125), ("B", 3, 2.5)]
    assert phase.cases == 2
    assert len(ranking.warnings) == 2  # one per region
    assert ranking.warnings[0] == "phase test, CSO: B lacks 1 of 2 cases, which get the worst scores: 2"


def test_ranks_within_a_region_by_hand() -> None:
    (phase,) = rank(by_hand()).phases
    cso = phase.regions.index("CSO")
    assert phase.region_ranks[:, cso].tolist() == [[1.5, 2, 2, 1], [3, 1, 3, 3], [1.5, 3, 1, 2]]


def test_phases_count_alike_whatever_their_cases() -> None:
    scores = [score("A", str(n), 0.5, phase="validation") for n in range(9)]
    scores += [score("B", str(n), 0.6, phase="validation") for n in range(9)]
    scores += [score("A", "1", 0.9), score("B", "1", 0.1), score("Late", "1", 0.2)]
    ranking = rank(scores)
    results = {s.team: (s.gross, s.final, s.position) for s in ranking.rows}
    assert results == {"A": ((2, 1), 1.5, 1), "B": ((1, 3), 2, 2), "Late": ((None, 2), None, None)}
    assert any("Late has no final rank" in w and "validation" in w for w in ranking.warnings)


def test_rounding_makes_no_difference_between_equal_means() -> None:
    """0.1 + 0.2 is not 0.3 in binary; the means tie all the same."""
    scores = [score("A", "1", 0.1), score("A", "2", 0.2), score("B", "1", 0.3), score("B", "2", 0.0)]
    assert ranks_of(rank(scores)) == {"A": [1.5] * 4, "B": [1.5] * 4}


def test_a_score_without_a_value_is_left_out_of_its_mean() -> None:
    scores = [score("A", "1", 0.5, 0.5, None, 0.5), score("A", "2", 0.5, 0.5, 0.6, 0.5)]
    scores += [score("B", "1", 0.5, 0.5, 0.9, 0.5), score("B", "2", 0.5, 0.5, 0.2, 0.5)]
    ranking = rank(scores)
    assert ranking.phases[0].means[:, 2] == pytest.approx([0.6, 0.55])
    assert ranking.warnings == ("phase test: 1 scores of Dice have no value and are left out",)


def test_without_any_value_the_worst_stands_for_the_mean() -> None:
    ranking = rank([score("A", "1", None, None, None, None), score("B", "1", 0.1)])
    assert ranking.phases[0].means[0].tolist() == [0, 0, 0, 1]
    json.dumps(ranking.as_json(), allow_nan=False)


def test_equal_teams_share_every_rank_and_the_first_place() -> None:
    scores = [score(team, case, 0.4) for team in "ABCD" for case in ("1", "2", "3")]
    ranking = rank(scores)
    assert all(ranks == [2.5] * 4 for ranks in ranks_of(ranking).values())
    assert [(s.position, s.final) for s in ranking.rows] == [(1, 2.5)] * 4
    assert significance(scores).phases[0].total.tolist() == [0] * 4
    result = stability(scores, 20)
    assert result.frequency[:, 0].tolist() == [1] * 4
    assert result.tau is None
    assert "all teams tie" in result.text()
    json.dumps(result.as_json(), allow_nan=False)


def test_one_team_alone_is_first() -> None:
    scores = [score("A", "1", 0.4), score("A", "2", 0.5)]
    assert rank(scores).rows[0].final == 1
    assert significance(scores).phases[0].total.tolist() == [0]
    assert stability(scores, 5).frequency.tolist() == [[1]]


# ---- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ([], "got none"),
        ([score("A", "1", 0.5), score("A", "1", 0.6)], "A, phase test, region CSO, case 1.*twice"),
        ([score("A", "1", 0.5), score("B", None, 0.6)], "got both"),
        (
            [score("A", "1", 0.5), score("A", "1", 0.5, region="BG"), score("B", "1", 0.5)],
            "team B: expected regions CSO, BG, got no scores of BG",
        ),
        ([score("A", "1", 0.5), score("B", "one", 0.5)], "team A.*such as 1, one.*none of them"),
    ],
)
def test_scores_that_cannot_be_ranked_are_refused(scores: list[Score], said: str) -> None:
    with pytest.raises(ScoresError, match=said):
        rank(scores)


@pytest.mark.parametrize(
    "values", [(1.1, 0, 0, 0), (0, -0.1, 0, 0), (0, 0, math.inf, 0), (0, 0, 0, 1.5), (0, math.inf, 0, 0),
               (math.nan, 0, 0, 0)]
)  # fmt: skip
def test_a_score_out_of_range_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ScoresError, match="A, phase test, region CSO, case 1: expected"):
        score("A", "1", *values)


def test_precision_may_pass_one() -> None:
    assert score("A", "1", 0.5, 1.7, 0.5, 0.5).precision == 1.7


def test_means_cannot_be_tested_or_resampled() -> None:
    for function in (significance, stability):
        with pytest.raises(ScoresError, match="expected scores by case.*got means"):
            function(SCORES)


def test_a_region_that_nobody_has_in_a_case_is_not_missing() -> None:
    scores = [score(team, case, 0.5) for team in "AB" for case in ("1", "2")]
    scores += [score(team, "1", 0.5, region="BG") for team in "AB"]
    assert rank(scores).warnings == ()


# ---- laws -------------------------------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> list[Score]:
    """A few teams with scores in tenths, so that ties are common; some without a value."""
    value = st.one_of(st.integers(0, 10).map(lambda n: n / 10), st.none())
    phases = draw(st.sampled_from([("test",), ("validation", "test")]))
    regions = draw(st.sampled_from([("CSO",), ("CSO", "BG")]))
    teams, cases = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    return [
        Score(f"T{t}", phase, region, f"c{c}", *(draw(value) for _ in METRICS))
        for phase in phases
        for t in range(teams)
        for c in range(cases)
        for region in regions
    ]


LAWS = settings(max_examples=60, deadline=None)


@LAWS
@given(tables(), st.randoms(use_true_random=False))
def test_order_and_names_do_not_matter(scores: list[Score], random: object) -> None:
    shuffled = [
        replace(s, team={"T0": "z", "T1": "m", "T2": "q", "T3": "a"}[s.team], case=f"{5 - int(s.case[1:])}")
        for s in scores
    ]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    back = {"z": "T0", "m": "T1", "q": "T2", "a": "T3"}
    before, after = rank(scores), rank(shuffled)
    for phase in range(len(before.phases)):
        assert ranks_of(before, phase) == {back[team]: r for team, r in ranks_of(after, phase).items()}
    finals = {s.team: (s.final, s.position) for s in before.rows}
    assert finals == {back[s.team]: (s.final, s.position) for s in after.rows}
    wins = [
        {names(team): n for p in result.phases for team, n in zip(p.teams, p.total.tolist(), strict=True)}
        for result, names in ((significance(scores), str), (significance(shuffled), back.__getitem__))
    ]
    assert wins[0] == wins[1]


@LAWS
@given(tables())
def test_ranks_of_a_metric_sum_to_the_same(scores: list[Score]) -> None:
    for phase in rank(scores).phases:
        k = len(phase.teams)
        assert (phase.ranks.sum(axis=0) == k * (k + 1) / 2).all()
        assert (phase.region_ranks.sum(axis=0) == k * (k + 1) / 2).all()


@LAWS
@given(tables(), st.floats(0, 1))
def test_better_scores_never_worsen_a_rank(scores: list[Score], share: float) -> None:
    def towards(value: float | None, best: float) -> float | None:
        return None if value is None else min(1.0, value + share * (best - value))

    improved = [
        Score(
            s.team, s.phase, s.region, s.case,
            towards(s.recall, 1), towards(s.precision, 1), towards(s.dice, 1), towards(s.avd, 0),
        )
        if s.team == "T0"
        else s
        for s in scores
    ]  # fmt: skip
    before, after = (next(s for s in rank(table).rows if s.team == "T0") for table in (scores, improved))
    assert after.final <= before.final
    assert after.position <= before.position


# ---- significance -----------------------------------------------------------------------------------------------


def ladder(cases: int, teams: str = "ABC") -> list[Score]:
    """Each team is better than the next by another amount in every case, and in all four metrics."""
    return [
        score(team, f"{c:02d}", 0.9 - 0.2 * t - 0.01 * (c % 7) * (t + 1) - 0.0001 * c)
        for t, team in enumerate(teams)
        for c in range(cases)
    ]


def test_obvious_wins_are_counted() -> None:
    """With 8 cases all in one direction p = 2 / 2^8 = 1 / 128."""
    (phase,) = significance(ladder(8)).phases
    assert phase.teams == ("A", "B", "C")
    assert phase.wins.tolist() == [[[2] * 4], [[1] * 4], [[0] * 4]]
    assert phase.total.tolist() == [8, 4, 0]
    assert phase.p[0, 1] == pytest.approx(np.full((1, 4), 1 / 128))
    assert (phase.p == phase.p.transpose(1, 0, 2, 3)).all()


def test_five_cases_can_show_nothing_and_six_can() -> None:
    """p = 2 / 2^5 = 1 / 16, above 0.05; 2 / 2^6 = 1 / 32, below."""
    few = significance(ladder(5))
    assert few.phases[0].total.tolist() == [0, 0, 0]
    assert few.phases[0].p[0, 1] == pytest.approx(np.full((1, 4), 1 / 16))
    assert "fewer than 6" in few.warnings[0]
    assert significance(ladder(6)).phases[0].total.tolist() == [8, 4, 0]


def test_only_the_metric_that_differs_wins() -> None:
    scores = [score("A", f"{c}", 0.5, 0.5, 0.5, 0.2 + 0.01 * c) for c in range(8)]
    scores += [score("B", f"{c}", 0.5, 0.5, 0.5, 0.3 + 0.02 * c) for c in range(8)]
    (phase,) = significance(scores).phases
    assert dict(zip(phase.teams, phase.wins[:, 0].tolist(), strict=True)) == {"A": [0, 0, 0, 1], "B": [0, 0, 0, 0]}


def test_pairs_without_a_value_are_left_out_of_the_test() -> None:
    scores = [replace(s, dice=None) if s.team == "B" and s.case in ("00", "01", "02") else s for s in ladder(8)]
    (phase,) = significance(scores).phases
    assert phase.p[0, 1, 0].tolist() == pytest.approx([1 / 128, 1 / 128, 2 / 2**5, 1 / 128])


def test_holm_by_hand() -> None:
    """Three equal p of 1/64 (7 cases): 3/64 for each, below 0.05. Of 1/32 (6 cases): 3/32, so that nobody wins."""
    for cases, corrected, total in ((7, 3 / 64, [8, 4, 0]), (6, 3 / 32, [0, 0, 0])):
        (phase,) = significance(ladder(cases), "holm").phases
        assert phase.p[0, 1] == pytest.approx(np.full((1, 4), corrected))
        assert phase.total.tolist() == total
    with pytest.raises(ValueError, match="expected a correction of none, holm, got bonferroni"):
        significance(ladder(6), "bonferroni")


def test_holm_steps_down() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


# ---- stability --------------------------------------------------------------------------------------------------


def noisy(teams: int = 4, cases: int = 12, phases: tuple[str, ...] = ("validation", "test")) -> list[Score]:
    generator = np.random.default_rng(1)
    return [
        Score(f"T{t}", phase, region, f"{c}", *np.clip(0.5 + 0.03 * t + 0.2 * generator.standard_normal(4), 0, 1))
        for phase in phases
        for t in range(teams)
        for c in range(cases)
        for region in ("CSO", "BG")
    ]


def test_clear_separation_never_moves() -> None:
    result = stability(ladder(10, "ABCD"), 200)
    assert result.teams == ("A", "B", "C", "D")
    assert result.frequency.tolist() == np.eye(4).tolist()
    assert result.low.tolist() == result.high.tolist() == [1, 2, 3, 4]
    assert (result.tau, result.tau_low, result.tau_high) == pytest.approx((1, 1, 1))


def test_a_seed_gives_the_same_again_in_any_order() -> None:
    scores = noisy()
    first, again, other = stability(scores, 100, 7), stability(scores[::-1], 100, 7), stability(scores, 100, 8)
    assert first.as_json() == again.as_json()
    assert first.as_json() != other.as_json()
    assert first.frequency.sum(axis=1) == pytest.approx(np.ones(4))
    assert 0 < first.frequency.max() < 1
    assert (first.low <= first.positions).all()


def test_a_thousand_resamples_of_ten_teams_and_fifty_cases_are_quick() -> None:
    result = stability(noisy(10, 50), 1000)
    assert result.frequency.shape == (10, 10)
    assert -1 <= result.tau_low <= result.tau <= result.tau_high <= 1


def test_a_resample_ranks_as_the_ranking_does() -> None:
    """Of one case, every resample is the sample itself."""
    scores = noisy(5, 1)
    result, full = stability(scores, 3), rank(scores)
    assert [s.team for s in full.rows] == list(result.teams)
    for row, standing in zip(result.frequency, full.rows, strict=True):
        assert row[standing.position - 1] == 1


def test_teams_of_one_phase_have_no_place_to_lose() -> None:
    scores = noisy() + [replace(s, team="Late") for s in noisy(1, phases=("test",))]
    assert "Late" not in stability(scores, 20).teams


def test_stability_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="1 resample or more"):
        stability(noisy(), 0)
    with pytest.raises(ScoresError, match="every phase"):
        stability([score("A", "1", 0.5), score("B", "1", 0.5, phase="validation")])


# ---- what is shown ----------------------------------------------------------------------------------------------


def test_texts_are_tables_of_even_lines() -> None:
    scores = [replace(s, team="a|b") if s.team == "T0" else s for s in noisy()]
    for result in (rank(scores), significance(scores), stability(scores, 20)):
        for block in result.text().split("\n\n"):
            lines = block.strip().splitlines()
            if lines[0].startswith("|"):
                assert len({len(line) for line in lines}) == 1
                assert "a\\|b" in block
        json.dumps(result.as_json(), allow_nan=False)


def test_the_text_shows_means_ranks_and_warnings() -> None:
    text = rank(by_hand()).text()
    assert "0.550 (1.5)" in text
    assert "| A    |     1 |       1.375 |      1.375 |" in text
    assert "Warning: phase test, BG: B lacks 1 of 2 cases" in text
    assert "### Phase test: mean (rank), 2 cases" in text


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_is_drawn_twice_the_same(ending: str, tmp_path: Path) -> None:
    result = stability(noisy(), 50)
    files = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    for file in files:
        plot_stability(result, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second
    assert first.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)


def test_the_plot_says_what_it_cannot_do(tmp_path: Path) -> None:
    result = stability(noisy(), 5)
    with pytest.raises(PlotError, match="ends in .png or .svg, got .gif"):
        plot_stability(result, tmp_path / "a.gif")

"""Volumes against visual scores and between repeats: published values, distributions known otherwise, laws."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from pvs_model.errors import PVSError
from pvs_model.evaluation.agreement_statistics import (
    dunnett_t3,
    intraclass,
    spearman,
    studentized_max_modulus_sf,
    variance_tests,
)
from pvs_model.evaluation.rater_agreement import Measurement, MeasurementsError, agree, read_measurements

#: Shrout & Fleiss 1979, Table 2: 6 targets, 4 judges.
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


# ---- Spearman ---------------------------------------------------------------------------------------------------


def test_spearman_with_ties_by_hand() -> None:
    """Ranks 1 2 3 4 and 1.5 1.5 3 4: their products of deviations sum to 4.5, squares to 5 and 4.5."""
    correlation = spearman([10, 20, 30, 40], [1, 1, 2, 3])
    assert correlation.n == 4
    assert correlation.rho == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    t = correlation.rho * math.sqrt(2 / (1 - correlation.rho**2))
    assert correlation.p == pytest.approx(2 * stats.t.sf(t, 2))


@pytest.mark.parametrize(("volumes", "scores"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2])])
def test_spearman_without_a_value(volumes: list[float], scores: list[float]) -> None:
    assert (spearman(volumes, scores).rho, spearman(volumes, scores).p) == (None, None)


def test_spearman_of_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="got 2 and 3"):
        spearman([1, 2], [1, 2, 3])


# ---- analysis of variance ---------------------------------------------------------------------------------------


def test_two_groups_are_students_and_welchs_t() -> None:
    a, b = [1.0, 2, 4, 7, 7], [3.0, 9, 12, 20, 21, 30]
    for comparison, t in zip(
        variance_tests([a, b]), (stats.ttest_ind(a, b), stats.ttest_ind(a, b, equal_var=False)), strict=True
    ):
        assert comparison.f == pytest.approx(t.statistic**2)
        assert comparison.df == pytest.approx((1, t.df))
        assert comparison.p == pytest.approx(t.pvalue)


def test_analysis_of_variance_by_hand() -> None:
    """Means 2, 4, 6: between 2 x 3 x 4 / 2 = 12, within (2 + 2 + 2) / 6 = 1."""
    classic, _ = variance_tests([[1, 2, 3], [3, 4, 5], [5, 6, 7]])
    assert (classic.f, classic.df) == (pytest.approx(12), (2, 6))


def test_without_variance_there_is_no_test() -> None:
    assert [t.f for t in variance_tests([[1, 1], [2, 2]])] == [None, None]
    classic, welch = variance_tests([[1, 1], [2, 3]])
    assert classic.f is not None
    assert welch.f is None
    with pytest.raises(ValueError, match="sizes"):
        variance_tests([[1, 2], [3]])


# ---- the studentised maximum modulus ----------------------------------------------------------------------------


@pytest.mark.parametrize("df", [1, 2.5, 5, 30, 1000, 1e6])
@pytest.mark.parametrize("x", [0, 0.1, 1, 2, 5, 20])
def test_of_one_comparison_it_is_students_t(x: float, df: float) -> None:
    expected = 2 * stats.t.sf(x, df)
    assert studentized_max_modulus_sf(x, 1, df) == pytest.approx(expected, rel=1e-8, abs=1e-55)


@pytest.mark.parametrize("comparisons", [1, 3, 15])
def test_of_infinite_df_it_is_sidaks(comparisons: int) -> None:
    for x in (0.5, 2.0, 4.0):
        expected = 1 - (1 - 2 * stats.norm.sf(x)) ** comparisons
        assert studentized_max_modulus_sf(x, comparisons, math.inf) == pytest.approx(expected)
        assert studentized_max_modulus_sf(x, comparisons, 1e9) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("comparisons", "df"), [(3, 4.2), (6, 10), (10, 20), (28, 6)])
def test_it_is_the_integral_over_s(comparisons: int, df: float) -> None:
    """The definition, by another rule: over S itself, with scipy's own density of chi."""
    for x in (0.5, 2.0, 3.5):
        inside, _ = integrate.quad(
            lambda s, x=x: (2 * stats.norm.cdf(x * s) - 1) ** comparisons
            * stats.chi.pdf(s, df, scale=1 / math.sqrt(df)), 0, 10, epsabs=1e-12, limit=200,
        )  # fmt: skip
        assert studentized_max_modulus_sf(x, comparisons, df) == pytest.approx(1 - inside, abs=1e-9)


def test_it_is_what_draws_give() -> None:
    generator = np.random.default_rng(0)
    draws, comparisons, df = 400_000, 6, 7.5
    s = np.sqrt(generator.chisquare(df, draws) / df)
    largest = np.abs(generator.standard_normal((draws, comparisons))).max(axis=1) / s
    for x in (1.0, 2.0, 3.0, 5.0):
        p = studentized_max_modulus_sf(x, comparisons, df)
        assert (largest > x).mean() == pytest.approx(p, abs=4.5 * math.sqrt(p * (1 - p) / draws))


def test_it_falls_with_x_and_df_and_grows_with_comparisons() -> None:
    xs = [studentized_max_modulus_sf(x, 6, 10) for x in np.linspace(0, 60, 40)]
    assert xs == sorted(xs, reverse=True)
    assert xs[0] == 1
    assert 0 < xs[-1] < 1e-9
    assert (
        studentized_max_modulus_sf(3, 6, 5)
        > studentized_max_modulus_sf(3, 6, 50)
        > studentized_max_modulus_sf(3, 3, 50)
    )
    with pytest.raises(ValueError, match="expected x >= 0"):
        studentized_max_modulus_sf(-1, 1, 1)


# ---- Dunnett's T3 -----------------------------------------------------------------------------------------------

FOUR = {
    1.0: [3.0, 4, 5, 5, 6, 8],
    2.0: [7.0, 9, 12, 10, 15, 8, 9],
    3.0: [8.0, 20, 31, 12, 25],
    4.0: [30.0, 34, 31, 39, 50, 44],
}


def test_two_groups_are_welchs_t() -> None:
    pair = {score: FOUR[score] for score in (1.0, 3.0)}
    (comparison,) = dunnett_t3(pair)
    welch = stats.ttest_ind(FOUR[3.0], FOUR[1.0], equal_var=False)
    assert (comparison.t, comparison.df, comparison.p) == pytest.approx((welch.statistic, welch.df, welch.pvalue))
    assert comparison.scores == (1, 3)
    assert comparison.difference == pytest.approx(np.mean(FOUR[3.0]) - np.mean(FOUR[1.0]))


def test_every_pair_is_between_welchs_t_and_bonferroni() -> None:
    comparisons = dunnett_t3(FOUR)
    assert [pair.scores for pair in comparisons] == list(combinations(sorted(FOUR), 2))
    for pair in comparisons:
        welch = stats.ttest_ind(FOUR[pair.scores[1]], FOUR[pair.scores[0]], equal_var=False)
        assert (pair.t, pair.df) == pytest.approx((welch.statistic, welch.df))
        assert welch.pvalue < pair.p <= 6 * welch.pvalue * (1 + 1e-9)


def test_beside_games_howell() -> None:
    """The two tests share t and df; T3 asks for a little more than Games-Howell, which is somewhat liberal."""
    howell = stats.tukey_hsd(*FOUR.values(), equal_var=False)
    names = list(FOUR)
    for pair in dunnett_t3(FOUR):
        a, b = (names.index(score) for score in pair.scores)
        assert pair.difference == pytest.approx(howell.statistic[b, a])
        assert howell.pvalue[a, b] * 0.99 < pair.p < 1.6 * howell.pvalue[a, b]


def test_one_group_without_variance_is_tested_two_are_not() -> None:
    one, both = dunnett_t3({1: [2, 2, 2], 2: [3, 4, 5]}), dunnett_t3({1: [2, 2, 2], 2: [3, 3, 3]})
    assert one[0].df == pytest.approx(2)
    assert one[0].p is not None
    assert (both[0].difference, both[0].t, both[0].p) == (1, None, None)
    with pytest.raises(ValueError, match="two values"):
        dunnett_t3({1: [1], 2: [1, 2]})


# ---- intraclass correlation -------------------------------------------------------------------------------------


def test_shrout_and_fleiss() -> None:
    coefficients = {c.form: c for c in intraclass(SHROUT_FLEISS)}
    assert [round(c.value, 2) for c in coefficients.values()] == [0.17, 0.29, 0.71]
    intervals = {"ICC(1,1)": (-0.133, 0.723), "ICC(2,1)": (0.019, 0.761), "ICC(3,1)": (0.342, 0.946)}
    for form, interval in intervals.items():
        assert (coefficients[form].low, coefficients[form].high) == pytest.approx(interval, abs=5e-4)
    assert (coefficients["ICC(1,1)"].f, coefficients["ICC(3,1)"].f) == pytest.approx((1.7947, 11.0272), abs=1e-4)
    assert (coefficients["ICC(1,1)"].df, coefficients["ICC(3,1)"].df) == ((5, 18), (5, 15))
    assert (coefficients["ICC(1,1)"].p, coefficients["ICC(3,1)"].p) == pytest.approx((0.16477, 0.00013457), rel=1e-3)


def test_perfect_shifted_and_no_agreement() -> None:
    assert [(c.value, c.low, c.high) for c in intraclass([[1, 1], [2, 2], [4, 4]])] == [(1, 1, 1)] * 3
    shifted = intraclass([[1, 2], [2, 3], [3, 4]])
    assert [c.value for c in shifted] == pytest.approx([0.6, 2 / 3, 1])
    opposite = intraclass([[1, 3], [2, 2], [3, 1]])
    # mean squares: between 0, repeats 0, rest 2; so -2 / (2 + 2 (0 - 2) / 3)
    assert [c.value for c in opposite] == pytest.approx([-1, -3, -1])
    for c in intraclass([[0.1] * 3] * 4):
        assert (c.value, c.low, c.high, c.f, c.p) == (None,) * 5


TABLES = st.integers(2, 4).flatmap(
    lambda k: st.lists(st.lists(st.integers(-20, 20), min_size=k, max_size=k), min_size=2, max_size=7)
)


@settings(max_examples=80, deadline=None)
@given(TABLES, st.permutations(range(7)), st.floats(0.1, 1000), st.floats(-100, 100))
def test_order_unit_and_offset_do_not_matter(
    table: list[list[int]], order: list[int], unit: float, offset: float
) -> None:
    x = np.array(table, float)
    rows, columns = ([i for i in order if i < n] for n in x.shape)
    before, after = intraclass(x), intraclass((x * unit + offset)[rows][:, columns])
    for a, b in zip(before, after, strict=True):
        assert (a.value is None) == (b.value is None)
        if a.value is not None:
            assert b.value == pytest.approx(a.value, abs=1e-6)
            assert a.value <= 1 + 1e-12
        if a.low is not None and a.high is not None and a.value is not None:
            assert a.low <= a.value + 1e-9
            assert a.value <= a.high + 1e-9


@pytest.mark.parametrize("table", [[[1, 2]], [[1], [2]], [1, 2, 3], [[1, math.nan], [2, 3]]])
def test_other_tables_are_refused(table: list[object]) -> None:
    with pytest.raises(ValueError, match="2 subjects or more x 2 repeats"):
        intraclass(table)


# ---- all together -----------------------------------------------------------------------------------------------


def measured() -> list[Measurement]:
    """Four score groups of 5 to 7 subjects and one of 2, in one of two scanners; repeats of some."""
    measurements = []
    for score, values in {**FOUR, 5.0: [60.0, 70]}.items():
        for n, volume in enumerate(values):
            subject, scanner = f"s{score:g}{n}", (("scanner", "ABC"[n % 2]),)
            measurements.append(Measurement(subject, volume, score, "BG", "0", scanner))
            measurements.append(Measurement(subject, volume + 1 + n % 3, None, "BG", "1", scanner))
            if n:
                measurements.append(Measurement(subject, volume - n, None, "BG", "2", scanner))
    return measurements


def test_agreement_of_everything() -> None:
    agreement = agree(measured())
    assert [(a.region, a.group, a.repeat) for a in agreement.against] == [
        ("BG", "all", "0"), ("BG", "scanner A", "0"), ("BG", "scanner B", "0")
    ]  # fmt: skip
    everyone, a, _ = agreement.against
    assert everyone.correlation.n == 26
    assert everyone.pairs == dunnett_t3(FOUR)
    assert everyone.variances == variance_tests(list(FOUR.values()))
    assert [(g.score, g.n, g.left_out) for g in everyone.groups][3:] == [(4, 6, False), (5, 2, True)]
    assert (
        "BG, 0: scores 5 (2) left out of the comparison of groups, which asks for 5 subjects each" in agreement.warnings
    )
    assert (a.variances, a.pairs) == ((), ())
    repeats = agreement.repeats[0]
    assert (repeats.repeats, repeats.n, len(repeats.left_out)) == (("0", "1", "2"), 21, 5)
    assert [c.form for c in repeats.correlations] == ["ICC(1,1)", "ICC(2,1)", "ICC(3,1)"]
    json.dumps(agreement.as_json(), allow_nan=False)


@settings(max_examples=10, deadline=None)
@given(st.permutations(measured()))
def test_the_order_of_measurements_does_not_matter(shuffled: list[Measurement]) -> None:
    actual, expected = agree(shuffled).as_json(), agree(measured()).as_json()
    assert json.loads(json.dumps(actual), parse_float=lambda x: round(float(x), 9)) == json.loads(
        json.dumps(expected), parse_float=lambda x: round(float(x), 9)
    )


def test_the_text_is_tables() -> None:
    text = agree(measured()).text()
    for part in ("Spearman's rho", "Dunnett's T3", "ICC(2,1)", "1 and 2", "< 0.001", "Warning: BG, 0: scores 5 (2)"):
        assert part in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(line) for line in block.strip().splitlines()}) == 1


def test_what_agreement_refuses_and_what_it_tells() -> None:
    with pytest.raises(MeasurementsError, match="got none"):
        agree([])
    with pytest.raises(MeasurementsError, match="one volume of a, BG, got two"):
        agree([Measurement("a", 1, 1, "BG"), Measurement("a", 2, 1, "BG")])
    assert "nothing to compare" in agree([Measurement("a", 1)]).text()
    assert "fewer than 2 subjects" in agree([Measurement("a", 1, repeat="x"), Measurement("a", 2, repeat="y")]).text()


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_file_of_measurements(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "Subject;Region;Time;Volume;Score;Scanner\na;BG;0;12.5;2;GE\na;BG;1;13;;GE\n\nb;BG;0;7;na;Philips\n"
    )
    expected = [
        Measurement("a", 12.5, 2, "BG", "0", (("scanner", "GE"),)),
        Measurement("a", 13, None, "BG", "1", (("scanner", "GE"),)),
        Measurement("b", 7, None, "BG", "0", (("scanner", "Philips"),)),
    ]
    assert read_measurements(path, ["Scanner"]) == expected
    path.write_text("case,PVS_mm3,rating,group\na,3,1,x\n")
    assert read_measurements(path, volume="pvs_mm3") == [Measurement("a", 3, 1, groups=(("group", "x"),))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subject,score\na,1\n", "expected columns volume, got subject, score"),
        ("subject,volume\na,1\n", "expected a column score, or repeat, or both"),
        ("subject,volume,score\na,,1\n", "line 2: expected a volume in column volume, got an empty cell"),
        ("subject,volume,score\na,1,two\n", "line 2: expected a number in column score, got two"),
        ("subject,volume,score\n,1,2\n", "line 2: expected a subject in column subject, got an empty cell"),
        ("subject,volume,score\na,1,2\na,2,2\n", "line 3: expected one volume of a, got another in .*line 2"),
    ],
)
def test_mistakes_in_a_file_are_told_in_a_sentence(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(PVSError, match=said) as caught:
        read_measurements(path)
    assert str(caught.value).startswith(str(path))


def test_a_grouping_column_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("subject,volume,score\na,1,2\n")
    with pytest.raises(MeasurementsError, match="expected columns scanner, got subject, volume, score"):
        read_measurements(path, ["scanner"])


# ---- files as spreadsheets write them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("subject;volume;score\nMüller;13,1;1\nb;1.013,5;2\nc;7;0\n", "utf-8-sig"),
        ("subject;volume;score;;\r\nMüller;13,1;1;;\r\nb;1013,5;2;;\r\nc;7;0;;\r\n;;;;\r\n", "cp1252"),
        ("sep=;\r\nsubject;volume;score\r\nMüller;13,1;1\r\nb;1013,5;2\r\nc;7;0\r\n", "utf-8"),
        ("subject\tvolume\tscore\nMüller\t13,1\t1\nb\t1013,5\t2\nc\t7\t0\n", "utf-16"),
        ("subject,volume,score\nMüller,13.1,1\nb,1013.5,2\nc,7,0\n", "utf-8"),
    ],
)
def test_tables_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(text.encode(encoding))
    measurements = [(m.subject, m.volume, m.score) for m in read_measurements(path)]
    assert measurements == [("Müller", 13.1, 1), ("b", 1013.5, 2), ("c", 7, 0)]


@pytest.mark.parametrize("text", ['subject,volume,score\na,"1,234",1\n', "subject;volume;score\na;1,234;1\nb;1.5;1\n"])
def test_a_comma_that_may_part_thousands_is_no_decimal_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(PVSError, match=r"line 2: expected a number in column volume, got 1,234"):
        read_measurements(path)


def test_our_own_table_with_a_column_of_scores(tmp_path: Path) -> None:
    from pvs_model.burden.measure import measure
    from pvs_model.burden.records import REGION_COLUMNS, region_values
    from pvs_model.evaluation.tables import csv_text

    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2, 2, 2:5], mask[6, 2, 2:4] = 1, 1
    sides = np.ones(mask.shape, np.uint8)
    sides[4:] = 2
    regions = {"BG": np.ones(mask.shape, bool)}
    burden = measure(mask, regions, np.eye(4), None, sides)
    rows = [{"case": f"c{k}", **region_values(burden, row)} for k in range(6) for row in burden.regions]
    header, *lines = csv_text(["case", *REGION_COLUMNS], rows).splitlines()
    path = tmp_path / "burden.csv"
    path.write_text("\n".join([f"{header},score", *(f"{line},{k % 3}" for k, line in enumerate(lines))]))
    measurements = read_measurements(path)
    assert {m.region for m in measurements} == {"BG", "BG left", "BG right", "all", "all left", "all right"}
    assert {m.volume for m in measurements if m.region == "BG"} == {5.0} and {m.subject for m in measurements} >= {
        "c0",
        "c5",
    }
    assert {m.volume for m in read_measurements(path, volume="pvs_count") if m.region == "BG left"} == {1.0}
    agree(measurements)

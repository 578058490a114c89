"""The page of an evaluation: complete, harmless whatever names it is given, and the same for the same report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pages import HOSTILE, Seen, between, check_accessible, check_policy

from pvs_model.evaluation import metrics
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation, Row, Summary, every_score, values_of
from pvs_model.reports.evaluation_report import LABELS, SET_NAMES, evaluation_report, write_evaluation_report
from pvs_model.reports.html import NO_VALUE, finished

WHEN = datetime(2025, 11, 2, 14, 5, tzinfo=UTC)
SPACING = (1.0, 1.0, 2.0)
Bool = npt.NDArray[np.bool_]


def mask(*voxels: tuple[int, int, int]) -> Bool:
    """(7, 7, 7), True at the voxels."""
    out = np.zeros((7, 7, 7), bool)
    for voxel in voxels:
        out[voxel] = True
    return out


EMPTY = mask()
#: A rod of three, and two single voxels beside it.
TRUTH = mask((0, 0, 0), (0, 0, 1), (0, 0, 2), (3, 3, 3), (5, 5, 5))
PARTLY = mask((0, 0, 1), (3, 3, 3), (6, 0, 6))
#: One cluster that touches two of the truth.
JOINING = mask((3, 3, 3), (4, 4, 4), (5, 5, 5))


def row(
    case: str,
    prediction: Bool = PARTLY,
    truth: Bool = TRUTH,
    *,
    site: str = "",
    region: str = "all",
    status: str = SCORED,
    protocol: str = "1 x 1 x 2 mm",
) -> Row:
    missing = metrics.penalty_scores(truth, SPACING)
    scored = metrics.all_sets(prediction, truth, SPACING) if status == SCORED else missing
    passes = (scored[1]["official"]["precision"] or 0) > 1
    return Row(
        case,
        site,
        protocol,
        region,
        status,
        *scored,
        reference=Path("truth") / site / f"{case}_PVS.nii.gz",
        prediction=None if status == MISSING else Path("masks") / site / f"{case}_pred.nii.gz",
        notes=("precision above 1",) if passes else (),
    )


def summaries(rows: Sequence[Row]) -> tuple[Summary, ...]:
    """Plain means, as the report's own would be but for the interval."""
    out = []
    for by, groups in (
        ("all", [""]),
        ("site", sorted({r.site for r in rows})),
        ("protocol", sorted({r.protocol for r in rows})),
    ):
        for group in groups if by == "all" or len(groups) > 1 else []:
            for region in dict.fromkeys(r.region for r in rows):
                here = [r for r in rows if r.region == region and (by == "all" or getattr(r, by) == group)]
                for name, score in every_score():
                    values = values_of(here, name, score)
                    n = len(values)
                    mean = float(np.mean(values)) if n else None
                    sd = float(np.std(values, ddof=1)) if n > 1 else None
                    median = float(np.median(values)) if n else None
                    low, high = (min(values), max(values)) if n > 1 else (None, None)
                    without = len(here) - n
                    out.append(Summary(by, group, region, name, score, n, without, mean, sd, median, low, high))
    return tuple(out)


def report(
    rows: Iterable[Row],
    *,
    problems: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
    regions_from: str = "",
    names: tuple[str, str] = ("truth", "masks"),
) -> Evaluation:
    rows = tuple(rows)
    return Evaluation(
        rows, summaries(rows), problems=problems, warnings=warnings, regions_from=regions_from, names=names
    )


SEVERAL = report(
    [
        row(case, prediction, site=site, region=region, status=status, protocol=protocol)
        for site, protocol in (("A", "1 x 1 x 2 mm"), ("B", "0.5 x 0.5 x 3 mm"))
        for case, prediction, status in (
            ("one", PARTLY, SCORED),
            ("two", JOINING, SCORED),
            ("three", TRUTH, SCORED),
            ("four", EMPTY, MISSING),
            ("five", EMPTY, REFUSED),
        )
        for region in ("CSO", "BG", "all")
    ],
    problems=("A/five: expected shape (7, 7, 7), got (7, 7, 8)",),
    warnings=("1 prediction belongs to no truth",),
    regions_from="the masks beside the truth",
)


@pytest.fixture(scope="module")
def several() -> str:
    return evaluation_report(SEVERAL, WHEN)


def test_every_case_and_the_circumstances_are_named(several: str) -> None:
    words = Seen(several).words
    for label in {r.label for r in SEVERAL.rows}:
        assert label in words
    for fact in (
        "6 scored", "2 missing", "2 refused", "2025-11-02 14:05 UTC", "pvs_model 0.", "the masks beside the truth",
        "expected shape (7, 7, 7), got (7, 7, 8)", "1 prediction belongs to no truth", "0.5 x 0.5 x 3 mm",
        "By site and by protocol", "truth/A/four_PVS.nii.gz", "masks/B/two_pred.nii.gz", *SET_NAMES.values(),
    ):  # fmt: skip
        assert fact in words, fact


def test_faults_of_the_truth_stand_apart_from_those_of_predictions() -> None:
    both = Evaluation((row("x"),), (), problems=("x: own", "x: truth broken"), data_errors=("x: truth broken",))
    html = evaluation_report(both, WHEN)
    assert "Problems (2)" in html
    own, apart = between(html, "Problems (2)", "</section>").split("Errors in the reference masks")
    assert "x: own" in own and "x: truth broken" not in own
    assert "x: truth broken" in apart and "x: own" not in apart
    assert "Errors in the reference masks" not in evaluation_report(report([row("x")], problems=("x: own",)), WHEN)


def test_every_score_has_a_label() -> None:
    assert set(LABELS) == set(every_score())


def test_values_are_those_of_the_summaries_and_rows(several: str) -> None:
    words = Seen(between(several, '<h2 id="summary">Summary</h2>', "</section>")).words
    dice = next(s for s in SEVERAL.summaries if (s.by, s.region, s.score) == ("all", "CSO", "dice"))
    assert f"{dice.mean:.3f} {dice.sd:.3f} {dice.median:.3f} {dice.low:.3f} to {dice.high:.3f} 10 0" in words
    # Of 8 voxels, 2 are shared: 2 * 2 / 8.
    assert "<title>A/one: 0.500</title>" in several
    assert "<title>A/four: 0.000 (missing)</title>" in several


def test_precision_above_one_is_flagged(several: str) -> None:
    assert "above 1 in 2 of 10 cases" in several
    assert "2 reference clusters touched by 1 predicted ones" in several
    assert "2.000&nbsp;▲" in several
    alone = evaluation_report(report([row("one", TRUTH)]), WHEN)
    assert 'class="flag" title' not in alone


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row("single")],
        [row("single", EMPTY, EMPTY), row("other", EMPTY, EMPTY)],
        [row("single", EMPTY)],
        [row("single", PARTLY, EMPTY)],
        [row("single", EMPTY, EMPTY, status=MISSING)],
        [row("single", status=MISSING), row("other", status=REFUSED)],
    ],
    ids=["no case", "one", "no case with values", "nothing found", "nothing true", "missing and empty", "none usable"],
)
def test_scores_without_a_value_are_dashes_with_a_reason(rows: list[Row]) -> None:
    html = evaluation_report(report(rows), WHEN)
    words = Seen(html).words
    assert not re.search(r"\b(None|nan|NaN|inf|Infinity|Undefined)\b", html.split("</style>")[1].split("<script>")[0])
    tables = html.split("</details>", 1)[1]
    assert not re.findall(rf"<td[^>]*>[^<]*{NO_VALUE}", tables), "a dash without a reason"
    assert not re.findall(r"<td[^>]*>\s*</td>(?!</tr>)", tables), "only notes may be empty"
    assert ("single" in words) == bool(rows)


def test_the_reason_follows_from_the_masks() -> None:
    def table(prediction: Bool, truth: Bool) -> str:
        return between(evaluation_report(report([row("x", prediction, truth)]), WHEN), '<table class="all', "</table>")

    assert "no value: reference and prediction are both empty" in table(EMPTY, EMPTY)
    assert "no value: the reference is empty" in table(PARTLY, EMPTY)
    assert 'title="no value' not in table(PARTLY, TRUTH)


def test_values_that_are_not_finite_are_none() -> None:
    bad = [Summary("all", "", "all", *key, 2, 0, float("nan"), float("inf"), None, None, None) for key in LABELS]
    html = evaluation_report(Evaluation((row("x"),), tuple(bad)), WHEN)
    assert not re.search(r">\s*(nan|inf)", html)


def test_nothing_is_fetched_and_nothing_runs_but_the_own_script(several: str) -> None:
    seen = Seen(several)
    assert "://" not in several and "@import" not in several and set(re.findall(r"url\(([^)]*)", several)) == {"#hatch"}
    for name, value in seen.attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "style", "xlink:href"), name
        if name == "href":
            assert value is not None and value.startswith("#")
    check_policy(several)


def test_links_lead_somewhere_and_identifiers_are_unique(several: str) -> None:
    attributes = Seen(several).attributes
    ids = [value for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = [value for name, value in attributes if name in ("href", "aria-labelledby")]
    assert targets and {(value or "").removeprefix("#") for value in targets} <= set(ids)


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_add_no_element_and_no_attribute(name: str) -> None:
    def made_of(text: str) -> str:
        rows = [
            row(f"{case}{text}", prediction, site=f"{site}{text}", protocol=f"{site}{text}", region=region)
            for site in ("A", "B")
            for case, prediction in (("one", PARTLY), ("two", JOINING))
            for region in ("CSO", f"r{text}")
        ]
        rows.append(row(f"gone{text}", site=f"A{text}", region="CSO", status=MISSING))
        return evaluation_report(
            report(rows, problems=(text,), warnings=(text,), regions_from=text, names=(text, text)),
            WHEN,
        )

    plain, hostile = Seen(made_of("x")), Seen(made_of(name))
    assert hostile.elements == plain.elements
    assert hostile.comments == []
    assert hostile.open == []
    assert "49" not in hostile.words or "49" in plain.words


def test_names_are_shown_as_they_are_or_spelt() -> None:
    for name in HOSTILE[:-1]:
        shown = "\n".join(Seen(evaluation_report(report([row(name.replace("/", "_"))]), WHEN)).text)
        assert name.replace("/", "_") in shown
    shown = "\n".join(Seen(evaluation_report(report([row(HOSTILE[-1])]), WHEN)).text)
    assert r"right\u202eleft\u2066 \x00\x1b[31m\nnext\udc80" in shown


def test_only_finished_text_reaches_the_page() -> None:
    for value in (None, 0.5, float("nan"), True, ["x"]):
        with pytest.raises(TypeError, match="expected text or a count"):
            finished(value)


def test_worst_cases_are_scored_ones_with_the_lowest_dice() -> None:
    # Twelve predictions of growing size, all of them right, and one case without any.
    voxels = [(x, 0, 2 * z) for x in range(7) for z in range(4)]
    truth = mask(*voxels)
    rows = [row(f"case-{n:02d}", mask(*voxels[:n]), truth) for n in range(12, 0, -1)]
    html = evaluation_report(report([*rows, row("gone", truth=truth, status=MISSING)]), WHEN)
    table = between(html, "Lowest Dice, whole image</h3>", "</table>")
    assert re.findall(r"<bdi>(case-\d\d|gone)</bdi>", table) == [f"case-{n:02d}" for n in range(1, 11)]
    assert "10 of 12 scored cases" in table
    assert "gone" in between(html, "Without a usable prediction (1)", "</table>")


def test_groups_only_where_there_are_several(several: str) -> None:
    assert 'id="groups"' in several
    assert 'id="groups"' not in evaluation_report(report([row("one", site="A"), row("two", site="A")]), WHEN)


def test_boxes_need_five_values() -> None:
    def boxes(n: int) -> int:
        return evaluation_report(report([row(f"c{i}") for i in range(n)]), WHEN).count('class="box"')

    assert [boxes(n) for n in (1, 4, 5)] == [0, 0, 5]


def test_wild_values_do_not_squeeze_the_others() -> None:
    wild = row("wild", np.ones((7, 7, 7), bool), mask((0, 0, 0)))  # AVD 342
    html = evaluation_report(report([*(row(f"c{i}") for i in range(20)), wild]), WHEN)
    assert "1 value lies beyond the axis, up to 342.000: drawn at its end." in html
    assert "<title>wild: 342.000</title>" in html


def test_the_same_report_gives_the_same_bytes_and_no_part_is_left(tmp_path: Path, several: str) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    write_evaluation_report(target, SEVERAL, WHEN)
    assert target.read_bytes() == several.encode()
    write_evaluation_report(target, SEVERAL, WHEN)
    assert target.read_bytes() == several.encode()
    assert list(tmp_path.iterdir()) == [target]
    write_evaluation_report(target, SEVERAL)
    assert f"{datetime.now(UTC):%Y-}" in target.read_text() and "UTC" in target.read_text()


def test_a_thousand_rows_stay_light() -> None:
    kinds = [(PARTLY, SCORED), (JOINING, SCORED), (TRUTH, SCORED), (EMPTY, MISSING)]
    made = [row("x", prediction, status=status) for prediction, status in kinds]
    rows = [
        Row(
            f"sub-{i:04d}",
            f"site-{i % 9}",
            "1 mm",
            region,
            m.status,
            m.counts,
            m.sets,
            m.reference,
            m.prediction,
            m.notes,
        )
        for i in range(400)
        for m in made[i % 4 : i % 4 + 1]
        for region in ("CSO", "BG", "all")
    ]
    html = evaluation_report(report(rows), WHEN)
    assert len(html) < 2_000_000
    assert between(html, '<table class="all', "</table>").count("<tr") == 1201
    assert html.count("<use ") < 10_000
    words = Seen(html).words
    assert "cases are drawn" in words and "Of 9 sites, the 6 with the most cases are drawn" in words
    for row_ in rows[::37]:
        assert row_.label in words


def test_more_rows_than_a_browser_bears_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from pvs_model.reports import evaluation_report as module

    monkeypatch.setattr(module, "TABLE_ROWS", 3)
    monkeypatch.setattr(module, "LISTED", 2)
    html = evaluation_report(report([row(f"c{i}", status=MISSING) for i in range(5)], problems=("p", "q", "r")), WHEN)
    assert "The first 3 of 5 rows" in html
    assert "Problems (3)" in html and "and 1 more" in html
    assert "3 more are in the table of all cases" in html


def test_accessible(several: str) -> None:
    check_accessible(several)

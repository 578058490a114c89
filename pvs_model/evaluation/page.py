"""An evaluation as one HTML file that needs nothing else: tables, figures, and the cases worth opening.

``pages`` makes it safe to show names of cases, sites and files, which come from folders that others made.
Figures are drawn here as positions and by the template as SVG, so that style sheets (dark, print) reach them.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

from pvs_model import __version__, files, pages
from pvs_model.evaluation.metrics import PAPERS, SETS
from pvs_model.evaluation.records import MISSING, REFUSED, SCORED, Report, Row, Summary, values_of

#: What is drawn or listed at most; the page says what it leaves out.
DOTS_PER_FIGURE = 1000
SITES_DRAWN = 6
WORST_CASES = 10
TABLE_ROWS = 5000
LISTED = 100
#: With fewer values a box would pretend to more than there is: median and dots only.
BOX_FROM = 5

NONE = "\N{EN DASH}"

REGION_NAMES: Mapping[str, str] = {
    "CSO": "centrum semiovale (CSO)",
    "BG": "basal ganglia (BG)",
    "all": "whole image",
}
SET_NAMES: Mapping[str, str] = {
    "official": "Official scores of the challenge",
    "detection": "Detection of clusters",
    "volume": "Volume, in mm\N{SUPERSCRIPT THREE}",
    "voxels": "Voxels",
}
STATUS_NAMES: Mapping[str, str] = {
    SCORED: "scored",
    MISSING: "missing",
    REFUSED: "refused",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Label:
    """How a score is shown: its name, whether "higher" or "lower" is better ("" for neither), its decimals."""

    name: str
    better: str = "higher"
    digits: int = 3


LABELS: Mapping[tuple[str, str], Label] = {
    ("official", "dice"): Label("Dice"),
    ("official", "avd"): Label("AVD", "lower"),
    ("official", "avd_capped"): Label("AVD, capped at 1", "lower"),
    ("official", "recall"): Label("Recall"),
    ("official", "precision"): Label("Precision"),
    ("detection", "recall"): Label("Recall"),
    ("detection", "precision"): Label("Precision"),
    ("detection", "f1"): Label("F1"),
    ("detection", "matched_recall"): Label("Recall, matched"),
    ("detection", "matched_precision"): Label("Precision, matched"),
    ("detection", "matched_f1"): Label("F1, matched"),
    ("volume", "truth_mm3"): Label("True volume", "", 1),
    ("volume", "predicted_mm3"): Label("Predicted volume", "", 1),
    ("volume", "signed_mm3"): Label("Predicted \N{MINUS SIGN} true", "", 1),
    ("volume", "absolute_mm3"): Label("Absolute difference", "lower", 1),
    ("volume", "symmetric_difference_mm3"): Label("Symmetric difference", "lower", 1),
    ("volume", "surface_dice_1mm"): Label("Surface Dice at 1 mm"),
    ("voxels", "dice"): Label("Dice"),
    ("voxels", "iou"): Label("IoU"),
    ("voxels", "sensitivity"): Label("Sensitivity"),
    ("voxels", "ppv"): Label("PPV"),
}

#: The scores in the table of all cases.
CASE_COLUMNS: tuple[tuple[str, str], ...] = (
    *(("official", score) for score in SETS["official"]),
    ("detection", "f1"),
    ("volume", "surface_dice_1mm"),
    ("volume", "truth_mm3"),
    ("volume", "predicted_mm3"),
)


def write_page(path: Path, report: Report, when: datetime | None = None) -> None:
    """Write an evaluation as one HTML file: styles, figures and script are in it, nothing is fetched.

    The same report and time give the same bytes. An older file is replaced only by a whole new one.

    Args:
        path: the file.
        report: what to show.
        when: time to put on the page, in its own zone; None for now, in UTC.
    """
    files.write_text(path, page(report, when or datetime.now(UTC)))


def page(report: Report, when: datetime) -> str:
    """The text of the page; see ``write_page``."""
    rows = report.rows
    without = [row for row in _each_case(rows) if row.status != SCORED]
    of_others = set(report.faults)
    faults = [problem for problem in report.problems if problem in of_others]
    own = [problem for problem in report.problems if problem not in of_others]
    parts = {
        "truth_folder": report.names[0],
        "predicted_folder": report.names[1],
        "when": f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip(),
        "when_iso": when.isoformat(timespec="seconds"),
        "version": __version__,
        "cases": {status: len(report.cases(status)) for status in (SCORED, MISSING, REFUSED)},
        "problem_count": len(report.problems),
        "problems": own[:LISTED],
        "more_problems": len(own[LISTED:]),
        "faults": faults[:LISTED],
        "more_faults": len(faults[LISTED:]),
        "warnings": report.warnings[:LISTED],
        "more_warnings": len(report.warnings[LISTED:]),
        "regions_from": report.regions_from,
        "papers": {
            paper: [(theirs, LABELS["voxels", ours].name) for theirs, ours in names.items()]
            for paper, names in PAPERS.items()
        },
        "tables": [_table(report, score_set) for score_set in SETS] if rows else [],
        "groups": [table for by in ("site", "protocol") if (table := _groups(report, by))],
        "boxes": [_box_figure(report, score) for score in SETS["official"]] if rows else [],
        "box_from": BOX_FROM,
        "scatters": [_scatter(report, style, region) for style, region in enumerate(report.regions)],
        "without": [_case(row) for row in without[:LISTED]],
        "more_without": len(without[LISTED:]),
        "worst": [_worst(report, region) for region in report.regions],
        "case_columns": [LABELS[column] for column in CASE_COLUMNS],
        "all_cases": [_case(row) for row in rows[:TABLE_ROWS]],
        "row_count": len(rows),
        "more_cases": len(rows[TABLE_ROWS:]),
    }
    return pages.render(Path(__file__).parent, "page.html", parts)


# --- numbers and words ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A value as shown, ``why`` it is as it is (where that needs saying), and whether to flag it."""

    text: str
    why: str = ""
    flag: bool = False


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip("0.") else text


def _cell(value: float | None, digits: int, why: str) -> Cell:
    text = _number(value, digits)
    return Cell(text, why if text == NONE else "")


def _score_cell(row: Row, score_set: str, score: str) -> Cell:
    value = row.sets[score_set].get(score)
    if (score_set, score) == ("official", "precision") and value is not None and value > 1:
        reason = f"{row.counts.touched_truth} true clusters touched by {row.counts.predicted_clusters} predicted ones"
        return Cell(_number(value), f"passes 1, as the challenge's formula can: {reason}", flag=True)
    return _cell(value, LABELS[score_set, score].digits, f"no value: {_emptiness(row)}")


def _emptiness(row: Row) -> str:
    truth, predicted = row.counts.truth_voxels, row.counts.predicted_voxels
    if truth and predicted:
        return "it is not defined here"
    if not truth and not predicted:
        return "truth and prediction are both empty"
    return "the prediction is empty" if truth else "the truth is empty"


def _share(count: int, whole: int, what: str) -> str:
    return f"{count} of {whole} {what}{'' if whole == 1 else 's'}"


def _region(region: str) -> str:
    return REGION_NAMES.get(region, region)


def _short_region(region: str) -> str:
    return REGION_NAMES["all"] if region == "all" else region


def _each_case(rows: Iterable[Row]) -> list[Row]:
    """The first row of every case."""
    return list({row.label: row for row in reversed(list(rows))}.values())[::-1]


# --- tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A score in one region: the cells of mean, SD, median, interval, n and number without a value."""

    label: Label
    cells: tuple[Cell, ...]
    flag: str = ""


@dataclass(frozen=True)
class Table:
    """A set of scores, by region."""

    key: str
    name: str
    regions: tuple[tuple[str, tuple[Line, ...]], ...]


def _table(report: Report, score_set: str) -> Table:
    found = {(s.region, s.score): s for s in report.summaries if s.by == "all" and s.score_set == score_set}
    regions = []
    for region in report.regions:
        lines = [_line(found[region, score], report.rows) for score in SETS[score_set] if (region, score) in found]
        if lines:
            regions.append((_region(region), tuple(lines)))
    return Table(score_set, SET_NAMES[score_set], tuple(regions))


def _line(summary: Summary, rows: Iterable[Row]) -> Line:
    label = LABELS[summary.score_set, summary.score]
    none = "no case has a value"
    few = "too few cases with a value" if summary.n else none
    flag = ""
    if (summary.score_set, summary.score) == ("official", "precision"):
        values = values_of((row for row in rows if row.region == summary.region), "official", "precision")
        above = sum(value > 1 for value in values)
        flag = f"above 1 in {_share(above, len(values), 'case')}" if above else ""
    cells = (
        _cell(summary.mean, label.digits, none),
        _cell(summary.sd, label.digits, few),
        _cell(summary.median, label.digits, none),
        _interval(summary, few),
        Cell(str(summary.n)),
        Cell(str(summary.without)),
    )
    return Line(label, cells, flag)


def _interval(summary: Summary, why: str) -> Cell:
    digits = LABELS[summary.score_set, summary.score].digits
    low, high = _number(summary.low, digits), _number(summary.high, digits)
    return Cell(NONE, why) if NONE in (low, high) else Cell(f"{low} to {high}")


@dataclass(frozen=True)
class Groups:
    """Official scores by site or protocol: per region and group its name, number of cases, and (mean, interval, n)."""

    by: str
    columns: tuple[Label, ...]
    regions: tuple[tuple[str, tuple[tuple[str, int, tuple[tuple[Cell, str, str], ...]], ...]], ...]
    count: int


def _groups(report: Report, by: str) -> Groups | None:
    """None where there are not several."""
    found = {(s.region, s.group, s.score): s for s in report.summaries if s.by == by and s.score_set == "official"}
    names = sorted({group for _, group, _ in found}, key=pages.natural)
    if len(names) < 2:
        return None
    regions = []
    for region in report.regions:
        lines = []
        for name in names:
            scores = [found[region, name, score] for score in SETS["official"] if (region, name, score) in found]
            if len(scores) == len(SETS["official"]):
                lines.append((name or f"(no {by})", scores[0].n + scores[0].without, tuple(map(_group_cell, scores))))
        if lines:
            regions.append((_region(region), tuple(lines)))
    return Groups(by, tuple(LABELS["official", score] for score in SETS["official"]), tuple(regions), len(names))


def _group_cell(summary: Summary) -> tuple[Cell, str, str]:
    interval = _interval(summary, "").text
    return (
        _cell(summary.mean, LABELS[summary.score_set, summary.score].digits, "no case has a value"),
        "" if interval == NONE else interval,
        f"n = {summary.n}" if summary.without else "",
    )


@dataclass(frozen=True)
class Case:
    """A row of the report as the tables show it."""

    label: str
    protocol: str
    region: str
    status: str
    scored: bool
    cells: tuple[Cell, ...]
    clusters: tuple[int, int, int, int]
    voxels: tuple[int, int]
    truth: str
    prediction: str
    notes: tuple[str, ...]


def _case(row: Row) -> Case:
    counts = row.counts
    return Case(
        row.label,
        row.protocol,
        _short_region(row.region),
        STATUS_NAMES.get(row.status, row.status),
        row.status == SCORED,
        tuple(_score_cell(row, *column) for column in CASE_COLUMNS),
        (counts.truth_clusters, counts.touched_truth, counts.predicted_clusters, counts.touching_predicted),
        (counts.truth_voxels, counts.predicted_voxels),
        str(row.truth),
        "" if row.prediction is None else str(row.prediction),
        row.notes,
    )


@dataclass(frozen=True)
class Worst:
    """The scored cases of a region with the lowest Dice, of how many that have one."""

    region: str
    cases: tuple[Case, ...]
    of: int


def _worst(report: Report, region: str) -> Worst:
    scored = [
        (value, row.label, row)
        for row in report.rows
        if row.region == region and row.status == SCORED and (value := row.sets["official"]["dice"]) is not None
    ]
    scored.sort(key=lambda entry: entry[:2])
    return Worst(_region(region), tuple(_case(row) for *_, row in scored[:WORST_CASES]), len(scored))


# --- figures: all lengths in the units of the SVG's own view box ------------------------------------------


@dataclass(frozen=True)
class Axis:
    """Values from 0 to ``top`` along ``start`` to ``end``; what lies beyond is drawn at the end."""

    top: float
    step: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (self.end - self.start) * min(max(value / self.top, 0.0), 1.0)

    def ticks(self) -> list[tuple[str, str]]:
        """(position, label)."""
        values = [index * self.step for index in range(round(self.top / self.step) + 1)]
        return [(_length(self.at(value)), f"{value:.6g}") for value in values]


def _axis(top: float, start: float, end: float, most: int = 5) -> Axis:
    """An axis up to a round number at or above ``top``."""
    top = top if top > 0 else 1.0
    size = 10.0 ** math.floor(math.log10(top / most))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if size * factor * most >= top * (1 - 1e-9))
    return Axis(step * math.ceil(top / step * (1 - 1e-9)), step, start, end)


@dataclass(frozen=True)
class Mark:
    """A case in a figure: the outline of its sign, whether it is filled, and the words shown on hovering."""

    path: str
    filled: bool
    title: str


def _mark(style: int, x: float, y: float, row: Row, title: str, size: float = 3.2) -> Mark:
    """A circle, triangle, square or diamond."""
    s = size
    signs = (
        f"M{_length(x - s)} {_length(y)}a{s} {s} 0 1 0 {_length(2 * s)} 0a{s} {s} 0 1 0 {_length(-2 * s)} 0z",
        f"M{_length(x)} {_length(y - 1.2 * s)}l{_length(1.15 * s)} {_length(2 * s)}h{_length(-2.3 * s)}z",
        f"M{_length(x - 0.9 * s)} {_length(y - 0.9 * s)}h{_length(1.8 * s)}v{_length(1.8 * s)}h{_length(-1.8 * s)}z",
        f"M{_length(x)} {_length(y - 1.3 * s)}l{_length(1.2 * s)} {_length(1.3 * s)}"
        f"l{_length(-1.2 * s)} {_length(1.3 * s)}l{_length(-1.2 * s)} {_length(-1.3 * s)}z",
    )
    scored = row.status == SCORED
    return Mark(signs[style % len(signs)], scored, title if scored else f"{title} ({row.status})")


def _length(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Box:
    """One line of a box plot.

    Attributes:
        label, title: what stands beside it, and the whole of it in words.
        detail: the numbers of cases, beneath the label; "" where the label holds it.
        indent: whether it is a part (site) of the box above.
        y, text_y: heights of its middle and of its label.
        style: number of the region.
        whiskers, quartiles, median: positions along the axis; None where there are too few values for them.
        marks: the cases.
    """

    label: str
    title: str
    detail: str
    indent: bool
    y: str
    style: int
    whiskers: tuple[str, str] | None
    quartiles: tuple[str, str] | None
    median: str | None
    top: str
    bottom: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class BoxFigure:
    """Box plots of one score, one below the other on one axis."""

    label: Label
    boxes: tuple[Box, ...]
    ticks: tuple[tuple[str, str], ...]
    one: str | None  # position of 1 where the axis passes it
    height: int
    notes: tuple[str, ...]
    width: int = 420
    left: int = 132
    right: int = 406


@dataclass(frozen=True)
class _Group:
    """The values behind a box."""

    style: int
    region: str
    site: str | None
    rows: list[Row]
    all_rows: int

    def values(self, score: str) -> list[float]:
        return values_of(self.rows, "official", score)


def _box_groups(report: Report) -> tuple[list[_Group], int]:
    """The lines of every box plot, and the number of sites left out."""
    sites = Counter(row.site for row in _each_case(report.rows))
    drawn = sorted((site for site, _ in sites.most_common(SITES_DRAWN)), key=pages.natural) if len(sites) > 1 else []
    groups = []
    for style, region in enumerate(report.regions):
        rows = [row for row in report.rows if row.region == region]
        groups.append(_Group(style, region, None, rows, len(rows)))
        for site in drawn:
            mine = [row for row in rows if row.site == site]
            if mine:
                groups.append(_Group(style, region, site, mine, len(mine)))
    return groups, len(sites) - len(drawn) if drawn else 0


def _box_figure(report: Report, score: str) -> BoxFigure:
    groups, sites_left = _box_groups(report)
    values = {id(group): group.values(score) for group in groups}
    high = max((value for found in values.values() for value in found), default=0.0)
    # A few wild values (AVD of a nearly empty truth) must not squeeze all others into a line.
    fence = max([1.0, *(_fence(found) for found in values.values() if found)])
    figure = BoxFigure(LABELS["official", score], (), (), None, 0, ())
    axis = _axis(max(1.0, high if high <= 1.5 * fence else fence), figure.left, figure.right)
    most = max(20, DOTS_PER_FIGURE // max(1, len(groups)))
    boxes: list[Box] = []
    notes: list[str] = []
    y = 4.0
    left_out = beyond = 0
    for group in groups:
        region_line = group.site is None
        half = 17.0 if region_line else 12.0
        y += half + (6 if region_line and boxes else 0)
        boxes.append(_box(group, values[id(group)], score, axis, y, most))
        y += half
        if region_line:
            left_out = max(left_out, len(values[id(group)]) - most)
            beyond += sum(value > axis.top * (1 + 1e-9) for value in values[id(group)])
    if left_out > 0:
        notes.append(f"Of each box at most {most} cases are drawn, evenly from lowest to highest; boxes count all.")
    if beyond:
        plural = "value lies" if beyond == 1 else "values lie"
        notes.append(f"{beyond} {plural} beyond the axis, up to {_number(high)}: drawn at its end.")
    if sites_left:
        notes.append(f"Of {sites_left + SITES_DRAWN} sites, the {SITES_DRAWN} with the most cases are drawn.")
    one = _length(axis.at(1.0)) if axis.top > 1 + 1e-9 else None
    return BoxFigure(figure.label, tuple(boxes), tuple(axis.ticks()), one, math.ceil(y + 4), tuple(notes))


def _fence(values: list[float]) -> float:
    low, high = (float(np.quantile(values, share)) for share in (0.25, 0.75))
    return high + 3 * (high - low)


def _box(group: _Group, values: list[float], score: str, axis: Axis, y: float, most: int) -> Box:
    without = group.all_rows - len(values)
    count = f"n = {len(values)}" + (f", {without} without" if without else "")
    name = _short_region(group.region)
    if group.site is not None:
        name = group.site or "(no site)"
    label = name if group.site is None else f"{_shortened(name, 12)} ({len(values)})"
    half = 9.0 if group.site is None else 6.5
    whiskers, quartiles, median, words = None, None, None, count
    if values:
        low, middle, high = (float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75))
        median = _length(axis.at(middle)) if len(values) > 1 else None
        words = f"{count}, median {_number(middle)}"
        if len(values) >= BOX_FROM:
            inside = [value for value in values if low - 1.5 * (high - low) <= value <= high + 1.5 * (high - low)]
            whiskers = (_length(axis.at(min(inside))), _length(axis.at(max(inside))))
            quartiles = (_length(axis.at(low)), _length(axis.at(high)))
            words += f", quartiles {_number(low)} and {_number(high)}"
    return Box(
        label=_shortened(label, 18),
        title=f"{name}: {words}",
        detail=count if group.site is None else "",
        indent=group.site is not None,
        y=_length(y),
        style=group.style,
        whiskers=whiskers,
        quartiles=quartiles,
        median=median,
        top=_length(y - half),
        bottom=_length(y + half),
        marks=tuple(_jittered(group, score, axis, y, half - 2, most)),
    )


def _jittered(group: _Group, score: str, axis: Axis, y: float, half: float, most: int) -> list[Mark]:
    found = [(value, row.label, row) for row in group.rows if (value := row.sets["official"][score]) is not None]
    found.sort(key=lambda entry: entry[:2])
    marks = []
    for index, (value, label, row) in enumerate(_spread(found, most)):
        # Steps of the golden ratio: neighbours in value lie far apart, and the same cases at the same places.
        aside = ((index * 0.618034 + 0.5) % 1 - 0.5) * 2 * half
        title = f"{label}: {_number(value)}"
        marks.append(_mark(group.style, axis.at(value), y + aside, row, title, 2.8 if group.site is None else 2.3))
    return marks


def _spread(values: Sequence[T], most: int) -> Sequence[T]:
    """At most ``most`` of them, first and last included, evenly."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _shortened(text: str, most: int) -> str:
    """The text within ``most`` columns, with an ellipsis where it is cut."""
    shown = str(pages.finished(text))
    width: Callable[[str], int] = lambda c: 2 if unicodedata.east_asian_width(c) in "WF" else 1  # noqa: E731
    if sum(map(width, shown)) <= most:
        return shown
    kept, used = "", 1
    for c in shown:
        used += width(c)
        if used > most:
            break
        kept += c
    return f"{kept}\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Scatter:
    """Predicted against true volumes of a region, with the line on which both are equal."""

    region: str
    style: int
    marks: tuple[Mark, ...] = ()
    x_ticks: tuple[tuple[str, str], ...] = ()
    y_ticks: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    width: int = 340
    height: int = 320
    left: int = 62
    right: int = 326
    top: int = 12
    bottom: int = 276


def _scatter(report: Report, style: int, region: str) -> Scatter:
    figure = Scatter(_region(region), style)
    points = []
    for row in report.rows:
        true, predicted = row.sets["volume"].get("truth_mm3"), row.sets["volume"].get("predicted_mm3")
        if row.region == region and true is not None and predicted is not None:
            points.append((true, predicted, row))
    if not points:
        return figure
    points.sort(key=lambda point: (point[0], point[1], point[2].label))
    top = max(max(true, predicted) for true, predicted, _ in points)
    x, y = _axis(top, figure.left, figure.right), _axis(top, figure.bottom, figure.top)
    drawn = _spread(points, DOTS_PER_FIGURE)
    notes = [_agreement([(predicted - true) for true, predicted, row in points if row.status == SCORED])]
    if len(drawn) < len(points):
        notes.append(f"{len(drawn)} of {len(points)} cases are drawn, evenly by true volume.")
    marks = [
        _mark(
            style,
            x.at(true),
            y.at(predicted),
            row,
            f"{row.label}: true {_number(true, 1)}, predicted {_number(predicted, 1)} mm\N{SUPERSCRIPT THREE}",
        )
        for true, predicted, row in drawn
    ]
    return Scatter(
        figure.region, style, tuple(marks), tuple(x.ticks()), tuple(y.ticks()), tuple(note for note in notes if note)
    )


def _agreement(differences: list[float]) -> str:
    """Bland and Altman's mean difference and limits of agreement, in words."""
    if not differences:
        return ""
    unit = "mm\N{SUPERSCRIPT THREE}"
    mean = float(np.mean(differences))
    words = f"Predicted \N{MINUS SIGN} true: {_number(mean, 1)} {unit} on average"
    if len(differences) >= BOX_FROM:
        reach = 1.96 * float(np.std(differences, ddof=1))
        words += f"; 95 % limits of agreement {_number(mean - reach, 1)} to {_number(mean + reach, 1)} {unit}"
    return f"{words} (scored cases, n = {len(differences)})."

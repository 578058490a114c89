"""The report of an evaluation as one HTML file: tables, figures, and the cases with the lowest scores."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model import __version__, files
from pvs_model.errors import escape_control_characters
from pvs_model.evaluation.metrics import PAPERS, SETS
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation, Row, Summary, values_of
from pvs_model.reports.figures import BOX_FROM, BoxRow, Dot, Scale, box_plots, scatter
from pvs_model.reports.html import MM3, NO_VALUE, evenly_spaced, number, plural, render
from pvs_model.reports.regions import NAMES, name_of, style_of

#: Largest numbers of dots and sites drawn, and of cases, rows and sentences listed; the page says what it leaves out.
DOTS_PER_FIGURE = 1000
SITES_DRAWN = 6
WORST_CASES = 10
TABLE_ROWS = 5000
LISTED = 100

SET_NAMES: Mapping[str, str] = {
    "official": "Official scores of the challenge",
    "detection": "Detection of clusters",
    "volume": f"Volume, in {MM3}",
    "voxels": "Voxels",
}


@dataclass(frozen=True)
class Label:
    """The name of a score, whether "higher" or "lower" is better ("" for neither), and its decimals."""

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
    ("volume", "reference_mm3"): Label("Reference volume", "", 1),
    ("volume", "predicted_mm3"): Label("Predicted volume", "", 1),
    ("volume", "signed_mm3"): Label("Predicted \N{MINUS SIGN} reference", "", 1),
    ("volume", "absolute_mm3"): Label("Absolute difference", "lower", 1),
    ("volume", "symmetric_difference_mm3"): Label("Symmetric difference", "lower", 1),
    ("volume", "surface_dice_1mm"): Label("Surface Dice at 1 mm"),
    ("voxels", "dice"): Label("Dice"),
    ("voxels", "iou"): Label("IoU"),
    ("voxels", "sensitivity"): Label("Sensitivity"),
    ("voxels", "ppv"): Label("PPV"),
}

#: Scores in the table of all cases.
CASE_COLUMNS: tuple[tuple[str, str], ...] = (
    *(("official", score) for score in SETS["official"]),
    ("detection", "f1"),
    ("volume", "surface_dice_1mm"),
    ("volume", "reference_mm3"),
    ("volume", "predicted_mm3"),
)


def write_evaluation_report(path: Path, evaluation: Evaluation, when: datetime | None = None) -> None:
    """Writes an evaluation as one HTML file: styles, figures and script are in it, nothing is fetched.

    The same evaluation and time give the same bytes. An older file is replaced only by a complete new one.

    Args:
        path: File to write.
        evaluation: Results to show.
        when: Time to put on the page, in its own zone; None for now, in UTC.
    """
    files.write_text(path, evaluation_report(evaluation, when or datetime.now(UTC)))


def evaluation_report(evaluation: Evaluation, when: datetime) -> str:
    """Returns the text of the page; see ``write_evaluation_report``."""
    rows = evaluation.rows
    invalid = [row for row in _one_row_per_case(rows) if row.status != SCORED]
    data_errors = [problem for problem in evaluation.problems if problem in set(evaluation.data_errors)]
    problems = [problem for problem in evaluation.problems if problem not in set(data_errors)]
    parts = {
        "reference_folder": evaluation.names[0],
        "predicted_folder": evaluation.names[1],
        "when": f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip(),
        "when_iso": when.isoformat(timespec="seconds"),
        "version": __version__,
        "cases": {status: len(evaluation.cases(status)) for status in (SCORED, MISSING, REFUSED)},
        "problem_count": len(evaluation.problems),
        "problems": problems[:LISTED],
        "more_problems": len(problems[LISTED:]),
        "data_errors": data_errors[:LISTED],
        "more_data_errors": len(data_errors[LISTED:]),
        "warnings": evaluation.warnings[:LISTED],
        "more_warnings": len(evaluation.warnings[LISTED:]),
        "regions_from": evaluation.regions_from,
        "papers": {
            paper: [(theirs, LABELS["voxels", ours].name) for theirs, ours in names.items()]
            for paper, names in PAPERS.items()
        },
        "tables": [_table(evaluation, score_set) for score_set in SETS] if rows else [],
        "groups": [table for by in ("site", "protocol") if (table := _groups(evaluation, by))],
        "boxes": [_box_figure(evaluation, score) for score in SETS["official"]] if rows else [],
        "box_from": BOX_FROM,
        "scatters": [figure for region in evaluation.regions if (figure := _scatter(evaluation, region))],
        "without": [_case(row) for row in invalid[:LISTED]],
        "more_without": len(invalid[LISTED:]),
        "worst": [_worst(evaluation, region) for region in evaluation.regions],
        "case_columns": [LABELS[column] for column in CASE_COLUMNS],
        "all_cases": [_case(row) for row in rows[:TABLE_ROWS]],
        "row_count": len(rows),
        "more_cases": len(rows[TABLE_ROWS:]),
    }
    return render("evaluation_report.html", parts)


# --- cells ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A value as shown, the reason (``why``) of a remarkable one, and whether to flag it."""

    text: str
    why: str = ""
    flag: bool = False


def _cell(value: float | None, digits: int, why: str) -> Cell:
    text = number(value, digits)
    return Cell(text, why if text == NO_VALUE else "")


def _score_cell(row: Row, score_set: str, score: str) -> Cell:
    value = row.sets[score_set].get(score)
    if (score_set, score) == ("official", "precision") and value is not None and value > 1:
        o = row.counts
        clusters = f"{o.detected_reference_clusters} reference clusters touched by {o.predicted_clusters} predicted"
        return Cell(number(value, 3), f"exceeds 1, as the challenge's formula can: {clusters} ones", flag=True)
    return _cell(value, LABELS[score_set, score].digits, f"no value: {_empty_mask(row)}")


def _empty_mask(row: Row) -> str:
    reference, predicted = row.counts.reference_voxels, row.counts.predicted_voxels
    if reference and predicted:
        return "it is not defined here"
    if not reference and not predicted:
        return "reference and prediction are both empty"
    return "the prediction is empty" if reference else "the reference is empty"


def _short_name_of(region: str) -> str:
    return NAMES["all"] if region == "all" else region


def _one_row_per_case(rows: Iterable[Row]) -> list[Row]:
    """Returns the first row of every case."""
    return list({row.label: row for row in reversed(list(rows))}.values())[::-1]


# --- tables ---------------------------------------------------------------------------------------------


def _table(evaluation: Evaluation, score_set: str) -> dict[str, Any]:
    """Returns a set of scores: by region, lines of a label, a flag and cells."""
    summaries = {(s.region, s.score): s for s in evaluation.summaries if s.by == "all" and s.score_set == score_set}
    regions = []
    for region in evaluation.regions:
        scores = [summaries[region, score] for score in SETS[score_set] if (region, score) in summaries]
        if scores:
            regions.append((name_of(region), [_line(summary, evaluation.rows) for summary in scores]))
    return {"name": SET_NAMES[score_set], "regions": regions}


def _line(summary: Summary, rows: Iterable[Row]) -> dict[str, Any]:
    label = LABELS[summary.score_set, summary.score]
    none = "no case has a value"
    few = "too few cases with a value" if summary.n else none
    flag = ""
    if (summary.score_set, summary.score) == ("official", "precision"):
        values = values_of((row for row in rows if row.region == summary.region), "official", "precision")
        above = sum(value > 1 for value in values)
        flag = f"above 1 in {above} of {plural(len(values), 'case')}" if above else ""
    cells = [
        _cell(summary.mean, label.digits, none),
        _cell(summary.sd, label.digits, few),
        _cell(summary.median, label.digits, none),
        _interval(summary, few),
        Cell(str(summary.n)),
        Cell(str(summary.without)),
    ]
    return {"label": label, "flag": flag, "cells": cells}


def _interval(summary: Summary, why: str) -> Cell:
    digits = LABELS[summary.score_set, summary.score].digits
    low, high = number(summary.low, digits), number(summary.high, digits)
    return Cell(NO_VALUE, why) if NO_VALUE in (low, high) else Cell(f"{low} to {high}")


def _groups(evaluation: Evaluation, by: str) -> dict[str, Any] | None:
    """Returns the official scores by site or protocol; None where there are not several."""
    official = SETS["official"]
    summaries = {
        (s.region, s.group, s.score): s for s in evaluation.summaries if s.by == by and s.score_set == "official"
    }
    names = sorted({group for _, group, _ in summaries}, key=files.natural_sort_key)
    if len(names) < 2:
        return None
    regions = []
    for region in evaluation.regions:
        lines = []
        for name in names:
            scores = [summaries[region, name, score] for score in official if (region, name, score) in summaries]
            if len(scores) == len(official):
                lines.append((name or f"(no {by})", scores[0].n + scores[0].without, [_group_cell(s) for s in scores]))
        if lines:
            regions.append((name_of(region), lines))
    return {"by": by, "columns": [LABELS["official", s] for s in official], "regions": regions, "count": len(names)}


def _group_cell(summary: Summary) -> tuple[Cell, str, str]:
    """Returns the mean, its interval and the number of cases with a value, where it is smaller."""
    interval = _interval(summary, "").text
    mean = _cell(summary.mean, LABELS[summary.score_set, summary.score].digits, "no case has a value")
    return mean, "" if interval == NO_VALUE else interval, f"n = {summary.n}" if summary.without else ""


def _case(row: Row) -> dict[str, Any]:
    counts = row.counts
    return {
        "label": row.label,
        "protocol": row.protocol,
        "region": _short_name_of(row.region),
        "status": row.status,
        "scored": row.status == SCORED,
        "cells": [_score_cell(row, *column) for column in CASE_COLUMNS],
        "clusters": (
            counts.reference_clusters,
            counts.detected_reference_clusters,
            counts.predicted_clusters,
            counts.true_positive_clusters,
        ),
        "reference": str(row.reference),
        "prediction": "" if row.prediction is None else str(row.prediction),
        "notes": row.notes,
    }


def _worst(evaluation: Evaluation, region: str) -> dict[str, Any]:
    """Returns the scored cases of a region with the lowest Dice, and the number of those that have one."""
    scored = [
        (value, row.label, row)
        for row in evaluation.rows
        if row.region == region and row.status == SCORED and (value := row.sets["official"]["dice"]) is not None
    ]
    scored.sort(key=lambda entry: entry[:2])
    cases = [_case(row) for *_, row in scored[:WORST_CASES]]
    return {"region": name_of(region), "cases": cases, "of": len(scored)}


# --- figures --------------------------------------------------------------------------------------------


def _box_groups(evaluation: Evaluation) -> tuple[list[tuple[str, str | None, list[Row]]], int]:
    """Returns region, site (None for all) and rows of every box, and the number of sites left out."""
    sites = Counter(row.site for row in _one_row_per_case(evaluation.rows))
    drawn: list[str] = []
    if len(sites) > 1:
        drawn = sorted((site for site, _ in sites.most_common(SITES_DRAWN)), key=files.natural_sort_key)
    groups: list[tuple[str, str | None, list[Row]]] = []
    for region in evaluation.regions:
        rows = [row for row in evaluation.rows if row.region == region]
        groups.append((region, None, rows))
        groups += [(region, site, own) for site in drawn if (own := [row for row in rows if row.site == site])]
    return groups, len(sites) - len(drawn) if drawn else 0


def _box_figure(evaluation: Evaluation, score: str) -> dict[str, Any]:
    """Returns box plots of one score by region and site, with notes."""
    groups, sites_left = _box_groups(evaluation)
    values = [values_of(rows, "official", score) for *_, rows in groups]
    highest = max((value for column in values for value in column), default=0.0)
    # A few extreme values (AVD of a nearly empty reference) must not squeeze all others into a line.
    fence = max([1.0, *(_fence(column) for column in values if column)])
    scale = Scale.up_to(max(1.0, highest if highest <= 1.5 * fence else fence))
    most = max(20, DOTS_PER_FIGURE // max(1, len(groups)))
    rows, descriptions = [], []
    for (region, site, members), column in zip(groups, values, strict=True):
        row, description = _box_row(region, site, members, column, score, most)
        rows.append(row)
        descriptions.append(description)
    whole = [column for (_, site, _), column in zip(groups, values, strict=True) if site is None]
    notes = []
    if any(len(column) > most for column in whole):
        notes.append(f"Of each box at most {most} cases are drawn, evenly from lowest to highest; boxes count all.")
    if beyond := sum(map(scale.beyond, whole)):
        values_lie = "value lies" if beyond == 1 else "values lie"
        notes.append(f"{beyond} {values_lie} beyond the axis, up to {number(highest, 3)}: drawn at its end.")
    if sites_left:
        notes.append(f"Of {sites_left + SITES_DRAWN} sites, the {SITES_DRAWN} with the most cases are drawn.")
    label = LABELS["official", score]
    svg = box_plots(f"box-{score}", f"Box plots of {label.name}: {'; '.join(descriptions)}", scale, rows)
    return {"label": label, "svg": svg, "notes": notes}


def _fence(values: list[float]) -> float:
    low, high = (float(np.quantile(values, share)) for share in (0.25, 0.75))
    return high + 3 * (high - low)


def _box_row(
    region: str, site: str | None, members: Sequence[Row], values: list[float], score: str, most: int
) -> tuple[BoxRow, str]:
    """Returns a row of a box plot, and its description."""
    missing = len(members) - len(values)
    count = f"n = {len(values)}" + (f", {missing} without" if missing else "")
    name = _short_name_of(region) if site is None else site or "(no site)"
    label = f"{_shortened(name, 18)}\n{count}" if site is None else f"{_shortened(name, 12)} ({len(values)})"
    description = f"{name}: {count}"
    if values:
        low, median, high = (float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75))
        description += f", median {number(median, 3)}"
        if len(values) >= BOX_FROM:
            description += f", quartiles {number(low, 3)} and {number(high, 3)}"
    scored = [(value, row.label, row) for row in members if (value := row.sets["official"][score]) is not None]
    scored.sort(key=lambda entry: entry[:2])
    dots = [_dot(row, f"{label}: {number(value, 3)}", value) for value, label, row in evenly_spaced(scored, most)]
    return BoxRow(label, style_of(region), values, dots, site is not None), description


def _dot(row: Row, title: str, value: float, y: float = 0.0) -> Dot:
    scored = row.status == SCORED
    return Dot(value, title if scored else f"{title} ({row.status})", not scored, y)


def _shortened(text: str, most: int) -> str:
    """Returns the text within ``most`` columns, with an ellipsis where it is cut."""
    shown = escape_control_characters(text)
    widths = [2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown]
    if sum(widths) <= most:
        return shown
    kept = int(np.searchsorted(np.cumsum(widths), most - 1, side="right"))
    return f"{shown[:kept]}\N{HORIZONTAL ELLIPSIS}"


def _scatter(evaluation: Evaluation, region: str) -> dict[str, Any] | None:
    """Returns predicted against reference volumes of a region with notes; None without volumes."""
    points = []
    for row in evaluation.rows:
        reference, predicted = row.sets["volume"].get("reference_mm3"), row.sets["volume"].get("predicted_mm3")
        if row.region == region and reference is not None and predicted is not None:
            points.append((reference, predicted, row))
    if not points:
        return None
    points.sort(key=lambda point: (point[0], point[1], point[2].label))
    drawn = evenly_spaced(points, DOTS_PER_FIGURE)
    notes = _limits_of_agreement([predicted - true for true, predicted, row in points if row.status == SCORED])
    if len(drawn) < len(points):
        notes.append(f"{len(drawn)} of {len(points)} cases are drawn, evenly by reference volume.")
    dots = [
        _dot(row, f"{row.label}: reference {number(true)}, predicted {number(predicted)} {MM3}", true, predicted)
        for true, predicted, row in drawn
    ]
    description = f"Predicted against reference volume, {name_of(region)}. {' '.join(notes)}"
    labels = (f"reference volume, {MM3}", f"predicted volume, {MM3}")
    name = f"scatter-{evaluation.regions.index(region)}"
    return {
        "region": name_of(region), "svg": scatter(name, description, style_of(region), dots, labels), "notes": notes
    }  # fmt: skip


def _limits_of_agreement(differences: list[float]) -> list[str]:
    """Returns a sentence with Bland and Altman's mean difference and limits of agreement."""
    if not differences:
        return []
    mean = float(np.mean(differences))
    sentence = f"Predicted \N{MINUS SIGN} reference: {number(mean)} {MM3} on average"
    if len(differences) >= BOX_FROM:
        reach = 1.96 * float(np.std(differences, ddof=1))
        sentence += f"; 95 % limits of agreement {number(mean - reach)} to {number(mean + reach)} {MM3}"
    return [f"{sentence} (scored cases, n = {len(differences)})."]

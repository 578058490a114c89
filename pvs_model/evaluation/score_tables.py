"""Scores for a ranking: from an evaluation, or from a table in a CSV or JSON file."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pvs_model.evaluation.ranking import METRICS, Score, ScoresError
from pvs_model.evaluation.records import Report
from pvs_model.evaluation.tables import Line, read_csv, read_text

log = logging.getLogger(__name__)

#: The regions of the challenge; where there are scores of them, those of other regions (the whole image) do not count.
REGIONS = ("CSO", "BG")
#: The phase of scores that name none.
ONLY_PHASE = "all"

#: Names of columns in small letters, the one that counts first: an evaluation's own, then those of other tables.
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "team": ("team", "method"),
    "phase": ("phase",),
    "region": ("region", "roi"),
    "case": ("case",),
    "site": ("site",),
    "recall": ("official.recall", "recall"),
    "precision": ("official.precision", "precision"),
    "dice": ("official.dice", "dice", "dsc"),
    "avd": ("official.avd_capped", "avd_capped", "avd"),
}


def scores_of(report: Report, team: str, phase: str = ONLY_PHASE) -> list[Score]:
    """The challenge's scores ("official", AVD capped) in an evaluation, in the order of its rows.

    Of the regions CSO and BG where there are rows of them, else of all that there are.
    """
    found = []
    for row in report.rows:
        official = row.sets["official"]
        found.append(
            Score(
                team, phase, row.region, row.label,
                official["recall"], official["precision"], official["dice"], official["avd_capped"],
            )
        )  # fmt: skip
    return _of_regions(found, str(report.names[1]) or team)


def read_scores(path: Path, team: str | None = None, phase: str | None = None) -> list[Score]:
    """Read a table of scores: CSV (comma, semicolon or tab), or JSON by the ending ``.json``.

    Columns in any order and case: ``team``, ``phase`` (optional), ``region``, ``case`` (optional: without it the
    scores are means over cases), ``recall``, ``precision``, ``dice`` (or ``DSC``), ``avd`` (capped at 1). The CSV that
    ``evaluate --csv`` writes is such a table, too, of one team; of its rows those of CSO and BG count, if any do.
    JSON is a list of objects with these keys, or an object that has one as ``cases`` (what ``evaluate --json``
    writes), ``scores`` or ``rows``.

    Args:
        path: the file.
        team: name of the team, for a file that names none, or in place of the only one that it names.
        phase: the same of the phase; ``ONLY_PHASE`` if neither says.

    Raises:
        TableError: the file cannot be read.
        ScoresError: it lacks a column, holds a score out of range, or one twice.
    """
    rows = _json_rows(path) if path.suffix.lower() == ".json" else read_csv(path)
    columns = _columns(path, rows, team)
    team = _one_name(path, rows, columns, "team", team)
    phase = _one_name(path, rows, columns, "phase", phase)
    scores: list[Score] = []
    lines: dict[tuple[str, str, str, str | None], str] = {}
    for row in rows:
        score = _score(row, columns, team, phase)
        key = (score.team, score.phase, score.region, score.case)
        if key in lines:
            raise ScoresError(f"{row.where}: expected {score.label} once, found it in {lines[key]}, too")
        lines[key] = row.where
        scores.append(score)
    return _of_regions(scores, str(path)) if columns["dice"].startswith("official.") else scores


def _json_rows(path: Path) -> list[Line]:
    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ScoresError(f"{path}: expected JSON, found {error}") from error
    if isinstance(content, dict):
        content = next((content[name] for name in ("cases", "scores", "rows") if name in content), content)
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise ScoresError(f'{path}: expected a list of objects, or one as "scores" or "rows", found something else')
    return [Line(f"{path}, entry {n}", dict(_flat(entry))) for n, entry in enumerate(content, 1)]


def _flat(entry: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Names and values, ``{"official": {"dice": 1}}`` as "official.dice"; the level "sets" is left out."""
    for name, value in entry.items():
        name = f"{above}{str(name).lower()}"
        if isinstance(value, dict):
            yield from _flat(value, "" if name == "sets" else f"{name}.")
        else:
            yield name, value


def _columns(path: Path, rows: Sequence[Line], team: str | None) -> dict[str, str]:
    """Which column holds what; "" for an optional one that is not there."""
    there = {name for row in rows for name in row.cells}
    columns = {what: next((name for name in names if name in there), "") for what, names in _COLUMNS.items()}
    needed = ["region", *METRICS] + (["team"] if team is None else [])
    if lacking := [what for what in _COLUMNS if what in needed and not columns[what]]:
        found = ", ".join(sorted(there)[:20]) or "none"
        hint = " (or a name for the team)" if "team" in lacking else ""
        raise ScoresError(
            f"{path}: expected columns {', '.join(needed)}{hint}, found no {', '.join(lacking)} in {found}"
        )
    return columns


def _one_name(path: Path, rows: Sequence[Line], columns: dict[str, str], what: str, given: str | None) -> str | None:
    """The name that all rows get; None where each has its own."""
    if columns[what] and given is not None:
        named = sorted({str(row.cells.get(columns[what])) for row in rows})
        if len(named) > 1:
            raise ScoresError(f"{path}: expected one {what}, to be named {given}, found {', '.join(named)}")
    if given is None and not columns[what]:
        return ONLY_PHASE if what == "phase" else None
    return given


def _score(row: Line, columns: dict[str, str], team: str | None, phase: str | None) -> Score:
    case = row.name(columns["case"], "case") if columns["case"] else None
    site = str(row.cells.get(columns["site"]) or "").strip() if columns["site"] else ""
    if case is not None and site:
        case = f"{site}/{case}"
    team, phase = team or row.name(columns["team"], "team"), phase or row.name(columns["phase"], "phase")
    values = {metric: row.number(columns[metric]) for metric in METRICS}
    try:
        return Score(team, phase, row.name(columns["region"], "region"), case, **values)
    except ScoresError as error:
        raise ScoresError(f"{row.where}: {error}") from None


def _of_regions(scores: list[Score], source: str) -> list[Score]:
    """Those of the challenge's regions, if there are any, else all."""
    kept = [score for score in scores if score.region in REGIONS]
    if not kept:
        return scores
    if lost := sorted({str(score.case) for score in scores} - {str(score.case) for score in kept}):
        log.warning("%s: %s left out, which have no scores of %s", source, ", ".join(lost), " or ".join(REGIONS))
    return kept

"""Scores for a ranking: from an evaluation, or from a table in a CSV or JSON file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model.evaluation.ranking import METRICS, Score, ScoresError
from pvs_model.evaluation.results import Evaluation
from pvs_model.evaluation.tables import names_in, numbers_in, read_csv, read_text
from pvs_model.types import CHALLENGE_REGIONS

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: The regions of the challenge; where there are scores of them, those of other regions (the whole image) do not count.
REGIONS = CHALLENGE_REGIONS
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


def scores_of(evaluation: Evaluation, team: str, phase: str = ONLY_PHASE) -> list[Score]:
    """Returns the challenge's scores ("official", AVD capped) of an evaluation, in the order of its rows.

    Rows of the regions CSO and BG count where there are any, else all rows.
    """
    columns = ("recall", "precision", "dice", "avd_capped")
    scores = [
        Score(team, phase, row.region, row.label, *(row.sets["official"][column] for column in columns))
        for row in evaluation.rows
    ]
    return _of_regions(scores, str(evaluation.names[1]) or team)


def read_scores(path: Path, team: str | None = None, phase: str | None = None) -> list[Score]:
    """Reads a table of scores: CSV (comma, semicolon or tab), or JSON by the ending ``.json``.

    Columns in any order and case: ``team``, ``phase`` (optional), ``region``, ``case`` (optional: without it the
    scores are means over cases), ``recall``, ``precision``, ``dice`` (or ``DSC``), ``avd`` (capped at 1). The CSV that
    ``evaluate --csv`` writes is such a table, too, of one team; of its rows those of CSO and BG count, if any do.
    JSON is a list of objects with these keys, or an object that has one as ``cases`` (what ``evaluate --json``
    writes), ``scores`` or ``rows``.

    Args:
        path: CSV or JSON file.
        team: Name of the team, for a file that names none, or in place of the only one that it names.
        phase: Name of the phase, likewise; ``ONLY_PHASE`` without either.

    Raises:
        TableError: the file cannot be read.
        ScoresError: it lacks a column, holds a score out of range, or one twice.
    """
    table = _read_json(path) if path.suffix.lower() == ".json" else read_csv(path)
    columns = _columns(path, table, team)
    teams = _names(path, table, columns, "team", team)
    phases = _names(path, table, columns, "phase", phase or (None if columns["phase"] else ONLY_PHASE))
    regions = names_in(table, columns["region"], "region")
    cases: list[str] | list[None] = [None] * len(table)
    if columns["case"]:
        cases = names_in(table, columns["case"], "case")
        if columns["site"]:
            sites = [str(site or "").strip() for site in table[columns["site"]]]
            cases = [f"{site}/{case}" if site else case for site, case in zip(sites, cases, strict=True)]
    values = zip(*(numbers_in(table, columns[metric]) for metric in METRICS), strict=True)
    scores: dict[tuple[str, str, str, str | None], Score] = {}
    for where, *key, row in zip(table.index, teams, phases, regions, cases, values, strict=True):
        if tuple(key) in scores:
            other = table.index[list(scores).index(tuple(key))]
            raise ScoresError(f"{where}: expected {scores[tuple(key)].label} once, got it in {other}, too")
        try:
            scores[tuple(key)] = Score(*key, *row)
        except ScoresError as error:
            raise ScoresError(f"{where}: {error}") from None
    listing = list(scores.values())
    return _of_regions(listing, str(path)) if columns["dice"].startswith("official.") else listing


def _read_json(path: Path) -> pd.DataFrame:
    """Returns the objects of a JSON file as rows; ``{"official": {"dice": 1}}`` is in the column "official.dice"."""
    import pandas as pd

    try:
        content = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ScoresError(f"{path}: expected JSON, got {error}") from error
    if isinstance(content, dict):
        content = next((content[name] for name in ("cases", "scores", "rows") if name in content), content)
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise ScoresError(f'{path}: expected a list of objects, or one as "scores" or "rows", got something else')
    table = pd.json_normalize(content).astype(object)
    table = table.where(table.notna(), None)
    table.index = [f"{path}, entry {n}" for n in range(1, len(table) + 1)]
    return table.rename(columns=lambda name: str(name).lower().removeprefix("sets."))


def _columns(path: Path, table: pd.DataFrame, team: str | None) -> dict[str, str]:
    """Returns the columns by content; "" for an optional one that is missing."""
    columns = {what: next((name for name in names if name in table), "") for what, names in _COLUMNS.items()}
    needed = ["region", *METRICS] + (["team"] if team is None else [])
    if lacking := [what for what in _COLUMNS if what in needed and not columns[what]]:
        present = ", ".join(sorted(table)[:20]) or "none"
        hint = " (or a name for the team)" if "team" in lacking else ""
        raise ScoresError(
            f"{path}: expected columns {', '.join(needed)}{hint}, got no {', '.join(lacking)} in {present}"
        )
    return columns


def _names(path: Path, table: pd.DataFrame, columns: dict[str, str], what: str, given: str | None) -> list[str]:
    """Returns the name of each row's team or phase: the given one, or its own.

    Raises:
        ScoresError: a name is given for several.
    """
    if given is None:
        return names_in(table, columns[what], what)
    if columns[what] and len(own := sorted(set(map(str, table[columns[what]])))) > 1:
        raise ScoresError(f"{path}: expected one {what}, to be named {given}, got {', '.join(own)}")
    return [given] * len(table)


def _of_regions(scores: list[Score], source: str) -> list[Score]:
    """Returns the scores of the challenge's regions, if there are any, else all."""
    kept = [score for score in scores if score.region in REGIONS]
    if not kept:
        return scores
    if lost := sorted({str(score.case) for score in scores} - {str(score.case) for score in kept}):
        log.warning("%s: %s left out, which have no scores of %s", source, ", ".join(lost), " or ".join(REGIONS))
    return kept

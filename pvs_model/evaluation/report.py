"""An evaluation as summaries, a table to read, JSON without NaN, and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pvs_model import __version__
from pvs_model.evaluation.metrics import PAPERS, SETS
from pvs_model.evaluation.records import Report, Row, Summary, every_score, values_of
from pvs_model.evaluation.tables import markdown

RESAMPLES, SEED = 2000, 0
#: Fewer values than this give no interval: their resamples say next to nothing.
LEAST_FOR_INTERVAL = 5

#: What the columns of the printed table are called: the challenge's own words.
TITLES = {"dice": "Dice", "avd": "AVD", "avd_capped": "AVD (capped)", "recall": "recall", "precision": "precision"}


def summarise(rows: Sequence[Row]) -> tuple[Summary, ...]:
    """Every score over all rows, and by site and protocol where there are several; per region.

    Rows without a value are left out and counted. The interval is the 95 % percentile interval of the mean
    over 2000 resamples of the cases, seeded.
    """
    out = []
    regions = list(dict.fromkeys(row.region for row in rows))
    groups: dict[str, list[str]] = {"all": [""]}
    for by in ("site", "protocol"):
        names = sorted({getattr(row, by) for row in rows})
        if len(names) > 1:
            groups[by] = names
    for by, names in groups.items():
        for name in names:
            members = rows if by == "all" else [row for row in rows if getattr(row, by) == name]
            for region in regions:
                here = [row for row in members if row.region == region]
                if here:
                    out += [_summary(by, name, region, here, *score) for score in every_score()]
    return tuple(out)


def _summary(by: str, group: str, region: str, rows: Sequence[Row], score_set: str, score: str) -> Summary:
    values = np.array(values_of(rows, score_set, score))
    n = len(values)
    low, high = interval(values)
    return Summary(
        by, group, region, score_set, score, n, len(rows) - n,
        mean=float(values.mean()) if n else None,
        sd=float(values.std(ddof=1)) if n > 1 else None,
        median=float(np.median(values)) if n else None,
        low=low, high=high,
    )  # fmt: skip


def interval(values: Any) -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of the mean of (n,) values; None, None for fewer than ``LEAST_FOR_INTERVAL``."""
    if len(values) < LEAST_FOR_INTERVAL:
        return None, None
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def text(report: Report, paper: str | None = None) -> str:
    """The table that is printed: one line per group and region, means with SD and interval.

    Args:
        report: what was scored.
        paper: one of ``metrics.PAPERS``, for its scores under its own names; None for the official ones.
    """
    score_set = "official" if paper is None else "voxels"
    columns = TITLES if paper is None else {score: name for name, score in PAPERS[paper].items()}
    table = [["", "region", "cases", *columns.values()]]
    found = {(s.by, s.group, s.region, s.score): s for s in report.summaries if s.score_set == score_set}
    for by, group, region in dict.fromkeys(key[:3] for key in found):
        cells = [_cell(found[by, group, region, score]) for score in columns]
        count = found[by, group, region, "dice"]
        name = "all cases" if by == "all" else group or "no site"
        table.append([name, region, str(count.n + count.without), *cells])
    return markdown(table[0], table[1:])


def _cell(summary: Summary) -> str:
    if summary.mean is None:
        return "-"
    out = f"{summary.mean:.3f}"
    if summary.sd is not None:
        out += f" ± {summary.sd:.3f}"
    if summary.low is not None:
        out += f" [{summary.low:.3f}, {summary.high:.3f}]"
    return f"{out} (n = {summary.n})" if summary.without else out


def as_json(report: Report) -> dict[str, Any]:
    """All of a report as JSON values; None where a score has no value, never NaN."""
    content = {
        "version": __version__,
        "truth": report.names[0],
        "predictions": report.names[1],
        "regions": report.regions_from,
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "cases": [_row(row) for row in report.rows],
        "aggregates": [asdict(summary) for summary in report.summaries],
    }
    json.dumps(content, allow_nan=False)  # a NaN would be a bug of ours, and no JSON
    return content


def _row(row: Row) -> dict[str, Any]:
    facts = {"case": row.case, "site": row.site, "protocol": row.protocol, "region": row.region, "status": row.status}
    files = {"truth": str(row.truth), "prediction": None if row.prediction is None else str(row.prediction)}
    return {**facts, "counts": asdict(row.counts), **row.sets, **files, "notes": list(row.notes)}


def as_csv(rows: Iterable[Row]) -> str:
    """One line per case and region: columns ``<set>.<score>``, empty where a score has no value.

    A text that a spreadsheet would take for a formula gets a space in front.
    """
    out = io.StringIO()
    counts = ("truth_clusters", "predicted_clusters", "touched_truth", "touching_predicted", "matched")
    scores = [f"{name}.{score}" for name, score in every_score()]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["case", "site", "protocol", "region", "status", *scores, *counts, "truth", "prediction"])
    for row in rows:
        values = [row.sets[name][score] for name in SETS for score in SETS[name]]
        names = [row.case, row.site, row.protocol, row.region, row.status]
        files = [str(row.truth), "" if row.prediction is None else str(row.prediction)]
        numbers = ["" if value is None or math.isnan(value) else repr(value) for value in values]
        writer.writerow(
            [*map(_plain, names), *numbers, *(getattr(row.counts, name) for name in counts), *map(_plain, files)]
        )
    return out.getvalue()


def _plain(name: str) -> str:
    return f" {name}" if name[:1] in ("=", "+", "-", "@", "\t", "\r") else name

"""Summaries of an evaluation as tables, JSON without NaN, and CSV."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pvs_model import __version__
from pvs_model.evaluation.metrics import PAPERS
from pvs_model.evaluation.results import Evaluation, Row, Summary, every_score
from pvs_model.evaluation.tables import csv_text, markdown

RESAMPLES, SEED = 2000, 0
#: Fewer values than this give no interval: their resamples vary too little.
MIN_CASES_FOR_INTERVAL = 5

#: Titles of the columns of the printed table, as in the challenge.
TITLES = {"dice": "Dice", "avd": "AVD", "avd_capped": "AVD (capped)", "recall": "recall", "precision": "precision"}

_COUNTS = (
    "reference_clusters",
    "predicted_clusters",
    "detected_reference_clusters",
    "true_positive_clusters",
    "matched",
)


def summarise(rows: Sequence[Row]) -> tuple[Summary, ...]:
    """Computes statistics of every score over all rows, and by site and protocol where there are several; per region.

    Rows without a value are left out and counted. The interval is the 95 % percentile interval of the mean
    over 2000 resamples of the cases, seeded.
    """
    import pandas as pd

    if not rows:
        return ()
    table = pd.DataFrame(
        [{"all": "", "site": row.site, "protocol": row.protocol, "region": row.region} for row in rows]
    )
    regions = list(dict.fromkeys(table["region"]))
    table["region"] = pd.Categorical(table["region"], regions, ordered=True)
    for key in every_score():
        table[[key]] = pd.Series([row.sets[key[0]][key[1]] for row in rows], dtype=float).to_frame()
    return tuple(
        _summary(by, group, region, *score, part[[score]].to_numpy()[:, 0])
        for by in ("all", "site", "protocol")
        if by == "all" or table[by].nunique() > 1
        for (group, region), part in table.groupby([by, "region"], observed=True)
        for score in every_score()
    )


def _summary(by: str, group: str, region: str, score_set: str, score: str, column: Any) -> Summary:
    values = column[~np.isnan(column)]
    n = len(values)
    low, high = interval(values)
    return Summary(
        by, group, region, score_set, score, n, len(column) - n,
        mean=float(values.mean()) if n else None,
        sd=float(values.std(ddof=1)) if n > 1 else None,
        median=float(np.median(values)) if n else None,
        low=low, high=high,
    )  # fmt: skip


def interval(values: Any) -> tuple[float | None, float | None]:
    """Returns the 95 % bootstrap interval of the mean of (n,) values; None below ``MIN_CASES_FOR_INTERVAL``."""
    if len(values) < MIN_CASES_FOR_INTERVAL:
        return None, None
    from scipy.stats import bootstrap

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = bootstrap(
        (np.asarray(values),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def text(evaluation: Evaluation, paper: str | None = None) -> str:
    """Returns the table that is printed: one line per group and region, means with SD and interval.

    Args:
        evaluation: Results to print.
        paper: One of ``metrics.PAPERS``, for its scores under its own names; None for the official ones.
    """
    score_set = "official" if paper is None else "voxels"
    titles = TITLES if paper is None else {score: name for name, score in PAPERS[paper].items()}
    summaries = {(s.by, s.group, s.region, s.score): s for s in evaluation.summaries if s.score_set == score_set}
    lines = []
    for by, group, region in dict.fromkeys(key[:3] for key in summaries):
        cells = [_cell(summaries[by, group, region, score]) for score in titles]
        dice = summaries[by, group, region, "dice"]
        name = "all cases" if by == "all" else group or "no site"
        lines.append([name, region, str(dice.n + dice.without), *cells])
    return markdown(["", "region", "cases", *titles.values()], lines)


def _cell(summary: Summary) -> str:
    if summary.mean is None:
        return "-"
    out = f"{summary.mean:.3f}"
    if summary.sd is not None:
        out += f" ± {summary.sd:.3f}"
    if summary.low is not None:
        out += f" [{summary.low:.3f}, {summary.high:.3f}]"
    return f"{out} (n = {summary.n})" if summary.without else out


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns all results as JSON values; None where a score has no value, never NaN."""
    content = {
        "version": __version__,
        "reference": evaluation.names[0],
        "predictions": evaluation.names[1],
        "regions": evaluation.regions_from,
        "problems": list(evaluation.problems),
        "warnings": list(evaluation.warnings),
        "cases": [
            {**_names(row), "counts": asdict(row.counts), **row.sets, **_files(row), "notes": list(row.notes)}
            for row in evaluation.rows
        ],
        "aggregates": [asdict(summary) for summary in evaluation.summaries],
    }
    json.dumps(content, allow_nan=False)  # a NaN would be a bug, and no JSON
    return content


def as_csv(rows: Iterable[Row]) -> str:
    """Returns one line per case and region: columns ``<set>.<score>``, empty where a score has no value.

    Numbers keep every digit, so that they are ranked as those of ``as_json``.
    """
    columns = {f"{name}.{score}": (name, score) for name, score in every_score()}
    lines = [
        {
            **_names(row),
            **{column: row.sets[name][score] for column, (name, score) in columns.items()},
            **{count: getattr(row.counts, count) for count in _COUNTS},
            **_files(row),
        }
        for row in rows
    ]
    names = ("case", "site", "protocol", "region", "status")
    return csv_text([*names, *columns, *_COUNTS, "reference", "prediction"], lines, decimals=None)


def _names(row: Row) -> dict[str, str]:
    return {name: getattr(row, name) for name in ("case", "site", "protocol", "region", "status")}


def _files(row: Row) -> dict[str, str | None]:
    return {"reference": str(row.reference), "prediction": None if row.prediction is None else str(row.prediction)}

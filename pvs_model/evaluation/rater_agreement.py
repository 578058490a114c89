"""Volumes (or counts) of PVS against visual scores, and their agreement between repeats, as in mcpvs_net_2024.

Against scores (sections 2.7 and 2.9): Spearman's correlation; one-way analysis of variance, with equal variances and
Welch's; Dunnett's T3 test of each pair of score groups (J Am Stat Assoc 75:796, 1980). Score groups of fewer than
``SMALLEST_GROUP`` subjects are left out of the last two, with a warning. Between repeats (section 2.8: time points;
also raters, or reference and prediction): intraclass correlations ICC(1,1), ICC(2,1) and ICC(3,1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pvs_model.errors import PVSError
from pvs_model.evaluation.agreement_statistics import (
    AnovaResult,
    Correlation,
    IntraclassCorrelation,
    PairTest,
    dunnett_t3,
    intraclass,
    spearman,
    variance_tests,
)
from pvs_model.evaluation.tables import document, fixed, markdown, names_in, numbers_in, read_csv
from pvs_model.layouts.base import listed

if TYPE_CHECKING:
    import pandas as pd

#: Score groups of fewer subjects are left out (section 2.9).
SMALLEST_GROUP = 5
#: The name of the region, the group and the repeat of measurements without one.
ALL = "all"

#: What ``burden.csv`` has in its column "hemisphere" for both together.
BOTH_SIDES = "both"

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject", "case", "id"),
    "volume": ("volume", "count", "pvs_volume_mm3", "pvs_count"),
    "score": ("score", "rating"),
    "region": ("region", "roi"),
    "hemisphere": ("hemisphere",),
    "repeat": ("repeat", "time", "timepoint", "time_point", "visit", "rater"),
}
_FIELDS = ("subject", "volume", "score", "region", "repeat")


class MeasurementsError(PVSError):
    """A table of volumes and scores cannot be read, or contradicts itself."""


@dataclass(frozen=True)
class Measurement:
    """One volume of one subject.

    Attributes:
        subject: Name of the subject.
        volume: Volume or count, any unit.
        score: Visual score; None without one.
        region: Name of the region, such as "BG".
        repeat: One of several measurements of the same volume: a time point, a rater, "reference".
        groups: (column, value) of groups that are also compared separately, such as ("scanner", "Siemens").
    """

    subject: str
    volume: float
    score: float | None = None
    region: str = ALL
    repeat: str = ALL
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ScoreGroup:
    """The volumes of the subjects of one visual score; ``sd`` with n - 1, None for one subject."""

    score: float
    n: int
    mean: float
    sd: float | None
    left_out: bool


@dataclass(frozen=True)
class ScoreAgreement:
    """Volumes against visual scores, in one region, group and repeat."""

    region: str
    group: str
    repeat: str
    correlation: Correlation
    groups: tuple[ScoreGroup, ...]
    variances: tuple[AnovaResult, ...]
    pairs: tuple[PairTest, ...]


@dataclass(frozen=True)
class RepeatAgreement:
    """Agreement between repeats, in one region and group.

    Attributes:
        region, group: Their names.
        repeats: Names of the repeats.
        n: Number of subjects with all of them.
        left_out: Subjects without some of them.
        correlations: The three forms; empty for fewer than 2 subjects.
    """

    region: str
    group: str
    repeats: tuple[str, ...]
    n: int
    left_out: tuple[str, ...]
    correlations: tuple[IntraclassCorrelation, ...]


@dataclass(frozen=True)
class Agreement:
    """Volumes against scores, and between repeats; each empty where there are no scores or no repeats."""

    against: tuple[ScoreAgreement, ...]
    repeats: tuple[RepeatAgreement, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns Markdown tables."""
        parts = []
        if self.against:
            parts += ["## Volumes against visual scores", _against_table(self.against)]
            parts += ["### Score groups", _groups_table(self.against)]
            if any(a.pairs for a in self.against):
                parts.append("### Pairs of score groups (Dunnett's T3, p adjusted for all pairs)")
                parts.append(_pairs_table(self.against))
        if self.repeats:
            parts += ["## Agreement between repeats (intraclass correlation)", _repeats_table(self.repeats)]
        return document(parts, self.warnings)

    def as_json(self) -> dict[str, Any]:
        """All fields by name; None where there is no value, never NaN."""
        return asdict(self)


def agree(measurements: Sequence[Measurement]) -> Agreement:
    """Compares volumes with scores per region and repeat, and repeated volumes per region.

    Over all subjects, and within each group of each grouping column. The order of the measurements does not matter.

    Raises:
        MeasurementsError: no measurements, or two of one subject, region and repeat.
    """
    import pandas as pd

    if not measurements:
        raise MeasurementsError("expected measurements, got none")
    table = pd.DataFrame(
        [
            {**{name: getattr(m, name) for name in _FIELDS}, **{(column,): value for column, value in m.groups}}
            for m in measurements
        ]
    ).astype({"score": float})
    again = table[table.duplicated(["subject", "region", "repeat"])]
    if len(again):
        first = again.iloc[0]
        raise MeasurementsError(
            f"expected one volume of {_named(first['subject'], first['region'], first['repeat'])}, got two"
        )
    notes: list[str] = []
    against, repeats = [], []
    for region in _sorted(table["region"]):
        here = table[table["region"] == region].sort_values(["subject", "repeat"])
        for group, members in _subgroups(here):
            names = _sorted(members["repeat"])
            for repeat in names:
                rated = members[(members["repeat"] == repeat) & members["score"].notna()]
                if len(rated):
                    against.append(_against_ratings((region, group, repeat), rated, notes))
            if len(names) > 1:
                repeats.append(_repeated(region, group, names, members, notes))
    if not against and not repeats:
        notes.append("there is nothing to compare: no visual scores, and no subject measured more than once")
    return Agreement(tuple(against), tuple(repeats), tuple(notes))


def read_measurements(path: Path, groups: Sequence[str] = (), volume: str | None = None) -> list[Measurement]:
    """Reads a CSV file (comma, semicolon or tab), one line per volume.

    Columns in any order and case: ``subject``, ``volume`` (or ``count``), ``score`` (an empty cell: none), and
    optionally ``region`` and ``repeat`` (or ``time``, ``timepoint``, ``visit``, ``rater``). The ``burden.csv`` of a
    report is such a table once it has a column of scores: its rows of one hemisphere are regions of their own.

    Args:
        path: CSV file.
        groups: Columns whose values are also compared separately, such as ("scanner",); without any, the column
            ``group`` if there is one.
        volume: Column of volumes, where it has another name.

    Raises:
        TableError: the file cannot be read, or holds something other than a number.
        MeasurementsError: it lacks a column or a volume, or has a subject twice for the same region and repeat.
    """
    table = read_csv(path)
    present = list(table.columns)
    options = {**_COLUMNS, **({"volume": (volume.lower(),)} if volume else {})}
    columns = {what: next((name for name in names if name in present), "") for what, names in options.items()}
    by = [name.lower() for name in groups] or [name for name in ("group",) if name in present]
    needed = [options[what][0] for what in ("subject", "volume") if not columns[what]]
    if lacking := needed + [name for name in by if name not in present]:
        raise MeasurementsError(f"{path}: expected columns {', '.join(lacking)}, got {', '.join(present)}")
    if not columns["score"] and not columns["repeat"]:
        raise MeasurementsError(f"{path}: expected a column score, or repeat, or both, got {', '.join(present)}")
    subjects = names_in(table, columns["subject"], "subject")
    volumes = numbers_in(table, columns["volume"])
    scores = numbers_in(table, columns["score"]) if columns["score"] else [None] * len(table)
    regions, repeats = (
        names_in(table, columns[what], what) if columns[what] else [ALL] * len(table) for what in ("region", "repeat")
    )
    if columns["hemisphere"]:
        sides = table[columns["hemisphere"]]
        regions = [
            region if side.lower() in ("", BOTH_SIDES) else f"{region} {side}"
            for region, side in zip(regions, sides, strict=True)
        ]
    by_column = [[(column, name) for name in names_in(table, column, "group")] for column in by]
    measurements: dict[tuple[str, str, str], Measurement] = {}
    for row, where in enumerate(table.index):
        amount, key = volumes[row], (subjects[row], regions[row], repeats[row])
        if amount is None:
            raise MeasurementsError(f"{where}: expected a volume in column {columns['volume']}, got an empty cell")
        if key in measurements:
            other = table.index[list(measurements).index(key)]
            raise MeasurementsError(f"{where}: expected one volume of {_named(*key)}, got another in {other}")
        members = tuple(names[row] for names in by_column)
        measurements[key] = Measurement(subjects[row], amount, scores[row], regions[row], repeats[row], members)
    return list(measurements.values())


def _against_ratings(place: tuple[str, str, str], rated: pd.DataFrame, notes: list[str]) -> ScoreAgreement:
    correlation = spearman(rated["volume"].tolist(), rated["score"].tolist())
    by_score = {score: members["volume"].tolist() for score, members in rated.groupby("score")}
    groups = tuple(
        ScoreGroup(
            score,
            len(volumes),
            float(np.mean(volumes)),
            float(np.std(volumes, ddof=1)) if len(volumes) > 1 else None,
            len(volumes) < SMALLEST_GROUP,
        )
        for score, volumes in by_score.items()
    )
    kept = {group.score: by_score[group.score] for group in groups if not group.left_out}
    where = _named(*place)
    if small := [f"{group.score:g} ({group.n})" for group in groups if group.left_out]:
        notes.append(
            f"{where}: scores {', '.join(small)} left out of the comparison of groups, which asks for "
            f"{SMALLEST_GROUP} subjects each"
        )
    if len(kept) < 2:
        notes.append(f"{where}: no two score groups of {SMALLEST_GROUP} subjects, so none are compared")
        return ScoreAgreement(*place, correlation, groups, (), ())
    return ScoreAgreement(*place, correlation, groups, variance_tests(list(kept.values())), dunnett_t3(kept))


def _repeated(region: str, group: str, names: list[str], members: pd.DataFrame, notes: list[str]) -> RepeatAgreement:
    volumes = members.pivot(index="subject", columns="repeat", values="volume")[names]
    complete = volumes.dropna()
    lost = tuple(volumes.index[volumes.isna().any(axis=1)])
    where = _named(region, group)
    if lost:
        notes.append(f"{where}: {len(lost)} of {len(volumes)} subjects lack a repeat and are left out: {listed(lost)}")
    correlations: tuple[IntraclassCorrelation, ...] = ()
    if len(complete) > 1:
        correlations = intraclass(complete.to_numpy())
    else:
        notes.append(f"{where}: fewer than 2 subjects have all repeats, so there is no intraclass correlation")
    return RepeatAgreement(region, group, tuple(names), len(complete), lost, correlations)


def _subgroups(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Everyone, then each value of each grouping column that has several."""
    yield ALL, table
    for column in table.columns[len(_FIELDS) :]:
        values = _sorted(table[column])
        for value in values if len(values) > 1 else ():
            yield f"{column[0]} {value}", table[table[column] == value]


def _sorted(names: Iterable[str]) -> list[str]:
    """Each once; numbers by size, before words."""

    def key(name: str) -> tuple[float, str]:
        try:
            number = float(name)
        except ValueError:
            return math.inf, name
        return (math.inf if math.isnan(number) else number), name

    return sorted(set(names), key=key)


def _named(*place: str) -> str:
    return ", ".join(name for name in place if name != ALL) or ALL


def _show_p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _against_table(against: Sequence[ScoreAgreement]) -> str:
    header = ["region", "group", "repeat", "n", "Spearman's rho", "p", "ANOVA F", "p", "Welch F", "p"]
    lines = []
    for a in against:
        line = [a.region, a.group, a.repeat, str(a.correlation.n), fixed(a.correlation.rho), _show_p(a.correlation.p)]
        for test in a.variances or (AnovaResult("", None, None, None),) * 2:
            df = "" if test.df is None else f" ({test.df[0]:g}, {test.df[1]:.4g})"
            line += [fixed(test.f, ".2f") + df, _show_p(test.p)]
        lines.append(line)
    return markdown(header, lines)


def _groups_table(against: Sequence[ScoreAgreement]) -> str:
    header = ["region", "group", "repeat", "score", "n", "mean", "SD", "compared"]
    return markdown(
        header,
        [
            [a.region, a.group, a.repeat, f"{g.score:g}", str(g.n), fixed(g.mean, ".4g"), fixed(g.sd, ".4g"),
             "no" if g.left_out else "yes"]
            for a in against
            for g in a.groups
        ],
    )  # fmt: skip


def _pairs_table(against: Sequence[ScoreAgreement]) -> str:
    header = ["region", "group", "repeat", "scores", "difference", "t", "df", "p"]
    return markdown(
        header,
        [
            [a.region, a.group, a.repeat, f"{p.scores[0]:g} and {p.scores[1]:g}", fixed(p.difference, ".4g"),
             fixed(p.t, ".2f"), fixed(p.df, ".1f"), _show_p(p.p)]
            for a in against
            for p in a.pairs
        ],
    )  # fmt: skip


def _repeats_table(repeats: Sequence[RepeatAgreement]) -> str:
    header = ["region", "group", "repeats", "n", "form", "ICC", "95 % interval", "F", "p"]
    lines = []
    for r in repeats:
        for c in r.correlations:
            interval = "-" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}"
            lines.append([r.region, r.group, str(len(r.repeats)), str(r.n), c.form, fixed(c.value), interval,
                          fixed(c.f, ".2f"), _show_p(c.p)])  # fmt: skip
    return markdown(header, lines)

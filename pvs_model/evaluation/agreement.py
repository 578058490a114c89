"""Volumes (or counts) of PVS against visual scores, and their agreement between repeats, as in mcpvs_net_2024.

Against scores (sections 2.7 and 2.9): Spearman's correlation; one-way analysis of variance, with equal variances and
Welch's; Dunnett's T3 test of each pair of score groups (J Am Stat Assoc 75:796, 1980). Score groups of fewer than
``SMALLEST_GROUP`` subjects are left out of the last two and told. Between repeats (section 2.8: time points; also
raters, or truth and prediction): intraclass correlations ICC(1,1), ICC(2,1) and ICC(3,1) of Shrout & Fleiss (Psychol
Bull 86:420, 1979) with the 95 % intervals of McGraw & Wong (Psychol Methods 1:30, 1996).

Everything is None that has no value: too few subjects, or no variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import PVSError
from pvs_model.evaluation.tables import markdown, read_csv

Floats = npt.NDArray[np.float64]

#: Score groups of fewer subjects are left out (section 2.9).
SMALLEST_GROUP = 5
#: The name of the region, the group and the repeat of measurements without one.
ALL = "all"

#: What ``burden.csv`` has in its column "hemisphere" for both together.
BOTH_SIDES = "both"

_LEVEL = 0.975  # two-sided 95 %
_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "subject": ("subject", "case", "id"),
    "volume": ("volume", "count", "pvs_volume_mm3", "pvs_count"),
    "score": ("score", "rating"),
    "region": ("region", "roi"),
    "hemisphere": ("hemisphere",),
    "repeat": ("repeat", "time", "timepoint", "time_point", "visit", "rater"),
}


class MeasurementsError(PVSError):
    """A table of volumes and scores cannot be read, or contradicts itself."""


@dataclass(frozen=True)
class Measurement:
    """One volume of one subject.

    Attributes:
        subject: name.
        volume: volume or count, any unit.
        score: visual score; None without one.
        region: such as "BG".
        repeat: which of several measurements of the same thing: a time point, a rater, "truth".
        groups: (column, value) of what to look at separately as well, such as ("scanner", "Siemens").
    """

    subject: str
    volume: float
    score: float | None = None
    region: str = ALL
    repeat: str = ALL
    groups: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with its two-sided p (t approximation) over n subjects."""

    n: int
    rho: float | None
    p: float | None


@dataclass(frozen=True)
class Variance:
    """One-way analysis of variance: F, its degrees of freedom, p. ``kind`` is "equal variances" or "Welch"."""

    kind: str
    f: float | None
    df: tuple[float, float] | None
    p: float | None


@dataclass(frozen=True)
class PairTest:
    """Dunnett's T3 test of two score groups: difference of means (second less first), t, Welch's df, adjusted p."""

    scores: tuple[float, float]
    difference: float
    t: float | None
    df: float | None
    p: float | None


@dataclass(frozen=True)
class ScoreGroup:
    """The volumes of the subjects of one visual score; ``sd`` with n - 1, None for one subject."""

    score: float
    n: int
    mean: float
    sd: float | None
    left_out: bool


@dataclass(frozen=True)
class Against:
    """Volumes against visual scores, in one region, group and repeat."""

    region: str
    group: str
    repeat: str
    correlation: Correlation
    groups: tuple[ScoreGroup, ...]
    variances: tuple[Variance, ...]
    pairs: tuple[PairTest, ...]


@dataclass(frozen=True)
class Intraclass:
    """An intraclass correlation of single measurements, its 95 % interval, and the F test against 0.

    Attributes:
        form: "ICC(1,1)" (each subject has raters of its own), "ICC(2,1)" (absolute agreement) or "ICC(3,1)"
            (consistency).
        value, low, high: at most 1; None without variance.
        f, df, p: one-sided F test, of subjects against what is left.
    """

    form: str
    value: float | None
    low: float | None
    high: float | None
    f: float | None
    df: tuple[float, float]
    p: float | None


@dataclass(frozen=True)
class Repeats:
    """Agreement between repeats, in one region and group.

    Attributes:
        region, group: names.
        repeats: names of the repeats.
        n: subjects with all of them.
        left_out: subjects without some of them.
        correlations: the three forms; empty for fewer than 2 subjects.
    """

    region: str
    group: str
    repeats: tuple[str, ...]
    n: int
    left_out: tuple[str, ...]
    correlations: tuple[Intraclass, ...]


@dataclass(frozen=True)
class Agreement:
    """Volumes against scores, and between repeats; each empty where there are no scores or no repeats."""

    against: tuple[Against, ...]
    repeats: tuple[Repeats, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Markdown tables."""
        parts = []
        if self.against:
            parts += ["## Volumes against visual scores", _against_table(self.against)]
            parts += ["### Score groups", _groups_table(self.against)]
            if any(a.pairs for a in self.against):
                parts += [
                    "### Pairs of score groups (Dunnett's T3, p adjusted for all pairs)",
                    _pairs_table(self.against),
                ]
        if self.repeats:
            parts += ["## Agreement between repeats (intraclass correlation)", _repeats_table(self.repeats)]
        parts += [f"Warning: {warning}." for warning in self.warnings]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """All fields by name; None where there is no value, never NaN."""
        return asdict(self)


def agree(measurements: Sequence[Measurement]) -> Agreement:
    """Volumes against scores per region and repeat, and agreement between repeats per region.

    Over all subjects, and within each group of each grouping column. The order of the measurements does not matter.

    Raises:
        MeasurementsError: none given, or two of one subject, region and repeat.
    """
    if not measurements:
        raise MeasurementsError("expected measurements, found none")
    seen = set()
    for m in measurements:
        key = (m.subject, m.region, m.repeat)
        if key in seen:
            raise MeasurementsError(f"expected one volume of {_label(m)}, found two")
        seen.add(key)
    notes: list[str] = []
    against, repeats = [], []
    for region in _sorted(m.region for m in measurements):
        here = sorted((m for m in measurements if m.region == region), key=lambda m: (m.subject, m.repeat))
        for group, members in _groups(here):
            names = _sorted(m.repeat for m in members)
            for repeat in names:
                scored = [(m.volume, m.score) for m in members if m.repeat == repeat and m.score is not None]
                if scored:
                    against.append(_against((region, group, repeat), scored, notes))
            if len(names) > 1:
                repeats.append(_repeats(region, group, names, members, notes))
    if not against and not repeats:
        notes.append("there is nothing to compare: no visual scores, and no subject measured more than once")
    return Agreement(tuple(against), tuple(repeats), tuple(notes))


def read_measurements(path: Path, groups: Sequence[str] = (), volume: str | None = None) -> list[Measurement]:
    """Read a CSV file (comma, semicolon or tab), one line per volume.

    Columns in any order and case: ``subject``, ``volume`` (or ``count``), ``score`` (an empty cell: none), and
    optionally ``region`` and ``repeat`` (or ``time``, ``timepoint``, ``visit``, ``rater``). The ``burden.csv`` of a
    report is such a table once it has a column of scores: its rows of one hemisphere are regions of their own.

    Args:
        path: the file.
        groups: columns by whose values to look separately as well, such as ("scanner",); without any, the column
            ``group`` if there is one.
        volume: the column of volumes, where it has another name.

    Raises:
        TableError: the file cannot be read, or holds something else than a number.
        MeasurementsError: it lacks a column or a volume, or has a subject twice for the same region and repeat.
    """
    lines = read_csv(path)
    there = list(lines[0].cells)
    names = {**_COLUMNS, **({"volume": (volume.lower(),)} if volume else {})}
    columns = {what: next((name for name in options if name in there), "") for what, options in names.items()}
    by = [name.lower() for name in groups] or [name for name in ("group",) if name in there]
    needed = [names[what][0] for what in ("subject", "volume") if not columns[what]]
    if lacking := needed + [name for name in by if name not in there]:
        raise MeasurementsError(f"{path}: expected columns {', '.join(lacking)}, found {', '.join(there)}")
    if not columns["score"] and not columns["repeat"]:
        raise MeasurementsError(f"{path}: expected a column score, or repeat, or both, found {', '.join(there)}")
    found: list[Measurement] = []
    seen: dict[tuple[str, str, str], str] = {}
    for line in lines:
        amount = line.number(columns["volume"])
        if amount is None:
            raise MeasurementsError(f"{line.where}: expected a volume in column {columns['volume']}, found none")
        region, repeat = (line.name(columns[c], c) if columns[c] else ALL for c in ("region", "repeat"))
        side = str(line.cells.get(columns["hemisphere"]) or "").strip()
        if side and side.lower() != BOTH_SIDES:
            region = f"{region} {side}"
        m = Measurement(
            line.name(columns["subject"], "subject"),
            amount,
            line.number(columns["score"]),
            region,
            repeat,
            tuple((column, line.name(column, "group")) for column in by),
        )
        key = (m.subject, m.region, m.repeat)
        if key in seen:
            raise MeasurementsError(f"{line.where}: expected one volume of {_label(m)}, found another in {seen[key]}")
        seen[key] = line.where
        found.append(m)
    return found


def spearman(volumes: Sequence[float], scores: Sequence[float]) -> Correlation:
    """Spearman's rank correlation, ties with average ranks; rho None where one side does not vary or n < 3.

    Raises:
        ValueError: unequal lengths.
    """
    from scipy.stats import spearmanr

    n = len(volumes)
    if n != len(scores):
        raise ValueError(f"expected equal lengths, found {n} and {len(scores)}")
    if n < 3 or len(set(volumes)) == 1 or len(set(scores)) == 1:
        return Correlation(n, None, None)
    found = spearmanr(volumes, scores)
    return Correlation(n, float(found.statistic), _finite(found.pvalue))


def variance_tests(groups: Sequence[Sequence[float]]) -> tuple[Variance, Variance]:
    """One-way analysis of variance of two groups or more, with equal variances and Welch's.

    Raises:
        ValueError: fewer than two groups, or fewer than two values in one.
    """
    from scipy.stats import f_oneway

    k, sizes = len(groups), [len(group) for group in groups]
    if k < 2 or min(sizes) < 2:
        raise ValueError(f"expected two groups or more of two values or more, found sizes {sizes}")
    varying = [_varies(group) for group in groups]
    df: tuple[float, float] = (k - 1, sum(sizes) - k)
    classic = Variance("equal variances", None, None, None)
    if any(varying):
        found = f_oneway(*groups)
        classic = Variance("equal variances", float(found.statistic), df, float(found.pvalue))
    welch = Variance("Welch", None, None, None)
    if all(varying):
        found = f_oneway(*groups, equal_var=False)
        weights = np.array([n / np.var(group, ddof=1) for n, group in zip(sizes, groups, strict=True)])
        spread = ((1 - weights / weights.sum()) ** 2 / (np.array(sizes) - 1)).sum()
        df = (k - 1, float((k**2 - 1) / (3 * spread)))
        welch = Variance("Welch", float(found.statistic), df, float(found.pvalue))
    return classic, welch


def dunnett_t3(groups: Mapping[float, Sequence[float]]) -> tuple[PairTest, ...]:
    """Dunnett's T3: all pairs of groups by Welch's t, p from the studentised maximum modulus of as many comparisons.

    Args:
        groups: volumes by visual score, two or more each.

    Raises:
        ValueError: fewer than two values in a group.
    """
    values = {score: np.asarray(groups[score], float) for score in sorted(groups)}
    if any(len(group) < 2 for group in values.values()):
        raise ValueError("expected two values or more in each group")
    names = list(values)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = []
    for a, b in pairs:
        first, second = values[a], values[b]
        difference = float(second.mean() - first.mean())
        parts = [np.var(group, ddof=1) / len(group) if _varies(group) else 0.0 for group in (first, second)]
        squared = float(sum(parts))
        if squared == 0:
            found.append(PairTest((a, b), difference, None, None, None))
            continue
        t = difference / math.sqrt(squared)
        df = squared**2 / sum(part**2 / (len(g) - 1) for part, g in zip(parts, (first, second), strict=True))
        found.append(PairTest((a, b), difference, t, float(df), smm_sf(abs(t), len(pairs), float(df))))
    return tuple(found)


def smm_sf(x: float, comparisons: int, df: float) -> float:
    """P(max |Z_i| / S > x): the upper tail of the studentised maximum modulus.

    Z_1 to Z_c are independent standard normal, df S^2 is chi-squared with df degrees of freedom. With c = 1 this is
    Student's two-sided p, with df infinite Sidak's 1 - (2 Phi(x) - 1)^c. Integrated over log S, where the integrand is
    smooth and falls off on both sides, so that the trapezoid rule is good to nine digits (of a p above 1e-60).

    Args:
        x: 0 or more.
        comparisons: c, 1 or more.
        df: above 0, may be infinite.

    Raises:
        ValueError: an argument out of range.
    """
    from scipy.integrate import trapezoid
    from scipy.special import log_ndtr

    if not x >= 0 or comparisons < 1 or not df > 0:
        raise ValueError(f"expected x >= 0, comparisons >= 1, df > 0, found {x}, {comparisons}, {df}")

    def beyond(at: Floats) -> Floats:
        # 1 - (1 - q)^c with q = P(|Z| > at), without losing digits where q is tiny
        with np.errstate(divide="ignore"):
            inside = np.log1p(-np.exp(np.minimum(math.log(2) + log_ndtr(-at), 0.0)))
        return np.asarray(-np.expm1(comparisons * inside))

    if math.isinf(df) or x == 0:
        return float(beyond(np.array([x]))[0])
    # Between these bounds the density of log S comes down to exp(-150) of its peak.
    low, high = -150 / df - math.sqrt(150 / df), min(math.sqrt(150 / df), 3.5)
    log_s = np.linspace(low, high, 20001)
    density = np.exp(df * (log_s - np.expm1(2 * log_s) / 2))  # peak 1, at S = 1
    tail = trapezoid(beyond(x * np.exp(log_s)) * density, log_s) / trapezoid(density, log_s)
    return min(1.0, float(tail))


def intraclass(table: npt.ArrayLike) -> tuple[Intraclass, ...]:
    """ICC(1,1), ICC(2,1) and ICC(3,1) of a table (subjects, repeats), two or more of each.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    x = np.asarray(table, float)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values of 2 subjects or more x 2 repeats or more, found shape {x.shape}")
    n, k = x.shape
    x = x - x.mean()
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    rest = x - rows[:, None] - columns
    # What is left by rounding alone counts as nothing.
    noise = (64 * np.finfo(float).eps * (np.abs(np.asarray(table, float)).max() or 1)) ** 2
    between = _mean_square(k * (rows**2).sum(), n - 1, noise)
    within = _mean_square(((x - rows[:, None]) ** 2).sum(), n * (k - 1), noise)
    repeats = _mean_square(n * (columns**2).sum(), k - 1, noise)
    error = _mean_square((rest**2).sum(), (n - 1) * (k - 1), noise)
    absolute = _ratio(n * (between - error), n * between + k * repeats + (k * n - k - n) * error)
    low, high = _absolute_interval(absolute, between, repeats, error, n, k)
    f, df, p = _f_test(between, error, (n - 1, (n - 1) * (k - 1)))
    return (
        _one_way("ICC(1,1)", between, within, k, (n - 1, n * (k - 1))),
        Intraclass("ICC(2,1)", absolute, low, high, f, df, p),
        _one_way("ICC(3,1)", between, error, k, (n - 1, (n - 1) * (k - 1))),
    )


def _one_way(form: str, between: float, left: float, k: int, df: tuple[int, int]) -> Intraclass:
    """(MSB - MS) / (MSB + (k - 1) MS), and the interval that follows from F = MSB / MS."""
    from scipy.stats import f as f_distribution

    value = _ratio(between - left, between + (k - 1) * left)
    f, _, p = _f_test(between, left, df)
    if f is None:
        return Intraclass(form, value, value, value, f, df, p)
    lower = f / float(f_distribution.ppf(_LEVEL, *df))
    upper = f * float(f_distribution.ppf(_LEVEL, *df[::-1]))
    return Intraclass(form, value, (lower - 1) / (lower + k - 1), (upper - 1) / (upper + k - 1), f, df, p)


def _absolute_interval(
    value: float | None, between: float, repeats: float, error: float, n: int, k: int
) -> tuple[float | None, float | None]:
    """The interval of ICC(2,1): McGraw & Wong 1996, Table 7, case 2 (A,1)."""
    from scipy.stats import f as f_distribution

    if value is None or value == 1:
        return value, value
    a = k * value / (n * (1 - value))
    b = 1 + a * (n - 1)
    scale = (a * repeats) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1))
    if scale == 0:
        return None, None
    v = (a * repeats + b * error) ** 2 / scale
    if v <= 0:
        return None, None
    # Next to v = 0 the quantiles overflow, and below 0 the approximation of v fails: the interval holds the value.
    lower, upper = (max(1.0, float(f_distribution.ppf(_LEVEL, *df))) for df in ((n - 1, v), (v, n - 1)))
    if math.isnan(lower) or math.isnan(upper):
        return None, None
    spread = k * repeats + (k * n - k - n) * error
    low = _ratio(n * (between / lower - error), spread + n * between / lower)
    high = _ratio(n * (between - error / upper), spread / upper + n * between)
    return low, high


def _f_test(between: float, left: float, df: tuple[int, int]) -> tuple[float | None, tuple[int, int], float | None]:
    from scipy.stats import f as f_distribution

    if left == 0:
        return None, df, 0.0 if between > 0 else None
    return between / left, df, float(f_distribution.sf(between / left, *df))


def _mean_square(total: float, df: int, noise: float) -> float:
    mean = float(total) / df
    return mean if mean > noise else 0.0


def _against(place: tuple[str, str, str], scored: Sequence[tuple[float, float]], notes: list[str]) -> Against:
    correlation = spearman([volume for volume, _ in scored], [score for _, score in scored])
    by_score: dict[float, list[float]] = {}
    for volume, score in scored:
        by_score.setdefault(score, []).append(volume)
    groups = tuple(
        ScoreGroup(
            score, len(values), float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None,
            len(values) < SMALLEST_GROUP,
        )
        for score, values in sorted(by_score.items())
    )  # fmt: skip
    kept = {group.score: by_score[group.score] for group in groups if not group.left_out}
    where = ", ".join(name for name in place if name != ALL) or "all"
    if small := [f"{group.score:g} ({group.n})" for group in groups if group.left_out]:
        notes.append(
            f"{where}: scores {', '.join(small)} left out of the comparison of groups, which asks for "
            f"{SMALLEST_GROUP} subjects each"
        )
    if len(kept) < 2:
        notes.append(f"{where}: no two score groups of {SMALLEST_GROUP} subjects, so none are compared")
        return Against(*place, correlation, groups, (), ())
    return Against(*place, correlation, groups, variance_tests(list(kept.values())), dunnett_t3(kept))


def _repeats(
    region: str, group: str, names: Sequence[str], members: Sequence[Measurement], notes: list[str]
) -> Repeats:
    volumes: dict[str, dict[str, float]] = {}
    for m in members:
        volumes.setdefault(m.subject, {})[m.repeat] = m.volume
    complete = [subject for subject in volumes if len(volumes[subject]) == len(names)]
    lost = tuple(subject for subject in volumes if len(volumes[subject]) < len(names))
    where = ", ".join(name for name in (region, group) if name != ALL) or "all"
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        notes.append(f"{where}: {len(lost)} of {len(volumes)} subjects lack a repeat and are left out: {shown}")
    found: tuple[Intraclass, ...] = ()
    if len(complete) > 1:
        found = intraclass([[volumes[subject][name] for name in names] for subject in complete])
    else:
        notes.append(f"{where}: fewer than 2 subjects have all repeats, so there is no intraclass correlation")
    return Repeats(region, group, tuple(names), len(complete), lost, found)


def _groups(members: Sequence[Measurement]) -> Iterable[tuple[str, list[Measurement]]]:
    """Everyone, then each group of each grouping column, if there are several."""
    yield ALL, list(members)
    for column in dict.fromkeys(name for m in members for name, _ in m.groups):
        values = _sorted(value for m in members for name, value in m.groups if name == column)
        for value in values if len(values) > 1 else ():
            yield f"{column} {value}", [m for m in members if (column, value) in m.groups]


def _sorted(names: Iterable[str]) -> list[str]:
    """Each once; numbers by size, before words."""

    def key(name: str) -> tuple[float, str]:
        try:
            number = float(name)
        except ValueError:
            return math.inf, name
        return (math.inf if math.isnan(number) else number), name

    return sorted(set(names), key=key)


def _label(m: Measurement) -> str:
    return ", ".join(name for name in (m.subject, m.region, m.repeat) if name != ALL)


def _varies(values: npt.ArrayLike) -> bool:
    return len(np.unique(np.asarray(values, float))) > 1


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _show(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def _show_p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _against_table(against: Sequence[Against]) -> str:
    header = ["region", "group", "repeat", "n", "Spearman's rho", "p", "ANOVA F", "p", "Welch F", "p"]
    lines = []
    for a in against:
        line = [a.region, a.group, a.repeat, str(a.correlation.n), _show(a.correlation.rho), _show_p(a.correlation.p)]
        for test in a.variances or (Variance("", None, None, None),) * 2:
            df = "" if test.df is None else f" ({test.df[0]:g}, {test.df[1]:.4g})"
            line += [_show(test.f, ".2f") + df, _show_p(test.p)]
        lines.append(line)
    return markdown(header, lines)


def _groups_table(against: Sequence[Against]) -> str:
    header = ["region", "group", "repeat", "score", "n", "mean", "SD", "compared"]
    return markdown(
        header,
        [
            [a.region, a.group, a.repeat, f"{g.score:g}", str(g.n), _show(g.mean, ".4g"), _show(g.sd, ".4g"),
             "no" if g.left_out else "yes"]
            for a in against
            for g in a.groups
        ],
    )  # fmt: skip


def _pairs_table(against: Sequence[Against]) -> str:
    header = ["region", "group", "repeat", "scores", "difference", "t", "df", "p"]
    return markdown(
        header,
        [
            [a.region, a.group, a.repeat, f"{p.scores[0]:g} and {p.scores[1]:g}", _show(p.difference, ".4g"),
             _show(p.t, ".2f"), _show(p.df, ".1f"), _show_p(p.p)]
            for a in against
            for p in a.pairs
        ],
    )  # fmt: skip


def _repeats_table(repeats: Sequence[Repeats]) -> str:
    header = ["region", "group", "repeats", "n", "form", "ICC", "95 % interval", "F", "p"]
    lines = []
    for r in repeats:
        for c in r.correlations:
            interval = "-" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}"
            lines.append([r.region, r.group, str(len(r.repeats)), str(r.n), c.form, _show(c.value), interval,
                          _show(c.f, ".2f"), _show_p(c.p)])  # fmt: skip
    return markdown(header, lines)

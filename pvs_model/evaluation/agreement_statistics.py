"""Statistics of rater agreement: rank correlation, analyses of variance, Dunnett's T3 test, intraclass correlations.

Intraclass correlations and their 95 % intervals follow Shrout & Fleiss (Psychol Bull 86:420, 1979) and McGraw & Wong
(Psychol Methods 1:30, 1996), Dunnett's T3 test J Am Stat Assoc 75:796 (1980); the rest is scipy's. Everything is None
that has no value: too few subjects, or no variance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvs_model.types import Float64Array

_LEVEL = 0.975  # two-sided 95 %


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with its two-sided p (t approximation) over n subjects."""

    n: int
    rho: float | None
    p: float | None


@dataclass(frozen=True)
class AnovaResult:
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
class IntraclassCorrelation:
    """An intraclass correlation of single measurements, its 95 % interval, and the F test against 0.

    Attributes:
        form: "ICC(1,1)" (other raters for each subject), "ICC(2,1)" (absolute agreement) or "ICC(3,1)"
            (consistency).
        value, low, high: Correlation and interval, at most 1; None without variance.
        f, df, p: One-sided F test of the subjects' variance against the residual.
    """

    form: str
    value: float | None
    low: float | None
    high: float | None
    f: float | None
    df: tuple[float, float]
    p: float | None


def spearman(volumes: Sequence[float], scores: Sequence[float]) -> Correlation:
    """Computes Spearman's rank correlation, ties with average ranks; rho None where one side does not vary or n < 3.

    Raises:
        ValueError: unequal lengths.
    """
    from scipy.stats import spearmanr

    n = len(volumes)
    if n != len(scores):
        raise ValueError(f"expected equal lengths, got {n} and {len(scores)}")
    if n < 3 or len(set(volumes)) == 1 or len(set(scores)) == 1:
        return Correlation(n, None, None)
    result = spearmanr(volumes, scores)
    return Correlation(n, float(result.statistic), _finite(result.pvalue))


def variance_tests(groups: Sequence[Sequence[float]]) -> tuple[AnovaResult, AnovaResult]:
    """Computes the one-way analysis of variance of two groups or more, with equal variances and Welch's.

    Raises:
        ValueError: fewer than two groups, or fewer than two values in one.
    """
    from scipy.stats import f_oneway

    k, sizes = len(groups), [len(group) for group in groups]
    if k < 2 or min(sizes) < 2:
        raise ValueError(f"expected two groups or more of two values or more, got sizes {sizes}")
    varying = [_varies(group) for group in groups]
    df: tuple[float, float] = (k - 1, sum(sizes) - k)
    classic = AnovaResult("equal variances", None, None, None)
    if any(varying):
        test = f_oneway(*groups)
        classic = AnovaResult("equal variances", float(test.statistic), df, float(test.pvalue))
    welch = AnovaResult("Welch", None, None, None)
    if all(varying):
        test = f_oneway(*groups, equal_var=False)
        weights = np.array([n / np.var(group, ddof=1) for n, group in zip(sizes, groups, strict=True)])
        spread = ((1 - weights / weights.sum()) ** 2 / (np.array(sizes) - 1)).sum()
        df = (k - 1, float((k**2 - 1) / (3 * spread)))
        welch = AnovaResult("Welch", float(test.statistic), df, float(test.pvalue))
    return classic, welch


def dunnett_t3(groups: Mapping[float, Sequence[float]]) -> tuple[PairTest, ...]:
    """Computes Dunnett's T3 test: all pairs of groups by Welch's t.

    The p values are from the studentised maximum modulus of as many comparisons.

    Args:
        groups: Volumes by visual score, two or more each.

    Raises:
        ValueError: fewer than two values in a group.
    """
    values = {score: np.asarray(groups[score], float) for score in sorted(groups)}
    if any(len(group) < 2 for group in values.values()):
        raise ValueError("expected two values or more in each group")
    names = list(values)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    tests = []
    for a, b in pairs:
        first, second = values[a], values[b]
        difference = float(second.mean() - first.mean())
        parts = [np.var(group, ddof=1) / len(group) if _varies(group) else 0.0 for group in (first, second)]
        squared = float(sum(parts))
        if squared == 0:
            tests.append(PairTest((a, b), difference, None, None, None))
            continue
        t = difference / math.sqrt(squared)
        df = squared**2 / sum(part**2 / (len(g) - 1) for part, g in zip(parts, (first, second), strict=True))
        tests.append(
            PairTest((a, b), difference, t, float(df), studentized_max_modulus_sf(abs(t), len(pairs), float(df)))
        )
    return tuple(tests)


def studentized_max_modulus_sf(x: float, comparisons: int, df: float) -> float:
    """Computes the upper tail P(max |Z_i| / S > x) of the studentised maximum modulus, which scipy lacks.

    Z_1 to Z_c are independent standard normal, df S^2 is chi-squared with df degrees of freedom. With c = 1 this is
    Student's two-sided p, with df infinite Sidak's 1 - (2 Phi(x) - 1)^c. Integrated over log S, where the integrand is
    smooth and falls off on both sides, so that the trapezoid rule is good to nine digits (of a p above 1e-60).

    Args:
        x: Statistic, 0 or more.
        comparisons: Number of comparisons c, 1 or more.
        df: Degrees of freedom, above 0, may be infinite.

    Raises:
        ValueError: an argument out of range.
    """
    from scipy.integrate import trapezoid
    from scipy.special import log_ndtr

    if not x >= 0 or comparisons < 1 or not df > 0:
        raise ValueError(f"expected x >= 0, comparisons >= 1, df > 0, got {x}, {comparisons}, {df}")

    def beyond(at: Float64Array) -> Float64Array:
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


def intraclass(table: npt.ArrayLike) -> tuple[IntraclassCorrelation, ...]:
    """Computes ICC(1,1), ICC(2,1) and ICC(3,1) of a table (subjects, repeats), two or more of each.

    Values, F tests and intervals as in ``pingouin.intraclass_corr``; differences that are rounding alone count as 0.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    x = np.asarray(table, float)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"expected finite values of 2 subjects or more x 2 repeats or more, got shape {x.shape}")
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
        IntraclassCorrelation("ICC(2,1)", absolute, low, high, f, df, p),
        _one_way("ICC(3,1)", between, error, k, (n - 1, (n - 1) * (k - 1))),
    )


def _one_way(form: str, between: float, left: float, k: int, df: tuple[int, int]) -> IntraclassCorrelation:
    """(MSB - MS) / (MSB + (k - 1) MS), and the interval that follows from F = MSB / MS."""
    from scipy.stats import f as f_distribution

    value = _ratio(between - left, between + (k - 1) * left)
    f, _, p = _f_test(between, left, df)
    if f is None:
        return IntraclassCorrelation(form, value, value, value, f, df, p)
    lower = f / float(f_distribution.ppf(_LEVEL, *df))
    upper = f * float(f_distribution.ppf(_LEVEL, *df[::-1]))
    return IntraclassCorrelation(form, value, (lower - 1) / (lower + k - 1), (upper - 1) / (upper + k - 1), f, df, p)


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


def _varies(values: npt.ArrayLike) -> bool:
    return len(np.unique(np.asarray(values, float))) > 1


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

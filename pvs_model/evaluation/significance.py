"""Who is significantly better than whom (epvs_challenge_2024, section 2.6, Tables 8 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.evaluation.ranking import DECIMALS, METRICS, SIGN, TITLES, PhaseScores, Score, arrange, by_metric
from pvs_model.evaluation.tables import document, markdown
from pvs_model.types import Float64Array

#: Largest p of a significant difference.
ALPHA = 0.05
CORRECTIONS = ("none", "holm")
#: With fewer cases no two-sided signed-rank test reaches ``ALPHA``.
MIN_CASES = 6


@dataclass(frozen=True, eq=False)
class PhaseSignificance:
    """Paired tests within one phase: T teams, R regions, M = 4 metrics.

    Attributes:
        phase: Name of the phase.
        teams: Names by total, then alphabetically.
        regions: Names of the regions.
        cases: Number of cases.
        p: Two-sided p (Holm-corrected where asked for) of each pair, (T, T, R, M), symmetric, 1 on the diagonal.
        wins: Number of teams that each is better than with p <= ``ALPHA``, (T, R, M).
        total: Sum of ``wins`` over regions and metrics, (T,).
    """

    phase: str
    teams: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int
    p: Float64Array
    wins: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Significance:
    """The challenge's count of significant differences; ``correction`` is "none" or "holm".

    Warnings about the scores themselves are in ``Ranking.warnings``.
    """

    phases: tuple[PhaseSignificance, ...]
    correction: str
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns Markdown: per phase the wins by region and metric and their total."""
        how = "two-sided Wilcoxon signed-rank tests" + (", Holm-corrected" if self.correction == "holm" else "")
        parts = [f"## Significantly better than how many teams (p <= {ALPHA:g}, {how})"]
        for p in self.phases:
            header = ["team", *(f"{r} {TITLES[m]}" for r in p.regions for m in METRICS), "total"]
            rows = zip(p.teams, p.wins, p.total, strict=True)
            parts.append(f"### Phase {p.phase}, {p.cases} case{'s'[: p.cases != 1]}")
            parts.append(markdown(header, [[team, *map(str, wins.flat), str(n)] for team, wins, n in rows]))
        return document(parts, self.warnings)

    def as_json(self) -> dict[str, Any]:
        """Returns wins, totals and the p of every pair of teams; never NaN."""
        return {
            "alpha": ALPHA,
            "correction": self.correction,
            "phases": [
                {
                    "phase": p.phase,
                    "cases": p.cases,
                    "teams": [
                        {"team": team, "total": int(total), "wins": _by_region(p.regions, wins)}
                        for team, total, wins in zip(p.teams, p.total, p.wins, strict=True)
                    ],
                    "pairs": [
                        {"teams": [p.teams[a], p.teams[b]], "p": _by_region(p.regions, p.p[a, b])}
                        for a, b in combinations(range(len(p.teams)), 2)
                    ],
                }
                for p in self.phases
            ],
            "warnings": list(self.warnings),
        }


def _by_region(regions: Sequence[str], values: npt.NDArray[Any]) -> dict[str, dict[str, float]]:
    return dict(zip(regions, map(by_metric, values), strict=True))


def significance(scores: Sequence[Score], correction: str = "none") -> Significance:
    """Counts wins by paired tests, per phase, region and metric.

    Each pair of teams is compared over the cases by a two-sided Wilcoxon signed-rank test: scipy's, without the cases
    of equal scores. With p <= ``ALPHA`` the team with the larger sum of ranks in its favour wins, so that the
    direction is the test's own. Without any difference nobody wins.

    Args:
        scores: Scores by case.
        correction: "none", as in the challenge, or "holm": over the pairs of teams within a phase, region and metric.

    Raises:
        ScoresError: as ``rank``, or the scores are not by case.
        ValueError: an unknown correction.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"expected a correction of {', '.join(CORRECTIONS)}, got {correction}")
    phases, warnings = [], []
    for array in arrange(scores)[0]:  # ``rank`` gives the warnings
        array.require_cases("paired tests")
        if len(array.cases) < MIN_CASES:
            warnings.append(
                f"phase {array.phase} has {len(array.cases)} cases: no test of fewer than 6 gives p <= 0.05"
            )
        phases.append(_phase_significance(array, correction))
    return Significance(tuple(phases), correction, tuple(warnings))


def _phase_significance(scores: PhaseScores, correction: str) -> PhaseSignificance:
    k = len(scores.teams)
    p = np.ones((k, k, len(scores.regions), len(METRICS)))
    better = np.zeros(p.shape, bool)
    pairs = list(combinations(range(k), 2))
    for r, m in np.ndindex(p.shape[2:]):
        values = SIGN[m] * scores.values[:, :, r, m]
        tests = [_signed_rank_test(values[b] - values[a]) for a, b in pairs]
        corrected = holm([test[0] for test in tests]) if correction == "holm" else [test[0] for test in tests]
        for (a, b), value, (_, favour) in zip(pairs, corrected, tests, strict=True):
            p[a, b, r, m] = p[b, a, r, m] = value
            better[a, b, r, m], better[b, a, r, m] = favour > 0, favour < 0
    wins = (better & (p <= ALPHA)).sum(axis=1)
    total = wins.sum(axis=(1, 2))
    order = sorted(range(k), key=lambda t: (-total[t], scores.teams[t]))
    teams = tuple(scores.teams[t] for t in order)
    return PhaseSignificance(
        scores.phase, teams, scores.regions, len(scores.cases), p[np.ix_(order, order)], wins[order], total[order]
    )


def _signed_rank_test(gains: Float64Array) -> tuple[float, float]:
    """Returns p, and the rank sum of the gains less that of the losses; NaN and 0 are left out, (1, 0) without any."""
    from scipy.stats import rankdata, wilcoxon

    gains = np.round(gains[~np.isnan(gains)], DECIMALS)
    gains = gains[gains != 0]
    if not len(gains):
        return 1.0, 0.0
    return float(wilcoxon(gains).pvalue), float((np.sign(gains) * rankdata(np.abs(gains))).sum())


def holm(p: Sequence[float]) -> list[float]:
    """Returns Holm's step-down correction of p values (Scand J Stat 6, 1979).

    Example:
        >>> holm([0.5, 0.01])
        [0.5, 0.02]
    """
    corrected, highest = [0.0] * len(p), 0.0
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = highest
    return corrected

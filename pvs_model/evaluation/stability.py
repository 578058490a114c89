"""How far the ranking would change with other cases of the same population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.evaluation.ranking import Score, ScoresError, arrange, means_over_cases, rank, ranks_of
from pvs_model.evaluation.tables import document, markdown
from pvs_model.types import Float64Array


@dataclass(frozen=True, eq=False)
class Stability:
    """Positions of k teams with a final rank in bootstrap samples of the cases.

    Attributes:
        teams: Names in the order of the full ranking.
        positions: Their positions in it, (k,).
        frequency: Share of resamples that give a team a position, (k, k): team by position from 1. Rows sum to 1.
        low, high: 95 % interval of the resampled positions of each team, (k,).
        tau, tau_low, tau_high: Kendall's tau-b of resampled and full final ranks: mean and 95 % interval; None where
            all teams tie.
        resamples, seed: Number of bootstrap samples and seed of the generator.
    """

    teams: tuple[str, ...]
    positions: npt.NDArray[np.int64]
    frequency: Float64Array
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    resamples: int
    seed: int

    def text(self) -> str:
        """Returns Markdown: how often each team came on each position, and the interval of its position."""
        header = ["team", "place", "95 % interval", *(f"place {n}" for n in range(1, len(self.teams) + 1))]
        rows = zip(self.teams, self.positions, self.low, self.high, self.frequency, strict=True)
        lines = [
            [team, str(position), f"{low} to {high}", *(f"{f:.3f}" if f else "-" for f in shares)]
            for team, position, low, high, shares in rows
        ]
        tau = "all teams tie."
        if self.tau is not None:
            tau = f"{self.tau:.3f} (95 % of resamples: {self.tau_low:.3f} to {self.tau_high:.3f})."
        title = f"## Stability of the places ({self.resamples} bootstrap samples of the cases, seed {self.seed})"
        return document([title, markdown(header, lines), f"Kendall's tau to the full ranking: {tau}"])

    def as_json(self) -> dict[str, Any]:
        """Returns frequencies and intervals by team; None where there is no value, never NaN."""
        columns = (self.positions.tolist(), self.low.tolist(), self.high.tolist(), self.frequency.tolist())
        names = ("team", "place", "low", "high", "frequency")
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "kendall_tau": {"mean": self.tau, "low": self.tau_low, "high": self.tau_high},
            "teams": [dict(zip(names, row, strict=True)) for row in zip(self.teams, *columns, strict=True)],
        }


def stability(scores: Sequence[Score], resamples: int = 1000, seed: int = 0) -> Stability:
    """Repeats the final ranking on bootstrap samples of the cases.

    Within each phase as many cases as there are get drawn with replacement, the same for all teams and regions;
    teams are those with a final rank (the others take part in the ranks of their phases, as in ``rank``).

    Raises:
        ScoresError: as ``rank``, the scores are not by case, or no team is in every phase.
        ValueError: ``resamples`` below 1.
    """
    from scipy.stats import kendalltau

    if resamples < 1:
        raise ValueError(f"expected 1 resample or more, got {resamples}")
    arrays, _ = arrange(scores)
    finalists = [row for row in rank(scores).rows if row.final is not None]
    if not finalists:
        raise ScoresError("expected a team that is in every phase, got none: there is no final rank to resample")
    teams = tuple(row.team for row in finalists)
    generator = np.random.default_rng(seed)
    gross = []
    for array in arrays:
        array.require_cases("a bootstrap")
        n = len(array.cases)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
        phase_gross = ranks_of(means_over_cases(array.values, counts).mean(axis=2)).mean(axis=-1)  # (B, T)
        gross.append(phase_gross[:, [array.teams.index(team) for team in teams]])
    final = sum(gross) / len(gross)
    positions = 1 + (final[:, :, None] > final[:, None, :]).sum(axis=2)  # (B, k); ties share the better position
    frequency = (positions[:, :, None] == np.arange(1, len(teams) + 1)).mean(axis=0)
    low, high = np.percentile(positions, [2.5, 97.5], axis=0, method="inverted_cdf").astype(int)
    taus = kendalltau(final, np.array([[row.final for row in finalists]], float), axis=1).statistic
    taus = taus[~np.isnan(taus)]  # all teams tie
    mean, tau_low, tau_high = None, None, None
    if len(taus):
        mean, (tau_low, tau_high) = float(taus.mean()), (float(v) for v in np.percentile(taus, [2.5, 97.5]))
    own = np.array([row.position for row in finalists], np.int64)
    return Stability(teams, own, frequency, low, high, mean, tau_low, tau_high, resamples, seed)

"""The challenge's ranking (epvs_challenge_2024, sections 2.5 to 2.7): scores in, ranks out.

With k teams, in each phase:

1. per team, region and metric: the mean over cases; per team and metric: the mean of the regions' means;
2. per metric the teams' ranks of those means, 1 for the best (recall, precision, Dice: the highest; AVD: the lowest),
   ties sharing the average of their ranks, so that the ranks of a metric sum to k (k + 1) / 2;
3. gross rank = mean of the four ranks; final rank = mean of the phases' gross ranks, for teams in every phase.

Decisions where the paper leaves it open (``docs/ranking.md``):

- means that agree to nine decimals tie: the sums of decimal scores differ by rounding alone beyond that;
- a case that another team has and this one lacks gets the penalty scores (``PENALTY``), and a warning;
- a score without a value (None: the Dice of two empty masks) is left out of its mean and its pair out of the tests;
  where nothing is left, the penalty score stands for the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pvs_model.errors import PVSError
from pvs_model.evaluation import metrics
from pvs_model.evaluation.tables import csv_text, document, fixed, markdown
from pvs_model.layouts.base import listed
from pvs_model.types import CHALLENGE_REGIONS, Float64Array

#: The metrics of the ranking, in the order of the paper's tables.
METRICS = ("recall", "precision", "dice", "avd")
LOWER_IS_BETTER = frozenset({"avd"})
#: Scores of a case without a result (section 2.7).
PENALTY: dict[str, float] = {name: float(metrics.PENALTY["official"][name] or 0) for name in METRICS}
#: Largest possible scores; precision counts touched truth clusters and can pass 1.
HIGHEST = {"recall": 1.0, "precision": math.inf, "dice": 1.0, "avd": 1.0}
#: Names of the metrics in tables.
TITLES = {"recall": "recall", "precision": "precision", "dice": "Dice", "avd": "AVD"}
#: Sign that makes the smallest value of each metric the best.
SIGN = np.array([1.0 if name in LOWER_IS_BETTER else -1.0 for name in METRICS])
#: Decimals to which scores are equal.
DECIMALS = 9

_PENALTY = np.array([PENALTY[name] for name in METRICS])
#: Phases and regions in the paper's order; others follow by name.
_ORDER = ("training", "validation", "test", *CHALLENGE_REGIONS)


class ScoresError(PVSError):
    """Scores are missing, contradict each other or are out of range."""


@dataclass(frozen=True)
class Score:
    """The four scores of one team, for one case within one region.

    Attributes:
        team, phase, region: Names, such as "CCNU_CS_24", "test" and "BG".
        case: Name of the case; None where the scores are means over cases already, as in the paper's tables.
        recall, dice, avd: 0 to 1 (AVD capped at 1); precision: 0 or more. None where there is no value.

    Raises:
        ScoresError: a score is outside its range, or a name is empty.
    """

    team: str
    phase: str
    region: str
    case: str | None
    recall: float | None
    precision: float | None
    dice: float | None
    avd: float | None

    def __post_init__(self) -> None:
        for name in ("team", "phase", "region", "case"):
            if getattr(self, name) == "":
                raise ScoresError(f"expected a name of the {name}, got an empty one")
        for name in METRICS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= min(HIGHEST[name], 1e300):
                upper = "or more" if HIGHEST[name] == math.inf else f"to {HIGHEST[name]:g}"
                raise ScoresError(f"{self.label}: expected {name} of 0 {upper}, got {value:g}")

    @property
    def label(self) -> str:
        """Team, phase, region and case, readable."""
        case = "" if self.case is None else f", case {self.case}"
        return f"{self.team}, phase {self.phase}, region {self.region}{case}"

    def values(self) -> list[float]:
        """Returns the scores in the order of ``METRICS``, NaN for None."""
        scores = (getattr(self, name) for name in METRICS)
        return [math.nan if score is None else score for score in scores]


@dataclass(frozen=True, eq=False)
class PhaseRanking:
    """The ranks within one phase: T teams by name, R regions, M = 4 metrics (``METRICS``).

    Attributes:
        phase: Name of the phase.
        teams, regions: Their names.
        cases: Number of cases; None where the scores were means over cases already.
        region_means, region_ranks: Means and ranks per region, (T, R, M). These ranks are shown only.
        means, ranks: Means over regions and their ranks, (T, M).
        gross: Mean of the four ranks, (T,).
    """

    phase: str
    teams: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int | None
    region_means: Float64Array
    region_ranks: Float64Array
    means: Float64Array
    ranks: Float64Array
    gross: Float64Array


@dataclass(frozen=True)
class RankingRow:
    """A row of the final table.

    Attributes:
        team: Name of the team.
        position: 1 for the best final rank; teams of equal final rank share the better position. None without a final
            rank.
        gross: Gross rank per phase, None for a phase without the team.
        final: Mean of ``gross``; None for a team that is not in every phase.
    """

    team: str
    position: int | None
    gross: tuple[float | None, ...]
    final: float | None


@dataclass(frozen=True, eq=False)
class Ranking:
    """The challenge's ranking.

    Attributes:
        phases: Phases in order.
        rows: Teams by final rank, then those without one by gross rank.
        warnings: Decisions on the way, such as cases that count as missing.
    """

    phases: tuple[PhaseRanking, ...]
    rows: tuple[RankingRow, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns Markdown: the final table, and per phase the means with their ranks, as in Tables 5 to 7."""
        header = ["team", "place", *(f"rank ({p.phase})" for p in self.phases), "final rank"]
        rows = [[r.team, fixed(r.position, "d"), *map(fixed, r.gross), fixed(r.final)] for r in self.rows]
        parts = ["## Ranking", markdown(header, rows)]
        for p in self.phases:
            cases = "means as given" if p.cases is None else f"{p.cases} case{'s'[: p.cases != 1]}"
            columns, means, ranks = list(p.regions), p.region_means, p.region_ranks
            if len(p.regions) > 1:
                columns.append("mean")
                means = np.concatenate([means, p.means[:, None]], axis=1)
                ranks = np.concatenate([ranks, p.ranks[:, None]], axis=1)
            header = ["team", *(f"{column} {TITLES[m]}" for column in columns for m in METRICS)]
            cells = [
                [p.teams[t], *(f"{m:.3f} ({r:g})" for m, r in zip(means[t].flat, ranks[t].flat, strict=True))]
                for t in np.argsort(p.gross, kind="stable")
            ]
            parts += [f"### Phase {p.phase}: mean (rank), {cases}", markdown(header, cells)]
        return document(parts, self.warnings)

    def as_json(self) -> dict[str, Any]:
        """Returns rows, means and ranks by name; None where there is no value, never NaN."""
        return {
            "standings": [
                {
                    "team": row.team,
                    "place": row.position,
                    "gross": dict(zip((p.phase for p in self.phases), row.gross, strict=True)),
                    "final": row.final,
                }
                for row in self.rows
            ],
            "phases": [
                {
                    "phase": p.phase,
                    "cases": p.cases,
                    "teams": [
                        {
                            "team": team,
                            "gross": float(p.gross[t]),
                            "mean": by_metric(p.means[t]),
                            "rank": by_metric(p.ranks[t]),
                            "regions": {
                                region: {
                                    "mean": by_metric(p.region_means[t, r]),
                                    "rank": by_metric(p.region_ranks[t, r]),
                                }
                                for r, region in enumerate(p.regions)
                            },
                        }
                        for t, team in enumerate(p.teams)
                    ],
                }
                for p in self.phases
            ],
            "warnings": list(self.warnings),
        }

    def as_csv(self) -> str:
        """Returns one line per phase, team, region ("mean" for the mean over regions) and metric."""
        final = {row.team: {"place": row.position, "final": row.final} for row in self.rows}
        lines = []
        for p in self.phases:
            for t, team in enumerate(p.teams):
                blocks = [*zip(p.regions, p.region_means[t], p.region_ranks[t], strict=True)]
                for region, means, ranks in [*blocks, ("mean", p.means[t], p.ranks[t])]:
                    for metric, mean, rank in zip(METRICS, means.tolist(), ranks.tolist(), strict=True):
                        line = {"phase": p.phase, "team": team, "region": region, "metric": metric}
                        lines.append(line | {"mean": mean, "rank": rank, "gross": float(p.gross[t])} | final[team])
        return csv_text(["phase", "team", "region", "metric", "mean", "rank", "gross", "place", "final"], lines)


def rank(scores: Sequence[Score]) -> Ranking:
    """Ranks teams as the challenge does; the order of ``scores`` does not matter.

    Raises:
        ScoresError: no scores, two for one team, phase, region and case, some with and some without a case, or a team
            without a region that others have, or without any case of theirs.
    """
    arrays, warnings = arrange(scores)
    phases = tuple(_rank_phase(array) for array in arrays)
    gross = {p.phase: dict(zip(p.teams, p.gross.tolist(), strict=True)) for p in phases}
    teams = sorted({team for p in phases for team in p.teams})
    by_phase = {team: tuple(gross[p.phase].get(team) for p in phases) for team in teams}
    finals = {
        team: sum(present) / len(present)
        for team, ranks in by_phase.items()
        if len(present := [value for value in ranks if value is not None]) == len(phases)
    }
    rows = []
    for team, ranks in by_phase.items():
        final = finals.get(team)
        position = None if final is None else 1 + sum(other < final for other in finals.values())
        rows.append(RankingRow(team, position, ranks, final))
        if final is None:
            absent = [p.phase for p, value in zip(phases, ranks, strict=True) if value is None]
            warnings.append(f"{team} has no final rank: it has no scores in phase {', '.join(absent)}")

    def order(row: RankingRow) -> tuple[float, float, str]:
        present = [value for value in row.gross if value is not None]
        return math.inf if row.final is None else row.final, sum(present) / len(present), row.team

    return Ranking(phases, tuple(sorted(rows, key=order)), tuple(warnings))


@dataclass(frozen=True, eq=False)
class PhaseScores:
    """The scores of a phase, (T, C, R, M); NaN has no value. ``cases`` is ("",) where the scores are means."""

    phase: str
    teams: tuple[str, ...]
    cases: tuple[str, ...]
    regions: tuple[str, ...]
    values: Float64Array

    @property
    def by_case(self) -> bool:
        """Whether there are scores of single cases."""
        return self.cases != ("",)

    def require_cases(self, analysis: str) -> None:
        """Raises a ``ScoresError`` where the scores are means over cases."""
        if not self.by_case:
            raise ScoresError(f"phase {self.phase}: expected scores by case for {analysis}, got means over cases")


def arrange(scores: Iterable[Score]) -> tuple[list[PhaseScores], list[str]]:
    """Returns the scores as an array per phase, with penalties for cases that a team lacks, and warnings about these.

    Raises:
        ScoresError: as ``rank``.
    """
    by_phase: dict[str, dict[tuple[str, str, str], Score]] = {}
    for score in scores:
        key = (score.team, score.case or "", score.region)
        if by_phase.setdefault(score.phase, {}).setdefault(key, score) is not score:
            raise ScoresError(f"{score.label}: expected its scores once, got them twice")
    if not by_phase:
        raise ScoresError("expected the scores of a team or more, got none")
    arrays: list[PhaseScores] = []
    warnings: list[str] = []
    for phase in sorted(by_phase, key=_paper_order):
        arrays.append(_phase_scores(phase, by_phase[phase], warnings))
    return arrays, warnings


def _phase_scores(phase: str, scores: Mapping[tuple[str, str, str], Score], warnings: list[str]) -> PhaseScores:
    if len({score.case is None for score in scores.values()}) > 1:
        raise ScoresError(f"phase {phase}: expected all scores by case or all without a case, got both")
    teams, cases = sorted({key[0] for key in scores}), sorted({key[1] for key in scores})
    regions = sorted({key[2] for key in scores}, key=_paper_order)
    values = np.full((len(teams), len(cases), len(regions), len(METRICS)), np.nan)
    present = np.zeros(values.shape[:3], bool)
    for (team, case, region), score in scores.items():
        at = teams.index(team), cases.index(case), regions.index(region)
        values[at], present[at] = score.values(), True
    for t, team in enumerate(teams):
        if len(teams) > 1 and not (present[t] & np.delete(present, t, 0).any(axis=0)).any():
            raise ScoresError(
                f"phase {phase}, team {team}: expected cases and regions that other teams have "
                f"(such as {listed(cases) if cases != [''] else listed(regions)}), got none of them"
            )
        if lacking := [region for r, region in enumerate(regions) if not present[t, :, r].any()]:
            raise ScoresError(
                f"phase {phase}, team {team}: expected regions {', '.join(regions)}, "
                f"got no scores of {', '.join(lacking)}"
            )
        missing = present.any(axis=0) & ~present[t]  # a region that nobody has in a case is not missing
        values[t, missing] = _PENALTY
        for r, region in enumerate(regions):
            if lost := [case for c, case in enumerate(cases) if missing[c, r]]:
                warnings.append(
                    f"phase {phase}, {region}: {team} lacks {len(lost)} of {len(cases)} cases, which get the worst "
                    f"scores: {listed(lost)}"
                )
    empty = np.isnan(values) & present[..., None]
    for m, metric in enumerate(METRICS):
        if n := int(empty[..., m].sum()):
            warnings.append(f"phase {phase}: {n} scores of {TITLES[metric]} have no value and are left out")
    return PhaseScores(phase, tuple(teams), tuple(cases), tuple(regions), values)


def _rank_phase(scores: PhaseScores) -> PhaseRanking:
    region_means = means_over_cases(scores.values, np.ones((1, len(scores.cases))))[0]
    means = region_means.mean(axis=1)
    ranks = ranks_of(means)
    region_ranks = np.stack([ranks_of(region_means[:, r]) for r in range(len(scores.regions))], axis=1)
    cases = len(scores.cases) if scores.by_case else None
    return PhaseRanking(
        scores.phase, scores.teams, scores.regions, cases, region_means, region_ranks, means, ranks, ranks.mean(axis=-1)
    )


def means_over_cases(values: Float64Array, counts: Float64Array) -> Float64Array:
    """Returns means over cases, each weighted by ``counts`` (B, C): (T, C, R, M) to (B, T, R, M)."""
    present = ~np.isnan(values)
    total = np.tensordot(counts, np.where(present, values, 0.0), axes=(1, 1))
    n = np.tensordot(counts, present.astype(float), axes=(1, 1))
    return np.where(n > 0, total / np.maximum(n, 1), _PENALTY)


def ranks_of(means: Float64Array) -> Float64Array:
    """Returns ranks of teams per metric, (..., T, M): 1 is best, ties share the average."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(SIGN * np.round(means, DECIMALS), method="average", axis=-2), float)


def by_metric(values: Float64Array) -> dict[str, float]:
    """Returns four values by the names of their metrics."""
    return dict(zip(METRICS, values.tolist(), strict=True))


def _paper_order(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name

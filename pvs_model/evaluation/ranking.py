"""The challenge's ranking (epvs_challenge_2024, sections 2.5 to 2.7): scores in, ranks out.

With k teams, in each phase:

1. per team, region and metric: the mean over cases; per team and metric: the mean of the regions' means;
2. per metric the teams' ranks of those means, 1 for the best (recall, precision, Dice: the highest; AVD: the lowest),
   ties sharing the average of their ranks, so that the ranks of a metric sum to k (k + 1) / 2;
3. gross rank = mean of the four ranks; final rank = mean of the phases' gross ranks, for teams in every phase.

What the paper leaves open is decided thus, and told in ``docs/ranking.md``:

- means that agree to nine decimals tie: the sums of decimal scores differ by rounding alone beyond that;
- a case that another team has and this one lacks gets the worst scores (``WORST``), and a warning;
- a score without a value (None: the Dice of two empty masks) is left out of its mean and its pair out of the tests;
  where nothing is left, the worst score stands for the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.errors import PVSError
from pvs_model.evaluation import metrics
from pvs_model.evaluation.tables import csv_text, markdown

Floats = npt.NDArray[np.float64]

#: The metrics of the ranking, in the order of the paper's tables.
METRICS = ("recall", "precision", "dice", "avd")
LOWER_IS_BETTER = frozenset({"avd"})
#: Scores of a case without a result (section 2.7).
WORST: dict[str, float] = {name: float(metrics.WORST["official"][name] or 0) for name in METRICS}
#: Largest possible scores; precision counts touched truth clusters and can pass 1.
HIGHEST = {"recall": 1.0, "precision": math.inf, "dice": 1.0, "avd": 1.0}
#: A difference is significant from this p down (section 2.6).
ALPHA = 0.05
CORRECTIONS = ("none", "holm")

_SIGN = np.array([1.0 if name in LOWER_IS_BETTER else -1.0 for name in METRICS])  # smallest is best
_WORST = np.array([WORST[name] for name in METRICS])
_TITLES = {"recall": "recall", "precision": "precision", "dice": "Dice", "avd": "AVD"}
#: Phases and regions in the paper's order; others follow by name.
_ORDER = ("training", "validation", "test", "CSO", "BG")
_DECIMALS = 9


class ScoresError(PVSError):
    """Scores are missing, contradict each other or cannot be."""


@dataclass(frozen=True)
class Score:
    """The four scores of one team, for one case within one region.

    Attributes:
        team, phase, region: names, such as "CCNU_CS_24", "test" and "BG".
        case: name of the case; None where the scores are means over cases already, as in the paper's tables.
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
                raise ScoresError(f"expected a name of the {name}, found an empty one")
        for name in METRICS:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= min(HIGHEST[name], 1e300):
                upper = "or more" if HIGHEST[name] == math.inf else f"to {HIGHEST[name]:g}"
                raise ScoresError(f"{self.label}: expected {name} of 0 {upper}, found {value:g}")

    @property
    def label(self) -> str:
        """Team, phase, region and case in words."""
        case = "" if self.case is None else f", case {self.case}"
        return f"{self.team}, phase {self.phase}, region {self.region}{case}"

    def values(self) -> list[float]:
        """The scores in the order of ``METRICS``, NaN for None."""
        found = (getattr(self, name) for name in METRICS)
        return [math.nan if value is None else value for value in found]


@dataclass(frozen=True, eq=False)
class PhaseRanking:
    """The ranks within one phase: T teams by name, R regions, M = 4 metrics (``METRICS``).

    Attributes:
        phase: its name.
        teams, regions: names.
        cases: number of cases; None where the scores were means over cases already.
        region_means, region_ranks: per region, (T, R, M). The ranks are shown only, they do not count.
        means, ranks: of the means over regions, (T, M).
        gross: mean of the four ranks, (T,).
    """

    phase: str
    teams: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int | None
    region_means: Floats
    region_ranks: Floats
    means: Floats
    ranks: Floats
    gross: Floats


@dataclass(frozen=True)
class Standing:
    """A line of the final table.

    Attributes:
        team: name.
        place: 1 for the best final rank; teams of equal final rank share the better place. None without a final rank.
        gross: gross rank per phase, None for a phase that the team is not in.
        final: mean of ``gross``; None for a team that is not in every phase.
    """

    team: str
    place: int | None
    gross: tuple[float | None, ...]
    final: float | None


@dataclass(frozen=True, eq=False)
class Ranking:
    """The challenge's ranking.

    Attributes:
        phases: in order.
        standings: by final rank, then those without one by gross rank.
        warnings: what was decided on the way, such as cases that count as missing.
    """

    phases: tuple[PhaseRanking, ...]
    standings: tuple[Standing, ...]
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Markdown: the final table, and per phase the means with their ranks in brackets, as in Tables 5 to 7."""
        header = ["team", "place", *(f"rank ({p.phase})" for p in self.phases), "final rank"]
        lines = [
            [s.team, _shown(s.place, "d"), *(_shown(g, ".3f") for g in s.gross), _shown(s.final, ".3f")]
            for s in self.standings
        ]
        parts = ["## Ranking", markdown(header, lines)]
        for p in self.phases:
            cases = "means as given" if p.cases is None else f"{p.cases} case{'s'[: p.cases != 1]}"
            parts.append(f"### Phase {p.phase}: mean (rank), {cases}")
            several = len(p.regions) > 1
            header = ["team", *(f"{r} {_TITLES[m]}" for r in p.regions for m in METRICS)]
            header += [f"mean {_TITLES[m]}" for m in METRICS] if several else []
            lines = []
            for t in np.argsort(p.gross, kind="stable"):
                means, ranks = p.region_means[t].ravel(), p.region_ranks[t].ravel()
                if several:
                    means, ranks = np.append(means, p.means[t]), np.append(ranks, p.ranks[t])
                lines.append([p.teams[t], *(f"{m:.3f} ({r:g})" for m, r in zip(means, ranks, strict=True))])
            parts.append(markdown(header, lines))
        parts += [f"Warning: {warning}." for warning in self.warnings]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Standings, means and ranks by name; None where there is no value, never NaN."""
        return {
            "standings": [
                {
                    "team": s.team,
                    "place": s.place,
                    "gross": dict(zip((p.phase for p in self.phases), s.gross, strict=True)),
                    "final": s.final,
                }
                for s in self.standings
            ],
            "phases": [
                {
                    "phase": p.phase,
                    "cases": p.cases,
                    "teams": [
                        {
                            "team": team,
                            "gross": float(p.gross[t]),
                            "mean": _named(p.means[t]),
                            "rank": _named(p.ranks[t]),
                            "regions": {
                                region: {"mean": _named(p.region_means[t, r]), "rank": _named(p.region_ranks[t, r])}
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
        """One line per phase, team, region ("mean" for the mean over regions) and metric; the final rank repeated."""
        final = {s.team: (s.place, s.final) for s in self.standings}
        lines = []
        for p in self.phases:
            for t, team in enumerate(p.teams):
                blocks = [*zip(p.regions, p.region_means[t], p.region_ranks[t], strict=True)]
                for region, means, ranks in [*blocks, ("mean", p.means[t], p.ranks[t])]:
                    for m, metric in enumerate(METRICS):
                        line = (p.phase, team, region, metric, float(means[m]), float(ranks[m]))
                        lines.append([*line, float(p.gross[t]), *final[team]])
        return csv_text(["phase", "team", "region", "metric", "mean", "rank", "gross", "place", "final"], lines)


@dataclass(frozen=True, eq=False)
class PhaseSignificance:
    """Who is significantly better than whom within one phase: T teams, R regions, M = 4 metrics.

    Attributes:
        phase: its name.
        teams: by total, then by name.
        regions: names.
        cases: number of cases.
        p: two-sided p (Holm-corrected where asked for) of each pair, (T, T, R, M), symmetric, 1 on the diagonal.
        wins: over how many teams each is better with p <= ``ALPHA``, (T, R, M).
        total: (T,).
    """

    phase: str
    teams: tuple[str, ...]
    regions: tuple[str, ...]
    cases: int
    p: Floats
    wins: npt.NDArray[np.int64]
    total: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Significance:
    """The challenge's count of significant differences; ``correction`` is "none" or "holm".

    What there is to tell about the scores themselves is in ``Ranking.warnings``.
    """

    phases: tuple[PhaseSignificance, ...]
    correction: str
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """Markdown: per phase the wins by region and metric and their total, as in Tables 8 and 9."""
        how = "two-sided Wilcoxon signed-rank tests" + (", Holm-corrected" if self.correction == "holm" else "")
        parts = [f"## Significantly better than how many teams (p <= {ALPHA:g}, {how})"]
        for p in self.phases:
            parts.append(f"### Phase {p.phase}, {p.cases} case{'s'[: p.cases != 1]}")
            header = ["team", *(f"{r} {_TITLES[m]}" for r in p.regions for m in METRICS), "total"]
            rows = zip(p.teams, p.wins, p.total, strict=True)
            parts.append(markdown(header, [[team, *map(str, w.ravel()), str(n)] for team, w, n in rows]))
        parts += [f"Warning: {warning}." for warning in self.warnings]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Wins, totals and the p of every pair of teams; never NaN."""
        return {
            "alpha": ALPHA,
            "correction": self.correction,
            "phases": [
                {
                    "phase": p.phase,
                    "cases": p.cases,
                    "teams": [
                        {
                            "team": team,
                            "total": int(p.total[t]),
                            "wins": {
                                region: {name: int(p.wins[t, r, m]) for m, name in enumerate(METRICS)}
                                for r, region in enumerate(p.regions)
                            },
                        }
                        for t, team in enumerate(p.teams)
                    ],
                    "pairs": [
                        {
                            "teams": [p.teams[a], p.teams[b]],
                            "p": {region: _named(p.p[a, b, r]) for r, region in enumerate(p.regions)},
                        }
                        for a, b in _pairs(len(p.teams))
                    ],
                }
                for p in self.phases
            ],
            "warnings": list(self.warnings),
        }

    def as_csv(self) -> str:
        """One line per phase, team, region and metric."""
        lines = [
            [p.phase, team, region, metric, int(p.wins[t, r, m]), int(p.total[t])]
            for p in self.phases
            for t, team in enumerate(p.teams)
            for r, region in enumerate(p.regions)
            for m, metric in enumerate(METRICS)
        ]
        return csv_text(["phase", "team", "region", "metric", "wins", "total"], lines)


@dataclass(frozen=True, eq=False)
class Stability:
    """How the places would move with other cases of the same kind: k teams with a final rank.

    Attributes:
        teams: in the order of the full ranking.
        places: their places in it, (k,).
        frequency: share of resamples that put a team on a place, (k, k): team by place from 1. Rows sum to 1.
        low, high: 95 % of the resampled places of each team lie between them, (k,).
        tau, tau_low, tau_high: Kendall's tau-b of resampled and full final ranks: mean and 95 % interval; None where
            all teams tie.
        resamples, seed: as given.
    """

    teams: tuple[str, ...]
    places: npt.NDArray[np.int64]
    frequency: Floats
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    tau: float | None
    tau_low: float | None
    tau_high: float | None
    resamples: int
    seed: int

    def text(self) -> str:
        """Markdown: how often each team came on each place, and the interval of its place."""
        header = ["team", "place", "95 % interval", *(f"place {n}" for n in range(1, len(self.teams) + 1))]
        rows = zip(self.teams, self.places, self.low, self.high, self.frequency, strict=True)
        lines = [
            [team, str(place), f"{low} to {high}", *(f"{f:.3f}" if f else "-" for f in shares)]
            for team, place, low, high, shares in rows
        ]
        tau = "Kendall's tau to the full ranking: all teams tie."
        if self.tau is not None:
            interval = f"{self.tau_low:.3f} to {self.tau_high:.3f}"
            tau = f"Kendall's tau to the full ranking: {self.tau:.3f} (95 % of resamples: {interval})."
        title = f"## Stability of the places ({self.resamples} bootstrap samples of the cases, seed {self.seed})"
        return "\n\n".join([title, markdown(header, lines), tau]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """Frequencies and intervals by team; None where there is no value, never NaN."""
        rows = zip(self.teams, self.places, self.low, self.high, self.frequency, strict=True)
        return {
            "resamples": self.resamples,
            "seed": self.seed,
            "kendall_tau": {"mean": self.tau, "low": self.tau_low, "high": self.tau_high},
            "teams": [
                {"team": team, "place": int(place), "low": int(low), "high": int(high), "frequency": shares.tolist()}
                for team, place, low, high, shares in rows
            ],
        }

    def as_csv(self) -> str:
        """One line per team."""
        header = ["team", "place", "low", "high", *(f"frequency.{n}" for n in range(1, len(self.teams) + 1))]
        rows = zip(self.teams, self.places, self.low, self.high, self.frequency, strict=True)
        return csv_text(header, [[team, int(p), int(low), int(high), *f.tolist()] for team, p, low, high, f in rows])


def rank(scores: Sequence[Score]) -> Ranking:
    """The challenge's ranking of the teams in ``scores``, whose order does not matter.

    Raises:
        ScoresError: no scores, two for one team, phase, region and case, some with and some without a case, or a team
            without a region that others have, or without any case of theirs.
    """
    tables, warnings = _arrange(scores)
    phases = tuple(_rank_phase(table) for table in tables)
    gross = {p.phase: dict(zip(p.teams, p.gross.tolist(), strict=True)) for p in phases}
    teams = sorted({team for p in phases for team in p.teams})
    lines = {team: tuple(gross[p.phase].get(team) for p in phases) for team in teams}
    finals = {
        team: sum(g) / len(g)
        for team, line in lines.items()
        if len(g := [v for v in line if v is not None]) == len(phases)
    }
    standings = []
    for team, line in lines.items():
        final = finals.get(team)
        place = None if final is None else 1 + sum(other < final for other in finals.values())
        standings.append(Standing(team, place, line, final))

    def order(s: Standing) -> tuple[float, float, str]:
        present = [value for value in s.gross if value is not None]
        return math.inf if s.final is None else s.final, sum(present) / len(present), s.team

    for s in standings:
        if s.final is None:
            absent = [p.phase for p, value in zip(phases, s.gross, strict=True) if value is None]
            warnings.append(f"{s.team} has no final rank: it has no scores in phase {', '.join(absent)}")
    return Ranking(phases, tuple(sorted(standings, key=order)), tuple(warnings))


def significance(scores: Sequence[Score], correction: str = "none") -> Significance:
    """Wins by paired tests, per phase, region and metric (section 2.6, Tables 8 and 9).

    Each pair of teams is compared over the cases by a two-sided Wilcoxon signed-rank test: scipy's, without the cases
    of equal scores. With p <= ``ALPHA`` the team with the larger sum of ranks in its favour wins, so that the
    direction is the test's own. Without any difference nobody wins.

    Args:
        scores: by case.
        correction: "none", as in the challenge, or "holm": over the pairs of teams within a phase, region and metric.

    Raises:
        ScoresError: as ``rank``, or the scores are not by case.
        ValueError: an unknown correction.
    """
    if correction not in CORRECTIONS:
        raise ValueError(f"expected a correction of {', '.join(CORRECTIONS)}, found {correction}")
    tables, _ = _arrange(scores)  # what there is to tell about the scores, ``rank`` tells
    phases, warnings = [], []
    for table in tables:
        _needs_cases(table, "paired tests")
        if len(table.cases) < 6:
            warnings.append(
                f"phase {table.phase} has {len(table.cases)} cases: no test of fewer than 6 gives p <= 0.05"
            )
        phases.append(_significance_of_phase(table, correction))
    return Significance(tuple(phases), correction, tuple(warnings))


def stability(scores: Sequence[Score], resamples: int = 1000, seed: int = 0) -> Stability:
    """The final ranking repeated on bootstrap samples of the cases.

    Within each phase as many cases as there are get drawn with replacement, the same for all teams and regions;
    teams are those with a final rank (the others take part in the ranks of their phases, as in ``rank``).

    Raises:
        ScoresError: as ``rank``, the scores are not by case, or no team is in every phase.
        ValueError: ``resamples`` below 1.
    """
    if resamples < 1:
        raise ValueError(f"expected 1 resample or more, found {resamples}")
    tables, _ = _arrange(scores)
    full = rank(scores)
    finalists = [s for s in full.standings if s.final is not None]
    if not finalists:
        raise ScoresError("expected a team that is in every phase, found none: there is no final rank to resample")
    teams = tuple(s.team for s in finalists)
    generator = np.random.default_rng(seed)
    gross = []
    for table in tables:
        _needs_cases(table, "a bootstrap")
        n = len(table.cases)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
        phase_gross = _ranks(_means(table.values, counts).mean(axis=2)).mean(axis=-1)  # (B, T)
        gross.append(phase_gross[:, [table.teams.index(team) for team in teams]])
    final = sum(gross) / len(gross)
    places = 1 + (final[:, :, None] > final[:, None, :]).sum(axis=2)  # (B, k); ties share the better place
    k = len(teams)
    frequency = (places[:, :, None] == np.arange(1, k + 1)).mean(axis=0)
    low, high = np.percentile(places, [2.5, 97.5], axis=0, method="inverted_cdf")
    taus = _kendall_tau(final, np.array([s.final for s in finalists], float))
    mean, tau_low, tau_high = None, None, None
    if len(taus):
        mean, (tau_low, tau_high) = float(taus.mean()), (float(v) for v in np.percentile(taus, [2.5, 97.5]))
    own = np.array([s.place for s in finalists], np.int64)
    return Stability(
        teams,
        own,
        frequency,
        low.astype(int),
        high.astype(int),
        mean,
        tau_low,
        tau_high,
        resamples,
        seed,
    )


@dataclass(frozen=True, eq=False)
class _Table:
    """The scores of a phase, (T, C, R, M); NaN has no value. ``cases`` is ("",) where the scores are means."""

    phase: str
    teams: tuple[str, ...]
    cases: tuple[str, ...]
    regions: tuple[str, ...]
    values: Floats

    @property
    def by_case(self) -> bool:
        return self.cases != ("",)


def _arrange(scores: Iterable[Score]) -> tuple[list[_Table], list[str]]:
    """The scores by phase, with the worst ones where a team lacks a case; and what to tell about that."""
    phases: dict[str, dict[tuple[str, str, str], Score]] = {}
    for score in scores:
        key = (score.team, score.case or "", score.region)
        if phases.setdefault(score.phase, {}).setdefault(key, score) is not score:
            raise ScoresError(f"{score.label}: expected its scores once, found them twice")
    if not phases:
        raise ScoresError("expected the scores of a team or more, found none")
    tables, warnings = [], []
    for phase in sorted(phases, key=_placed):
        found = phases[phase]
        if len({score.case is None for score in found.values()}) > 1:
            raise ScoresError(f"phase {phase}: expected all scores by case or all without a case, found both")
        teams, cases = sorted({key[0] for key in found}), sorted({key[1] for key in found})
        regions = sorted({key[2] for key in found}, key=_placed)
        values = np.full((len(teams), len(cases), len(regions), len(METRICS)), np.nan)
        there = np.zeros(values.shape[:3], bool)
        for (team, case, region), score in found.items():
            at = teams.index(team), cases.index(case), regions.index(region)
            values[at], there[at] = score.values(), True
        for t, team in enumerate(teams):
            others = [teams[o] for o in range(len(teams)) if o != t]
            if others and not (there[t] & np.delete(there, t, 0).any(axis=0)).any():
                raise ScoresError(
                    f"phase {phase}, team {team}: expected cases and regions that other teams have "
                    f"(such as {_listed(cases) if cases != [''] else _listed(regions)}), found none of them"
                )
            if lacking := [region for r, region in enumerate(regions) if not there[t, :, r].any()]:
                raise ScoresError(
                    f"phase {phase}, team {team}: expected regions {', '.join(regions)}, "
                    f"found no scores of {', '.join(lacking)}"
                )
            missing = there.any(axis=0) & ~there[t]  # a region that nobody has in a case is not missing
            values[t, missing] = _WORST
            for r, region in enumerate(regions):
                if lost := [case for c, case in enumerate(cases) if missing[c, r]]:
                    warnings.append(
                        f"phase {phase}, {region}: {team} lacks {len(lost)} of {len(cases)} cases, which get the worst "
                        f"scores: {_listed(lost)}"
                    )
        empty = np.isnan(values) & there[..., None]
        for m, metric in enumerate(METRICS):
            if n := int(empty[..., m].sum()):
                warnings.append(f"phase {phase}: {n} scores of {_TITLES[metric]} have no value and are left out")
        tables.append(_Table(phase, tuple(teams), tuple(cases), tuple(regions), values))
    return tables, warnings


def _rank_phase(table: _Table) -> PhaseRanking:
    region_means = _means(table.values, np.ones((1, len(table.cases))))[0]
    means = region_means.mean(axis=1)
    ranks = _ranks(means)
    region_ranks = np.stack([_ranks(region_means[:, r]) for r in range(len(table.regions))], axis=1)
    cases = len(table.cases) if table.by_case else None
    return PhaseRanking(
        table.phase, table.teams, table.regions, cases, region_means, region_ranks, means, ranks, ranks.mean(axis=-1)
    )


def _means(values: Floats, counts: Floats) -> Floats:
    """Means over cases, each counted as often as ``counts`` (B, C) says: (T, C, R, M) to (B, T, R, M)."""
    there = ~np.isnan(values)
    total = np.tensordot(counts, np.where(there, values, 0.0), axes=(1, 1))
    n = np.tensordot(counts, there.astype(float), axes=(1, 1))
    return np.where(n > 0, total / np.maximum(n, 1), _WORST)


def _ranks(means: Floats) -> Floats:
    """Ranks of teams per metric, (..., T, M): 1 is best, ties share the average."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(_SIGN * np.round(means, _DECIMALS), method="average", axis=-2), float)


def _significance_of_phase(table: _Table, correction: str) -> PhaseSignificance:
    k, regions = len(table.teams), range(len(table.regions))
    p = np.ones((k, k, len(table.regions), len(METRICS)))
    better = np.zeros(p.shape, bool)
    pairs = _pairs(k)
    for r in regions:
        for m in range(len(METRICS)):
            found = [_signed_ranks(_SIGN[m] * (table.values[b, :, r, m] - table.values[a, :, r, m])) for a, b in pairs]
            raw = [value for value, _ in found]
            for (a, b), value, (_, favour) in zip(
                pairs, _holm(raw) if correction == "holm" else raw, found, strict=True
            ):
                p[a, b, r, m] = p[b, a, r, m] = value
                better[a, b, r, m], better[b, a, r, m] = favour > 0, favour < 0
    wins = (better & (p <= ALPHA)).sum(axis=1)
    total = wins.sum(axis=(1, 2))
    order = sorted(range(k), key=lambda t: (-total[t], table.teams[t]))
    teams = tuple(table.teams[t] for t in order)
    return PhaseSignificance(
        table.phase, teams, table.regions, len(table.cases), p[np.ix_(order, order)], wins[order], total[order]
    )


def _signed_ranks(gains: Floats) -> tuple[float, float]:
    """(p, rank sum of the gains less that of the losses); NaN and zero are left out, (1, 0) where nothing is left."""
    from scipy.stats import rankdata, wilcoxon

    gains = np.round(gains[~np.isnan(gains)], _DECIMALS)
    gains = gains[gains != 0]
    if not len(gains):
        return 1.0, 0.0
    return float(wilcoxon(gains).pvalue), float((np.sign(gains) * rankdata(np.abs(gains))).sum())


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand J Stat 6, 1979)."""
    corrected, highest = [0.0] * len(p), 0.0
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min(1.0, (len(p) - step) * p[i]))
        corrected[i] = highest
    return corrected


def _kendall_tau(resampled: Floats, full: Floats) -> Floats:
    """Tau-b of each row of ``resampled`` (B, k) with ``full`` (k,); rows in which all teams tie are left out."""
    above = np.triu_indices(len(full), 1)
    ours = np.sign(resampled[:, above[0]] - resampled[:, above[1]])
    theirs = np.sign(full[above[0]] - full[above[1]])
    scale = np.sqrt((ours**2).sum(axis=1) * (theirs**2).sum())
    valid = scale > 0
    return np.asarray((ours @ theirs)[valid] / scale[valid])


def _needs_cases(table: _Table, what: str) -> None:
    if not table.by_case:
        raise ScoresError(f"phase {table.phase}: expected scores by case for {what}, found means over cases")


def _placed(name: str) -> tuple[int, str]:
    return (_ORDER.index(name) if name in _ORDER else len(_ORDER)), name


def _pairs(k: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(k) for b in range(a + 1, k)]


def _named(values: Floats) -> dict[str, float]:
    return {name: float(value) for name, value in zip(METRICS, values, strict=True)}


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

"""What an evaluation gives: one row per case and region, and the summaries over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pvs_model.evaluation.metrics import SETS, Overlap, Values

#: What became of a case's prediction.
SCORED, MISSING, REFUSED = "scored", "missing", "refused"


@dataclass(frozen=True)
class Row:
    """The scores of one case within one region.

    Attributes:
        case: name of the case, unique with its ``site``.
        site: folders above the case's own, "" where there are none.
        protocol: voxel size of the truth in words, such as "1 x 1 x 3 mm".
        region: "CSO", "BG", or "all" for the whole image.
        status: ``SCORED``; ``MISSING`` (no prediction) or ``REFUSED`` (one that does not fit), both with the worst
            scores.
        counts: what was counted.
        sets: the scores by set and name, None where a score has no value (``metrics.SETS``).
        truth, prediction: the files.
        notes: what the reader of the scores should know, such as a precision above 1.
    """

    case: str
    site: str
    protocol: str
    region: str
    status: str
    counts: Overlap
    sets: dict[str, Values]
    truth: Path
    prediction: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Site and case, as the user would find them in the folder of truth."""
        return f"{self.site}/{self.case}" if self.site else self.case


@dataclass(frozen=True)
class Summary:
    """One score over the rows of one group and region.

    Attributes:
        by, group: "all" and "", "site" and its name, or "protocol" and its name.
        region: "CSO", "BG" or "all".
        score_set, score: such as "official" and "dice".
        n, without: rows with a value, and rows where the score has none (left out).
        mean, sd, median: of the values; None without any. ``sd`` has n - 1 in its denominator, None for n = 1.
        low, high: 95 % bootstrap interval of the mean, None for n < 5.
    """

    by: str
    group: str
    region: str
    score_set: str
    score: str
    n: int
    without: int
    mean: float | None
    sd: float | None
    median: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Report:
    """All of an evaluation.

    Attributes:
        rows: by site, case and region.
        summaries: over all rows, each site and each protocol, where there are several.
        problems: one sentence per case that could not be scored as it should (refused predictions, broken truths).
        faults: those among the problems that are not the predictions': of the truth, the regions, the list of jobs.
        warnings: what else the user should know, such as predictions without a truth.
        regions_from: where the region masks came from, in words.
    """

    rows: tuple[Row, ...]
    summaries: tuple[Summary, ...]
    problems: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    regions_from: str = ""
    names: tuple[str, str] = field(default=("", ""))  # folders of truth and of predictions, as given

    @property
    def regions(self) -> list[str]:
        """The regions of the rows, in order."""
        return list(dict.fromkeys(row.region for row in self.rows))

    def cases(self, status: str) -> list[str]:
        """Names of the cases of one status, each once."""
        return list(dict.fromkeys(row.label for row in self.rows if row.status == status))


def every_score() -> Iterator[tuple[str, str]]:
    """(set, name) of all scores, in the order of tables."""
    for name, scores in SETS.items():
        for score in scores:
            yield name, score


def values_of(rows: Iterable[Row], score_set: str, score: str) -> list[float]:
    """The values of a score, those without one left out."""
    found = (row.sets[score_set][score] for row in rows)
    return [value for value in found if value is not None]

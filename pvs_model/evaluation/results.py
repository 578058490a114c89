"""Results of an evaluation: one row of scores per case and region, and summaries over them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pvs_model.evaluation.metrics import SETS, Overlap, Values

#: Status of a case's prediction.
SCORED, MISSING, REFUSED = "scored", "missing", "refused"


@dataclass(frozen=True)
class Row:
    """The scores of one case within one region.

    Attributes:
        case: Name of the case, unique with its ``site``.
        site: Folders above the case's own, "" where there are none.
        protocol: Voxel size of the reference mask, such as "1 x 1 x 3 mm".
        region: "CSO", "BG", or "all" for the whole image.
        status: ``SCORED``; ``MISSING`` (no prediction) or ``REFUSED`` (one on another grid), both with penalty scores.
        counts: Numbers of voxels and clusters.
        sets: Scores by set and name, None where a score has no value (``metrics.SETS``).
        reference, prediction: Files of the masks.
        notes: Remarks on the scores, such as a precision above 1.
    """

    case: str
    site: str
    protocol: str
    region: str
    status: str
    counts: Overlap
    sets: dict[str, Values]
    reference: Path
    prediction: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Site and case, as in the folder of reference masks."""
        return f"{self.site}/{self.case}" if self.site else self.case


@dataclass(frozen=True)
class Summary:
    """One score over the rows of one group and region.

    Attributes:
        by, group: "all" and "", "site" and its name, or "protocol" and its name.
        region: "CSO", "BG" or "all".
        score_set, score: Names such as "official" and "dice".
        n, without: Number of rows with a value, and of rows without one (left out).
        mean, sd, median: Statistics of the values; None without any. ``sd`` has n - 1 in its denominator, None for
            n = 1.
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
class Evaluation:
    """All results of an evaluation.

    Attributes:
        rows: Scores by site, case and region.
        summaries: Statistics over all rows, each site and each protocol, where there are several.
        problems: One sentence per case that was not scored as usual (invalid predictions, unreadable references).
        data_errors: Those among the problems that are due to the references, the regions or the list of jobs.
        warnings: Other remarks, such as predictions without a reference.
        regions_from: Source of the region masks, human-readable.
        names: Folders of references and of predictions, as given.
    """

    rows: tuple[Row, ...]
    summaries: tuple[Summary, ...]
    problems: tuple[str, ...] = ()
    data_errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    regions_from: str = ""
    names: tuple[str, str] = ("", "")

    @property
    def regions(self) -> list[str]:
        """Regions of the rows, in order."""
        return list(dict.fromkeys(row.region for row in self.rows))

    def cases(self, status: str) -> list[str]:
        """Returns the names of the cases of one status, each once."""
        return list(dict.fromkeys(row.label for row in self.rows if row.status == status))


def every_score() -> Iterator[tuple[str, str]]:
    """Yields (set, name) of all scores, in the order of tables."""
    for name, scores in SETS.items():
        for score in scores:
            yield name, score


def values_of(rows: Iterable[Row], score_set: str, score: str) -> list[float]:
    """Returns the values of a score, without rows that have none."""
    values = (row.sets[score_set][score] for row in rows)
    return [value for value in values if value is not None]

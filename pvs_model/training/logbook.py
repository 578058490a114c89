"""The log of a run, ``log.csv``: one row per save, in step with the state; and the clock behind it."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

COLUMNS = (
    "step", "seconds", "loss", "learning_rate", "dice_at_0.5", "best_dice", "best_threshold", "samples_per_second",
    "data_share",
)  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a log, empty where an older version had no such column; none where there is no log."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(file)]


class Logbook:
    """Appends rows to a log. Rows beyond ``step`` are of a run that was killed before it saved, and go."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept = [row for row in rows_of(path) if int(row["step"]) <= step]
        part = path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        part.replace(path)

    def add(self, row: Mapping[str, float]) -> None:
        """Write a row, one value for each of ``COLUMNS``."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([row[name] for name in COLUMNS])


class Pace:
    """Samples per second, and the share of the wall time that the loop spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._began, self._waited, self._samples = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self, samples: int) -> Iterator[None]:
        """While so many samples are made."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._samples += samples

    def measured(self) -> tuple[float, float]:
        """Samples per second, and the share of time waited (0 to 1), since the last restart."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return self._samples / seconds, self._waited / seconds

"""Logs a run: ``log.csv`` with one row per validation, ``log.png``, and the throughput."""

from __future__ import annotations

import csv
import importlib.util
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pvs_model.files import write_atomically

log = logging.getLogger(__name__)

#: Columns before and after the scores of the network's validation.
BEFORE, AFTER = ("step", "seconds", "loss", "learning_rate"), ("samples_per_second", "data_share")
#: Scores that are drawn: column, legend, line, marker and grey of each curve.
CURVES = (
    ("best_dice", "Dice at its best threshold", "-", "o", "black"),
    ("dice_at_0.5", "Dice at 0.5", "--", "s", "black"),
    ("best_threshold", "best threshold", ":", "^", "0.45"),
    ("recall_thin", "recall, PVS below 0.9 mm", "-", "v", "0.6"),
    ("recall_wide", "recall, PVS from 0.9 mm", "--", "d", "0.6"),
    ("calibration_error", "calibration error", ":", "x", "black"),
    ("dice", "mean Dice", "-", "o", "black"),
)


class CsvLog:
    """Appends rows to a CSV file. Rows after the step of the resumed state are from a killed run and are removed."""

    def __init__(self, path: Path, step: int, scores: Sequence[str]) -> None:
        """
        Args:
            path: File; older rows in it are kept.
            step: Step of the state that the run begins with.
            scores: Names of the scores of a validation.
        """
        self.path, self.columns = path, (*BEFORE, *scores, *AFTER)
        rows = [row for row in read_rows(path) if int(row["step"]) <= step]
        write_atomically(path, lambda part: self._write(part, rows))

    def _write(self, path: Path, rows: Sequence[Mapping[str, str]]) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(self, row: Mapping[str, float]) -> None:
        """Appends a row with a value for each column."""
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([row[name] for name in self.columns])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a log, without those that a crash has left without a step; an empty list without a log."""
    if not path.is_file():
        return []
    with path.open(newline="", errors="replace") as file:
        return [row for row in csv.DictReader(file) if re.fullmatch(r"\d+", row.get("step") or "")]


class Throughput:
    """Measures samples per second, and the share of the wall time that the loop waited for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begins a new measurement."""
        self._began, self._waited, self._samples = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self, samples: int) -> Iterator[None]:
        """Counts the time inside as waiting for a number of samples."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began
        self._samples += samples

    def measured(self) -> dict[str, float]:
        """Samples per second, and the share of time waited (0 to 1), since the last restart."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return {"samples_per_second": self._samples / seconds, "data_share": self._waited / seconds}


def _number(text: str | None) -> float:
    """A cell as a number; NaN for an empty one and one that a crash has cut off."""
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def can_plot() -> bool:
    """Whether matplotlib, a development dependency, is installed; logged if not."""
    installed = importlib.util.find_spec("matplotlib") is not None
    if not installed:
        log.info("log.png is not drawn: matplotlib is not installed")
    return installed


def plot(source: Path, target: Path) -> None:
    """Draws a ``log.csv``: loss and learning rate on the left, validation scores on the right.

    Curves differ by line and marker rather than by colour, and are named in a legend, so that they survive printing.
    """
    from matplotlib.figure import Figure

    rows = read_rows(source)
    steps = [int(row["step"]) for row in rows]

    def column(name: str) -> list[float]:
        return [_number(row.get(name)) for row in rows]

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rate = left.twinx()
    lines = left.plot(steps, column("loss"), color="black", linestyle="-", label="loss (left)")
    lines += rate.plot(steps, column("learning_rate"), color="0.45", linestyle="--", label="learning rate (right)")
    left.legend(handles=lines, loc="upper right")
    left.set_ylabel("loss")
    rate.set(ylabel="learning rate", ylim=(0, None))
    for name, label, style, marker, shade in CURVES:
        if any(name in row for row in rows):
            right.plot(steps, column(name), color=shade, linestyle=style, marker=marker, markersize=4, label=label)
    if right.lines:
        right.legend(loc="lower right")
    right.set(ylabel="validation, 0 to 1", ylim=(0, 1))
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(color="0.9")
    write_atomically(target, lambda part: figure.savefig(part, dpi=150, format="png"))

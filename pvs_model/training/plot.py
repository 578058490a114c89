"""The log of a run as a picture, ``log.png``."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

from pvs_model.training.logbook import rows_of

log = logging.getLogger(__name__)


def can_plot() -> bool:
    """Whether matplotlib, which only development needs, is installed; if not, that is logged."""
    there = importlib.util.find_spec("matplotlib") is not None
    if not there:
        log.info("log.png is left out: matplotlib is not installed")
    return there


def plot(source: Path, target: Path) -> None:
    """Draw a ``log.csv``: loss and learning rate on the left, validation Dice and its best threshold on the right.

    Curves differ by line and marker, not by colour, and each is named in a legend: they can be told apart in print.
    """
    from matplotlib.figure import Figure

    rows = rows_of(source)
    steps = [int(row["step"]) for row in rows]

    def column(name: str) -> list[float]:
        return [float(row[name]) if row[name] else float("nan") for row in rows]

    figure = Figure(figsize=(11, 4))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(0.06, 0.13, 0.98, 0.96, wspace=0.36)
    rate = left.twinx()
    lines = left.plot(steps, column("loss"), color="black", linestyle="-", label="loss (left)")
    lines += rate.plot(steps, column("learning_rate"), color="0.45", linestyle="--", label="learning rate (right)")
    left.legend(handles=lines, loc="upper right")
    left.set_ylabel("loss")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    for name, label, style, marker, shade in (
        ("best_dice", "Dice at its best threshold", "-", "o", "black"),
        ("dice_at_0.5", "Dice at 0.5", "--", "s", "black"),
        ("best_threshold", "best threshold", ":", "^", "0.45"),
    ):
        right.plot(steps, column(name), color=shade, linestyle=style, marker=marker, markersize=4, label=label)
    right.legend(loc="lower right")
    right.set_ylabel("validation, 0 to 1")
    right.set_ylim(0, 1)
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.grid(color="0.9")
    part = target.with_suffix(".part")
    figure.savefig(part, dpi=150, format="png")
    part.replace(target)

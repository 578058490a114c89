"""The stability of a ranking as a figure: one blob per team and position, its area the share of resamples."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pvs_model.errors import PVSError
from pvs_model.evaluation.stability import Stability
from pvs_model.files import write_atomically

FORMATS = (".png", ".svg")


class PlotError(PVSError):
    """The file's ending is of no supported format, or it cannot be written."""


def check_format(target: Path) -> None:
    """Raises ``PlotError`` unless a file's ending is one of ``FORMATS``."""
    if target.suffix.lower() not in FORMATS:
        raise PlotError(f"{target}: expected a name that ends in {' or '.join(FORMATS)}, got {target.suffix or 'none'}")


def plot_stability(stability: Stability, target: Path) -> None:
    """Draws a blob plot, as PNG or SVG by the ending of ``target``.

    Teams are ordered from left to right as in the full ranking, positions from the best at the top. A blob's area is
    the share of resamples, a cross the position in the full ranking, a line the 95 % interval, independent of colour.

    Raises:
        PlotError: Another ending, or the file cannot be written.
    """
    check_format(target)
    import matplotlib
    from matplotlib.figure import Figure

    k = len(stability.teams)
    at = np.arange(k)
    cell_inches = 0.62
    longest = max(len(team) for team in stability.teams)
    below = 0.5 + 0.065 * longest  # room for slanted names
    width, height = 1.4 + cell_inches * k, 0.7 + below + cell_inches * k
    figure = Figure(figsize=(max(width, 5.2), height))
    axes = figure.subplots()
    left = 0.8 / figure.get_figwidth()
    figure.subplots_adjust(left, below / height, left + cell_inches * k / figure.get_figwidth(), 1 - 0.6 / height)
    teams, positions = np.nonzero(stability.frequency)
    largest = (0.92 * cell_inches * 72) ** 2  # points squared: all resamples on one place nearly fill its cell
    axes.vlines(at, stability.low, stability.high, color="black", linewidth=1.5, zorder=3, label="95 % of resamples")
    axes.scatter(
        teams, positions + 1, s=largest * stability.frequency[teams, positions],
        color="#56b4e9", edgecolors="#0072b2", linewidths=0.8, zorder=2,
    )  # fmt: skip
    axes.scatter(at, stability.positions, marker="x", color="black", s=45, zorder=4, label="full ranking")
    axes.set_xticks(at, stability.teams, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(1, k + 1))
    axes.set_xlim(-0.6, k - 0.4)
    axes.set_ylim(k + 0.6, 0.4)
    axes.set_ylabel("place")
    axes.set_axisbelow(True)
    axes.grid(color="0.9")
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper left", ncols=2, frameon=False, fontsize=8,
        title=f"area: share of {stability.resamples} bootstrap samples", title_fontsize=8, alignment="left",
    )  # fmt: skip
    form = target.suffix.lower()[1:]
    metadata = {"Date": None} if form == "svg" else None
    # No date and a fixed salt: the same ranking gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "pvs_model"}):
        write_atomically(
            target,
            lambda part: figure.savefig(part, dpi=150, format=form, bbox_inches="tight", metadata=metadata),
            PlotError,
        )

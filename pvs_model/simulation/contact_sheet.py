"""Draws a contact sheet of simulated cases: three sequences and the outline of the reference label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.types import SEQUENCES, Triple

OUTLINE = "#ffd21f"
PANEL_INCHES, CAPTION_INCHES, DPI = 1.6, 0.24, 120
#: Percentile of each sequence that is shown white; lower for T2w, so that CSF does not hide adjacent PVS.
WHITE_PERCENTILES = (99.0, 97.5, 99.5)
#: Ratio of the longest to the shortest voxel side from which an image has slices.
MIN_ANISOTROPY = 1.5


@dataclass(frozen=True)
class Panel:
    """One slice in display orientation: image (rows, columns) in 0 to 1 or None, reference, pixel aspect ratio."""

    image: npt.NDArray[np.float32] | None
    reference: npt.NDArray[np.bool_]
    aspect: float


@dataclass(frozen=True)
class Row:
    """A case: caption and eight panels (T1w, T2w, FLAIR, T2w with outline, in two regions)."""

    caption: str
    panels: tuple[Panel, ...]


def case_row(caption: str, images: npt.NDArray[np.float32], present: Sequence[bool], reference: npt.NDArray[Any],
        regions: Sequence[npt.NDArray[Any]], voxel_mm: Triple) -> Row:  # fmt: skip
    """Selects the slices of a case with the most PVS in each region.

    Args:
        caption: Caption in one line.
        images: (3, x, y, z) in RAS+ order.
        present: Whether each sequence is present.
        reference: (x, y, z) reference label.
        regions: Masks (x, y, z): centrum semiovale, basal ganglia.
        voxel_mm: Voxel spacing.
    """
    thickest = max(range(3), key=lambda axis: (voxel_mm[axis], axis))
    axis = thickest if voxel_mm[thickest] > MIN_ANISOTROPY * min(voxel_mm) else 2
    in_plane = tuple(a for a in range(3) if a != axis)
    shown = np.any([image != 0 for image, is_present in zip(images, present, strict=True) if is_present], axis=0)
    bounds = [np.flatnonzero(shown.any(tuple(b for b in range(3) if b != a))) for a in in_plane]
    window = [slice(int(b[0]), int(b[-1]) + 1) if len(b) else slice(None) for b in bounds]
    outlined = next(c for c in (1, 0, 2) if present[c])
    tops = [
        float(np.percentile(image[shown], white)) or 1.0 for image, white in zip(images, WHITE_PERCENTILES, strict=True)
    ]
    panels = []
    for region in regions:
        inside = (reference > 0) & (region > 0)
        counts = inside.sum(in_plane) if inside.any() else (region > 0).sum(in_plane)
        place: list[slice | int] = [slice(None)] * 3
        place[axis] = int(counts.argmax())
        place[in_plane[0]], place[in_plane[1]] = window

        def display(array: npt.NDArray[Any], place: tuple[slice | int, ...] = tuple(place)) -> npt.NDArray[Any]:
            return array[place].T[::-1]

        mask = display(reference) > 0
        aspect = voxel_mm[in_plane[1]] / voxel_mm[in_plane[0]]
        for channel in range(3):
            gray = np.clip(display(images[channel]) / tops[channel], 0, 1).astype(np.float32)
            panels.append(Panel(gray if present[channel] else None, np.zeros_like(mask), aspect))
        gray = np.clip(display(images[outlined]) / tops[outlined], 0, 1).astype(np.float32)
        panels.append(Panel(gray, mask, aspect))
    return Row(caption, tuple(panels))


def write_contact_sheet(rows: Sequence[Row], path: Path) -> None:
    """Writes the rows as a PNG, each under its caption."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(rows[0].panels)
    heads = [*SEQUENCES, "PVS (reference)"]
    tall = [
        PANEL_INCHES * max(p.reference.shape[0] * p.aspect / p.reference.shape[1] for p in r.panels) + CAPTION_INCHES
        for r in rows
    ]
    width, height = columns * PANEL_INCHES, sum(tall) + CAPTION_INCHES
    figure = Figure(figsize=(width, height), facecolor="black")
    FigureCanvasAgg(figure)
    style: dict[str, Any] = {"color": "white", "va": "center"}
    for k in range(columns):
        region = "centrum semiovale" if k < columns // 2 else "basal ganglia"
        where = ((k + 0.5) / columns, 1 - CAPTION_INCHES / 2 / height)
        figure.text(*where, f"{heads[k % len(heads)]}, {region}", fontsize=6.5, ha="center", **style)
    top = height - CAPTION_INCHES
    for r, inches in zip(rows, tall, strict=True):
        figure.text(0.004, (top - CAPTION_INCHES / 2) / height, r.caption, fontsize=7.5, ha="left", **style)
        for k, panel in enumerate(r.panels):
            box = (k / columns, (top - inches) / height, 1 / columns * 0.985, (inches - CAPTION_INCHES) / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if panel.image is None:
                axes.text(0.5, 0.5, "missing", color="gray", ha="center", va="center", fontsize=8)
                continue
            axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, aspect=panel.aspect, interpolation="nearest")
            if panel.reference.any():
                axes.contour(panel.reference, levels=[0.5], colors=[OUTLINE], linewidths=0.5)
        top -= inches
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="black")

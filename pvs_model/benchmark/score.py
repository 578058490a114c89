"""Scores of a weights folder on labelled cases, prepared and predicted as the container does."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model import pipeline
from pvs_model.datasets.labelled_cases import read_labels
from pvs_model.evaluation.metrics import detection, official, overlap, voxels, without_ignored
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.postprocess import remove_small_components, to_mask
from pvs_model.layouts import choose
from pvs_model.types import SEQUENCES, FloatArray

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ScoredCase:
    """A labelled case, ready to be predicted.

    Attributes:
        set: name of the set that it belongs to.
        name: of the case.
        prepared: on its reference grid; ``foreground`` lies within the box to be scored.
        present: the sequences that are there.
        truth: bool (x, y, z).
        ignore: bool (x, y, z), what scores leave out.
        regions: name -> bool (x, y, z): CSO, BG, and "brain" for all of the box.
    """

    set: str
    name: str
    prepared: pipeline.Prepared
    present: tuple[str, ...]
    truth: Bool
    ignore: Bool
    regions: dict[str, Bool]

    @property
    def thickness_mm(self) -> float:
        """Of the slices: the largest voxel spacing."""
        return float(max(self.prepared.grid.spacing_mm))


def load_cases(folder: Path, name: str, count: int, crop_mm: float, weights: Path | None) -> list[ScoredCase]:
    """The labelled cases of a set.

    Args:
        folder: of cases with ``<case>_PVS``, ``_BG`` and ``_CSO`` masks beside the images.
        name: of the set.
        count: how many.
        crop_mm: side of the box around the basal ganglia that is predicted and scored; 0 for everything.
        weights: folder with the anatomy network, for networks that see regions; None for none.

    Raises:
        VolumeError: a mask is missing.
    """
    found = []
    for case in choose(folder).find_cases(folder)[:count]:
        volumes = pipeline.read(case)
        anatomy = None if weights is None else pipeline.estimate_anatomy(volumes, weights)
        prepared = pipeline.prepare(volumes, anatomy=anatomy)
        masks = read_labels(case, volumes[prepared.reference])
        box = box_around(masks["BG"], prepared.grid.spacing_mm, crop_mm)
        prepared = replace(prepared, foreground=prepared.foreground & box)
        regions = {"CSO": masks["CSO"] & box, "BG": masks["BG"] & box, "brain": box}
        present = tuple(s for s, channel in zip(SEQUENCES, prepared.image, strict=True) if channel.any())
        found.append(ScoredCase(name, case.name, prepared, present, masks["PVS"] & box, masks["IGNORE"], regions))
    return found


def box_around(region: Bool, spacing_mm: tuple[float, float, float], side_mm: float) -> Bool:
    """A box (x, y, z) with its middle where a region has its own; all where the side is 0 or the region empty."""
    if not side_mm or not region.any():
        return np.ones(region.shape, np.bool_)
    box = np.zeros(region.shape, np.bool_)
    slices = []
    for middle, spacing in zip((axis.mean() for axis in np.nonzero(region)), spacing_mm, strict=True):
        half = side_mm / spacing / 2
        slices.append(slice(max(0, round(middle - half)), max(1, round(middle + half))))
    box[tuple(slices)] = True
    return box


@dataclass(frozen=True)
class Prediction:
    """Of one case: probability (x, y, z) and the seconds it took."""

    probability: FloatArray
    seconds: float


def predict(case: ScoredCase, ensemble: Ensemble, text: Any, device: Any, mirror: bool = False) -> Prediction:
    """Probability within the case's box. ``text`` are the embeddings of its prompt."""
    began = time.perf_counter()
    probability = pipeline.predict_probability(case.prepared, ensemble, text, device, mirror=mirror, backend="torch")
    return Prediction(probability, time.perf_counter() - began)


def scores(case: ScoredCase, probability: FloatArray, threshold: float) -> list[dict[str, Any]]:
    """One row per region: what ``report`` makes its tables of."""
    marked = to_mask(probability, threshold, case.prepared.foreground)
    mask = remove_small_components(marked, float(np.prod(case.prepared.grid.spacing_mm))) > 0
    mask = without_ignored(mask, case.truth, case.ignore)
    rows = []
    for region, within in case.regions.items():
        o = overlap(mask & within, case.truth & within)
        challenge, found, voxel = official(o), detection(o), voxels(o)
        rows.append(
            {
                "set": case.set,
                "case": case.name,
                "thickness_mm": round(case.thickness_mm, 3),
                "region": region,
                "dice": voxel["dice"],
                "iou": voxel["iou"],
                "recall": found["recall"],
                "precision": found["precision"],
                "f1": found["f1"] if o.truth_clusters and o.predicted_clusters else None,
                "avd": challenge["avd_capped"] if o.truth_voxels else None,
                "official": {key: challenge[key] for key in ("recall", "precision", "dice", "avd_capped")},
                "truth_clusters": o.truth_clusters,
                "predicted_clusters": o.predicted_clusters,
            }
        )
    return rows


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that there are; None without any."""
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None

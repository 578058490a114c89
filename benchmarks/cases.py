"""Labelled cases, their scores, and tables of scores: shared by the benchmarks of accuracy.

A set is a folder in any layout that the product reads, with ``<case>_PVS``, ``_BG`` and ``_CSO`` masks beside the
images, as written by ``python -m pvs_model simulate`` (or with a user's own labels).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.config import shipped_weights
from pvs_model.datasets.labelled_cases import beside, read_labels
from pvs_model.datasets.simulated_cases import MAPS
from pvs_model.errors import VolumeError
from pvs_model.evaluation.metrics import detection, official, overlap, voxels, without_ignored
from pvs_model.files import write_text
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.weights import has_anatomy
from pvs_model.layouts import choose
from pvs_model.pipeline import mask_from
from pvs_model.preprocessing.prepare import PreparedImages, estimate_anatomy, prepare, read
from pvs_model.types import SEQUENCES, FloatArray, Volume
from pvs_model.volume import io
from pvs_model.volume.geometry import to_ras

Bool = npt.NDArray[np.bool_]
Scores = dict[str, float | None]

WEIGHTS = shipped_weights()


@dataclass(frozen=True)
class LabelledCase:
    """A case as the pipeline prepares it, with its reference masks on the same grid.

    Attributes:
        name: Name of the case.
        volumes: Images by sequence, as read.
        prepared: Images on the reference grid.
        reference: bool (x, y, z), PVS.
        ignore: bool (x, y, z), voxels left out of scores.
        regions: bool (x, y, z) by name: "CSO", "BG", and "brain" for the whole box that is scored.
        maps: float32 (x, y, z) by name, of simulated cases: "FLUID", "CNR", "DIAMETER" (``datasets.simulated_cases``).
    """

    name: str
    volumes: dict[str, Volume]
    prepared: PreparedImages
    reference: Bool
    ignore: Bool
    regions: dict[str, Bool]
    maps: dict[str, FloatArray]

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the available sequences."""
        return tuple(s for s, channel in zip(SEQUENCES, self.prepared.image, strict=True) if channel.any())

    @property
    def thickness_mm(self) -> float:
        """Slice thickness: the largest voxel spacing."""
        return float(max(self.prepared.grid.spacing_mm))

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.prepared.grid.spacing_mm))

    def within(self, region: str) -> Bool:
        """Reference PVS of a region."""
        return self.reference & self.regions[region]


def parse_sets(arguments: Iterable[str]) -> dict[str, Path]:
    """Parses arguments of the form ``NAME=DIR`` or ``DIR``; the default name is that of the folder."""
    sets = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        sets[name or Path(path).name] = Path(path)
    return sets


def load_cases(
    folder: Path, count: int | None = None, crop_mm: float = 0.0, anatomy_weights: Path | None = None
) -> Iterator[LabelledCase]:
    """Reads and prepares the labelled cases of a set, by name.

    Args:
        folder: Folder of the set.
        count: Maximum number of cases.
        crop_mm: Side of the box around the basal ganglia that is predicted and scored; 0 for the whole image.
        anatomy_weights: Weights folder whose anatomy network decides where windows lie and what is outside the
            parenchyma, as in a run; none is used where the folder has none, or for None.

    Raises:
        VolumeError: If a reference or region mask is missing or has another grid. Masks may be empty.
    """
    uses_anatomy = anatomy_weights is not None and has_anatomy(anatomy_weights)
    for case in choose(folder).find_cases(folder)[:count]:
        volumes = read(case)
        anatomy = None
        if uses_anatomy:
            try:
                anatomy = estimate_anatomy(volumes, anatomy_weights)
            except VolumeError as error:  # as in a run
                print(f"{case.name}: no regions: {error}", file=sys.stderr)
        prepared = prepare(volumes, anatomy=anatomy)
        masks = read_labels(case, volumes[prepared.reference])
        box = box_around(masks["BG"], prepared.grid.spacing_mm, crop_mm)
        prepared = replace(prepared, foreground=prepared.foreground & box)
        regions = {"CSO": masks["CSO"] & box, "BG": masks["BG"] & box, "brain": box}
        files = {name: path for name in MAPS if (path := beside(case, name)) is not None}
        maps = {name: _read_map(path) for name, path in files.items()}
        yield LabelledCase(case.name, volumes, prepared, masks["PVS"] & box, masks["IGNORE"], regions, maps)


def _read_map(path: Path) -> FloatArray:
    """Reads a map in RAS+ order; unlike an image it may be 0 everywhere."""
    values, grid = io.read_values(path)
    return to_ras(Volume(values, grid.affine, path))[0].data


def box_around(region: Bool, spacing_mm: Sequence[float], side_mm: float) -> Bool:
    """Computes a box (x, y, z) around the centroid of a region; everything if the side is 0 or the region empty."""
    if not side_mm or not region.any():
        return np.ones(region.shape, np.bool_)
    box = np.zeros(region.shape, np.bool_)
    slices = []
    for centre, spacing in zip((axis.mean() for axis in np.nonzero(region)), spacing_mm, strict=True):
        half = side_mm / spacing / 2
        slices.append(slice(max(0, round(centre - half)), max(1, round(centre + half))))
    box[tuple(slices)] = True
    return box


def mask_of(prepared: PreparedImages, probability: FloatArray, ensemble: Ensemble, region: str = "brain") -> Bool:
    """The mask that the pipeline makes of a probability, after a prompt for a region."""
    mask, _ = mask_from(prepared, probability, ensemble, region)
    return mask > 0


def score_regions(case: LabelledCase, mask: Bool) -> dict[str, Scores]:
    """Scores of a mask in each region, without ignored voxels and components."""
    mask = without_ignored(mask, case.reference, case.ignore)
    return {name: score(mask & region, case.reference & region) for name, region in case.regions.items()}


def score(prediction: Bool, reference: Bool) -> Scores:
    """Computes the scores of ``COLUMNS``; None where the denominator is 0, so that means leave the case out.

    The challenge's script has 0 for some of these (``evaluation.metrics``), which would count regions without any PVS
    as failures. "official_..." are the challenge's four scores as its script computes them.
    """
    o = overlap(prediction, reference)
    challenge, clusters, voxel = official(o), detection(o), voxels(o)
    return {
        "dice": voxel["dice"],
        "iou": voxel["iou"],
        "avd": challenge["avd_capped"] if o.reference_voxels else None,
        "recall": clusters["recall"],
        "precision": clusters["precision"],
        "precision_challenge": challenge["precision"] if o.predicted_clusters else None,
        "f1": clusters["f1"] if o.reference_clusters and o.predicted_clusters else None,
        **{f"official_{name}": challenge[name] for name in ("dice", "avd_capped", "recall", "precision")},
    }


#: Columns of a table and their keys in ``score``: the challenge's four, then precision and F1 of clusters.
COLUMNS = {
    "Dice": "dice",
    "AVD": "avd",
    "recall": "recall",
    "precision (challenge)": "precision_challenge",
    "precision (clusters)": "precision",
    "F1": "f1",
}


def table_header(*first: str) -> str:
    """Formats the header of a Markdown table of scores; ``first`` are the columns before the scores."""
    names = [*first, *COLUMNS]
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def table_row(first: Iterable[str], scores: Sequence[Scores]) -> str:
    """Formats a row of a table: means over cases that have a value."""
    cells = [format_score(mean(s[key] for s in scores)) for key in COLUMNS.values()]
    return "| " + " | ".join([*first, *cells]) + " |"


def format_score(value: float | None) -> str:
    """Formats a number for a table."""
    return "-" if value is None else f"{value:.3f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are neither None nor NaN; None without any."""
    kept = [v for v in values if v is not None and not math.isnan(v)]
    return statistics.fmean(kept) if kept else None


def write_json(path: Path | None, content: Any) -> None:
    """Writes JSON atomically, NaN as null; nothing if there is no path."""
    if path is not None:
        write_text(path, json.dumps(_without_nan(content), indent=1, allow_nan=False) + "\n")


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Builds a parser of the options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="[NAME=]DIR", help="folders of labelled cases")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, help="cases per set (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    return parser

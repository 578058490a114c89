"""Labelled cases from folders, and tables of their scores: shared by the benchmarks of accuracy.

A set is a folder in the ``epvs`` layout with ``<case>_PVS``, ``_BG`` and ``_CSO`` masks beside the images,
as ``python -m pvs_model simulate`` writes them (or with a user's own labels).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.datasets.labelled_cases import beside, read_labels
from pvs_model.evaluation.metrics import detection, official, overlap
from pvs_model.layouts import choose
from pvs_model.preprocessing.prepare import Prepared, prepare, read
from pvs_model.training.cases import MAPS
from pvs_model.types import FloatArray, Volume
from pvs_model.volume import io
from pvs_model.volume.geometry import to_ras

Bool = npt.NDArray[np.bool_]

WEIGHTS = Path(__file__).resolve().parents[1] / "weights"


@dataclass(frozen=True)
class LabelledCase:
    """A case as the pipeline sees it, with its labels and regions (bool, x, y, z) on the same grid.

    ``ignore`` is what scores leave out. Simulated cases have maps of their PVS (float32, x, y, z) as well: "FLUID",
    "CNR" and "DIAMETER" (``training.cases.save``).
    """

    name: str
    volumes: dict[str, Volume]
    prepared: Prepared
    truth: Bool
    ignore: Bool
    regions: dict[str, Bool]
    maps: dict[str, FloatArray]

    def within(self, region: str) -> Bool:
        return self.truth & self.regions[region]


def sets_of(arguments: Iterable[str]) -> dict[str, Path]:
    """``NAME=DIR`` or ``DIR``, whose name it then bears."""
    out = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        out[name or Path(path).name] = Path(path)
    return out


def cases_of(folder: Path, count: int | None = None) -> Iterator[LabelledCase]:
    """The labelled cases of a set, by name.

    Raises:
        VolumeError: when a truth or region mask is missing or lies on another grid. Any of them may mark nothing.
    """
    for case in choose(folder).find_cases(folder)[:count]:
        volumes = read(case)
        prepared = prepare(volumes)
        masks = read_labels(case, volumes[prepared.reference])
        regions = {"BG": masks["BG"], "CSO": masks["CSO"]}
        files = {name: path for name in MAPS if (path := beside(case, name)) is not None}
        maps = {name: _map(path) for name, path in files.items()}
        yield LabelledCase(case.name, volumes, prepared, masks["PVS"], masks["IGNORE"], regions, maps)


def _map(path: Path) -> FloatArray:
    """A map in RAS+ order; unlike an image it may be 0 everywhere."""
    values, grid = io.read_values(path)
    return to_ras(Volume(values, grid.affine, path))[0].data


#: Columns of a table: the challenge's four, then cluster precision by predicted clusters and its F1.
COLUMNS = ("Dice", "AVD", "recall", "precision (challenge)", "precision (clusters)", "F1")


def measured(prediction: Bool, truth: Bool) -> dict[str, float | None]:
    """The values of ``COLUMNS``; None where a score divides by nothing, so that means leave such a case out.

    The challenge's script has 0 for some of these (``evaluation.metrics``): the heads here often have no PVS at all
    in a region, which would count as a failure.
    """
    o = overlap(prediction, truth)
    challenge, clusters = official(o), detection(o)
    both = o.truth_clusters and o.predicted_clusters
    return {
        "Dice": challenge["dice"],
        "AVD": challenge["avd_capped"] if o.truth_voxels else None,
        "recall": clusters["recall"],
        "precision (challenge)": challenge["precision"] if o.predicted_clusters else None,
        "precision (clusters)": clusters["precision"],
        "F1": clusters["f1"] if both else None,
    }


def header(*first: str) -> str:
    """The head of a Markdown table of scores, after the columns that say what a row is of."""
    names = [*first, *COLUMNS]
    return "| " + " | ".join(names) + " |\n|" + "---|" * len(names)


def row(first: Iterable[str], values: list[dict[str, float | None]]) -> str:
    """One line of a table: means over cases, those without a value left out."""
    cells = [told(mean(v[name] for v in values)) for name in COLUMNS]
    return "| " + " | ".join([*first, *cells]) + " |"


def told(value: float | None) -> str:
    """A number for a table."""
    return "-" if value is None else f"{value:.3f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that there are, neither None nor NaN; None without any."""
    kept = [v for v in values if v is not None and not math.isnan(v)]
    return statistics.fmean(kept) if kept else None


def write_json(path: Path | None, content: Any) -> None:
    """JSON without NaN."""
    if path is not None:
        path.write_text(json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")


def _plain(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that these benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="[NAME=]DIR", help="folders of labelled cases")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, help="cases per set (default: all)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    return parser

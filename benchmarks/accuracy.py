"""Scores of an ensemble on labelled cases, one row per set and region, and what it finds of PVS by width and contrast.

    python -m pvs_model simulate --anatomies DIR --protocol NAME --pvs thin --count N --seed 9000 --output SETS/NAME
    python -m benchmarks.accuracy [NAME=]SETS/NAME ... [--weights DIR] [--by-protocol] [--sequences T2w] [--json FILE]

Every case is read, prepared and predicted as ``process.py`` does, at the threshold in the manifest, without the
anatomy network. On simulated cases the result is one on simulated scans; what is barely visible is left out. The second
table has the recall of clusters by the median diameter of their tubes and by their largest contrast-to-noise ratio, all
sets together; the third the volume of the mask and of the fluid over the true volume of fluid. ``--sequences`` drops
the others, to see what a missing one costs. ``--labels coverage`` scores against the older rule: a voxel is PVS where
tubes fill 0.4 of it (0.2 on thick slices).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import LabelledCase, arguments, cases_of, header, mean, measured, row, sets_of, told, write_json
from pvs_model.burden.measure import measure
from pvs_model.evaluation.metrics import clusters, without_ignored
from pvs_model.inference.device import choose_device
from pvs_model.inference.postprocess import remove_small_components, to_mask
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_maps
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.synth.engine import label_coverage
from pvs_model.training.cases import read_record
from pvs_model.types import SEQUENCES, FloatArray

#: Bins of the second table: mm, and ratios.
DIAMETERS = (0.0, 0.5, 0.7, 0.9, 1.2, 9.0)
CONTRASTS = (2.5, 4.0, 6.0, 10.0, 1000.0)


def maps_of(
    case: LabelledCase,
    weights: Weights,
    device: object,
    region: str = "brain",
    sequences: Sequence[str] = SEQUENCES,
    template: int = 0,
    mirror: bool = False,
) -> tuple[FloatArray, FloatArray | None]:
    """Probability and fluid fraction (x, y, z) of a case, of which only some sequences are shown to the network."""
    kept = [name for name in SEQUENCES if name in sequences and name in case.volumes]
    image = np.where(
        np.array([name in kept for name in SEQUENCES])[:, None, None, None], case.prepared.image, np.float32(0)
    )
    shown = replace(case.prepared, image=image)
    text = weights.embed(prompt(kept, max(shown.grid.spacing_mm), region, template))
    ensemble = weights.ensemble(choose_configuration(shown.grid))
    return predict_maps(shown, ensemble, text, device, mirror=mirror, backend="auto")


def probability(case: LabelledCase, weights: Weights, device: object, **options: Any) -> FloatArray:
    """Probability (x, y, z) of a case; options as for ``maps_of``."""
    return maps_of(case, weights, device, **options)[0]


def by_coverage(case: LabelledCase) -> LabelledCase:
    """A simulated case with labels by the older rule; nothing is ignored."""
    truth = case.maps["FLUID"] >= label_coverage(case.prepared.grid.spacing_mm)
    return replace(case, truth=truth, ignore=np.zeros_like(truth))


def clusters_of(case: LabelledCase, mask: Any) -> list[dict[str, float]]:
    """Median diameter (mm) of each true cluster, its largest contrast-to-noise ratio, and whether it is found."""
    labels, count = clusters(case.truth)
    inside = labels > 0
    number, diameter = labels[inside], case.maps["DIAMETER"][inside]
    ratio, marked = case.maps["CNR"][inside], mask[inside]
    order = np.argsort(number, kind="stable")
    ends = np.cumsum(np.bincount(number, minlength=count + 1)[1:])[:-1]
    parts = zip(*(np.split(values[order], ends) for values in (diameter, ratio, marked)), strict=True) if count else ()
    return [
        {"diameter_mm": float(np.median(d)), "cnr": float(r.max()), "found": float(m.any())} for d, r, m in parts
    ]


def print_recall(found: dict[str, list[dict[str, float]]]) -> None:
    """Recall by diameter and by contrast-to-noise ratio: one row per set."""
    columns = [("diameter_mm", DIAMETERS, "{:g} to {:g} mm"), ("cnr", CONTRASTS, "CNR {:g} to {:g}")]
    bins = [(key, low, high, text) for key, edges, text in columns for low, high in itertools.pairwise(edges)]
    print("\n| recall of clusters | " + " | ".join(text.format(low, high) for _, low, high, text in bins) + " |")
    print("|---|" + "---|" * len(bins))
    for name, rows in found.items():
        cells = []
        for key, low, high, _ in bins:
            here = [r["found"] for r in rows if low <= r[key] < high]
            cells.append(f"{told(mean(here))} ({len(here)})")
        print(f"| {name} | {' | '.join(cells)} |")


def print_volumes(volumes: dict[str, list[dict[str, float | None]]]) -> None:
    """Volumes over the true volume of fluid: one row per set."""
    print("\n| over the true volume of fluid | volume of the mask | volume of fluid |\n|---|---|---|")
    for name, rows in volumes.items():
        print(f"| {name} | {told(mean(r['mask'] for r in rows))} | {told(mean(r['fluid'] for r in rows))} |")


def main() -> None:
    """Segment, score, print."""
    parser = arguments(__doc__)
    parser.add_argument("--sequences", default=",".join(SEQUENCES), help="those shown to the network")
    parser.add_argument("--mirror", action="store_true", help="average over mirror images")
    parser.add_argument("--by-protocol", action="store_true", help="a row per protocol of simulated cases")
    parser.add_argument("--labels", choices=("visibility", "coverage"), default="visibility")
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    shown = tuple(args.sequences.split(","))
    kept: list[dict[str, object]] = []
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    volumes: dict[str, list[dict[str, float | None]]] = defaultdict(list)
    results: dict[tuple[str, str, str], list[dict[str, float | None]]] = {}
    print(header("set", "network", "region"))
    for place, folder in sets_of(args.sets).items():
        for stored in cases_of(folder, args.count):
            case = by_coverage(stored) if args.labels == "coverage" else stored
            record = folder / case.name / f"{Path(case.name).name}_simulation.json"
            name = read_record(record).order.protocol if args.by_protocol else place
            grid = case.prepared.grid
            kind, voxel_mm3 = choose_configuration(grid), float(np.prod(grid.spacing_mm))
            values, fluid = maps_of(case, weights, device, sequences=shown, mirror=args.mirror)
            marked = to_mask(values, weights.ensemble(kind).threshold, case.prepared.foreground)
            mask = remove_small_components(marked, voxel_mm3) > 0
            if case.maps:
                true = float(case.maps["FLUID"].sum()) * voxel_mm3
                burden = measure(mask.astype(np.uint8), {}, grid.affine, fluid=fluid).row("all")
                volumes[name].append({
                    "mask": burden.volume_mm3 / true if true else None,
                    "fluid": burden.fluid_mm3 / true if true and burden.fluid_mm3 is not None else None,
                })  # fmt: skip
                found[name] += clusters_of(case, mask)
            mask = without_ignored(mask, case.truth, case.ignore)
            everywhere = np.ones_like(mask)
            for region, inside in {"CSO": case.regions["CSO"], "BG": case.regions["BG"], "brain": everywhere}.items():
                result = measured(mask & inside, case.truth & inside)
                results.setdefault((name, kind, region), []).append(result)
                kept.append({"set": name, "case": case.name, "region": region, **result})
    for key, values_of_key in results.items():
        print(row(key, values_of_key), flush=True)
    if found:
        print_recall(found)
        print_volumes(volumes)
    write_json(args.json, {"scores": kept, "clusters": found, "volumes": volumes})


if __name__ == "__main__":
    main()

"""Scores of an ensemble on labelled cases by set and region, and its recall of PVS by width and contrast.

    python -m pvs_model simulate --anatomies DIR --protocol NAME --pvs thin --count N --seed 9000 --output SETS/NAME
    python -m benchmarks.accuracy [NAME=]SETS/NAME ... [--weights DIR] [--by-protocol] [--sequences T2w] [--json FILE]

Every case is segmented as by ``process.py``, at the threshold in the manifest. Barely visible PVS of simulated cases
are ignored. The second table has the recall of clusters by the median diameter of their tubes and by their largest
contrast-to-noise ratio; the third the volumes of the mask and of the fluid over the true volume of fluid.
``--sequences`` removes the others, to measure the effect of missing ones. ``--labels coverage`` scores against the
older labels: a voxel is PVS where tubes fill 0.4 of it (0.2 on thick slices).
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cases import (
    COLUMNS,
    LabelledCase,
    Scores,
    argument_parser,
    format_score,
    load_cases,
    mask_of,
    mean,
    parse_sets,
    score_regions,
    table_header,
    table_row,
    write_json,
)
from pvs_model.burden.regions import burden_of
from pvs_model.evaluation.metrics import clusters
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_maps
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.simulation.render import labelling_threshold
from pvs_model.types import SEQUENCES, FloatArray

#: Edges of the bins of the second table: diameters in mm, contrast-to-noise ratios.
DIAMETERS = (0.0, 0.5, 0.7, 0.9, 1.2, 9.0)
CONTRASTS = (2.5, 4.0, 6.0, 10.0, 1000.0)


def with_sequences(case: LabelledCase, sequences: Sequence[str]) -> LabelledCase:
    """Sets the other sequences of a case to zero, so that neither networks nor postprocessing see them."""
    kept = np.array([name in sequences for name in SEQUENCES])[:, None, None, None]
    image = np.where(kept, case.prepared.image, np.float32(0))
    return replace(case, prepared=replace(case.prepared, image=image))


def maps_of(
    case: LabelledCase, weights: Weights, device: torch.device, mirror: bool = False
) -> tuple[FloatArray, FloatArray | None]:
    """Predicts probability and PVS fraction (x, y, z) of a case."""
    ensemble = weights.ensemble(choose_configuration(case.prepared.grid))
    text = weights.embed(prompt(case.sequences, case.thickness_mm))
    return predict_maps(case.prepared, ensemble, text, device, mirror=mirror, backend="auto")


def label_by_coverage(case: LabelledCase) -> LabelledCase:
    """Labels a simulated case by coverage; nothing is ignored."""
    reference = case.maps["FLUID"] >= labelling_threshold(case.prepared.grid.spacing_mm)
    return replace(case, reference=reference, ignore=np.zeros_like(reference))


def clusters_of(case: LabelledCase, mask: Any) -> list[dict[str, float]]:
    """Lists median diameter (mm), largest contrast-to-noise ratio and detection of each reference cluster."""
    labels, count = clusters(case.reference)
    inside = labels > 0
    number, diameter = labels[inside], case.maps["DIAMETER"][inside]
    ratio, marked = case.maps["CNR"][inside], mask[inside]
    order = np.argsort(number, kind="stable")
    ends = np.cumsum(np.bincount(number, minlength=count + 1)[1:])[:-1]
    parts = zip(*(np.split(values[order], ends) for values in (diameter, ratio, marked)), strict=True) if count else ()
    return [
        {"diameter_mm": float(np.median(d)), "cnr": float(r.max()), "detected": float(m.any())} for d, r, m in parts
    ]


def print_recall(results: dict[str, list[dict[str, float]]]) -> None:
    """Prints recall by diameter and by contrast-to-noise ratio: one row per set."""
    columns = [("diameter_mm", DIAMETERS, "{:g} to {:g} mm"), ("cnr", CONTRASTS, "CNR {:g} to {:g}")]
    bins = [(key, low, high, text) for key, edges, text in columns for low, high in itertools.pairwise(edges)]
    print("\n| recall of clusters | " + " | ".join(text.format(low, high) for _, low, high, text in bins) + " |")
    print("|---|" + "---|" * len(bins))
    for name, rows in results.items():
        cells = []
        for key, low, high, _ in bins:
            detected = [r["detected"] for r in rows if low <= r[key] < high]
            cells.append(f"{format_score(mean(detected))} ({len(detected)})")
        print(f"| {name} | {' | '.join(cells)} |")


def print_volumes(volumes: dict[str, list[dict[str, float | None]]]) -> None:
    """Prints volumes over the true volume of fluid: one row per set."""
    print("\n| over the true volume of fluid | mask | fluid of its PVS | expected fluid |\n|---|---|---|---|")
    for name, rows in volumes.items():
        cells = [format_score(mean(r[key] for r in rows)) for key in ("mask", "fluid", "expected fluid")]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Segments, scores and prints."""
    parser = argument_parser(__doc__)
    parser.add_argument("--sequences", default=",".join(SEQUENCES), help="sequences passed to the network")
    parser.add_argument("--mirror", action="store_true", help="average over mirrored images")
    parser.add_argument("--by-protocol", action="store_true", help="one row per protocol of simulated cases")
    parser.add_argument("--labels", choices=("visibility", "coverage"), default="visibility")
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    sequences = tuple(args.sequences.split(","))
    scores: list[dict[str, object]] = []
    detections: dict[str, list[dict[str, float]]] = defaultdict(list)
    volumes: dict[str, list[Scores]] = defaultdict(list)
    by_row: dict[tuple[str, str, str], list[Scores]] = defaultdict(list)
    print(table_header("set", "network", "region"))
    for set_name, folder in parse_sets(args.sets).items():
        for stored in load_cases(folder, args.count, anatomy_weights=args.weights):
            case = with_sequences(stored, sequences)
            case = label_by_coverage(case) if args.labels == "coverage" else case
            record = folder / case.name / f"{Path(case.name).name}_simulation.json"
            name = json.loads(record.read_text())["protocol"] if args.by_protocol else set_name
            grid = case.prepared.grid
            configuration = choose_configuration(grid)
            probability, pvs_fraction = maps_of(case, weights, device, args.mirror)
            mask = mask_of(case.prepared, probability, weights.ensemble(configuration))
            if case.maps:
                true_mm3 = float(case.maps["FLUID"].sum()) * case.voxel_mm3
                anatomy = case.prepared.anatomy
                burden = burden_of(mask.astype(np.uint8), grid.affine, anatomy, pvs_fraction).row("all")
                volumes[name].append({
                    key: None if value is None or not true_mm3 else value / true_mm3
                    for key, value in (
                        ("mask", burden.volume_mm3), ("fluid", burden.fluid_mm3),
                        ("expected fluid", burden.expected_fluid_mm3),
                    )
                })  # fmt: skip
                detections[name] += clusters_of(case, mask)
            for region, values in score_regions(case, mask).items():
                by_row[name, configuration, region].append(values)
                columns = {heading: values[key] for heading, key in COLUMNS.items()}
                scores.append({"set": name, "case": case.name, "region": region, **columns})
    for row, values_of_row in by_row.items():
        print(table_row(row, values_of_row), flush=True)
    if detections:
        print_recall(detections)
        print_volumes(volumes)
    write_json(args.json, {"scores": scores, "clusters": detections, "volumes": volumes})


if __name__ == "__main__":
    main()

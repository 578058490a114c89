"""Scores of the shipped ensembles on simulated heads that training never saw, one row per protocol.

    python -m benchmarks.accuracy --anatomies DIR [--protocols 1mm,0.72x0.72x6] [--count 2] [--json FILE]

A result on simulated scans, not on real ones. DIR holds label maps with FreeSurfer ids; every case is
simulated from its own seed, prepared and predicted as ``process.py`` does, at the threshold in the manifest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pvs_model.evaluation.metrics import Scores, scores
from pvs_model.inference.ensemble import Weights
from pvs_model.inference.postprocess import to_mask
from pvs_model.inference.predict import choose_device
from pvs_model.nets.text import prompt
from pvs_model.pipeline import network_kind, predict, prepare
from pvs_model.synth.case import simulate
from pvs_model.training.cases import plain_scan
from pvs_model.training.data import label_maps, load_anatomy
from pvs_model.types import SEQUENCES, Volume

PROTOCOLS = {
    "1mm": (1.0, 1.0, 1.0),
    "0.9mm": (0.9, 0.9, 0.9),
    "0.5mm": (0.5, 0.5, 0.5),
    "1x1x2": (1.0, 1.0, 2.0),
    "0.72x0.72x6": (0.72, 0.72, 6.0),
    "0.36x0.36x7.5": (0.36, 0.36, 7.5),
}


def main() -> None:
    """Simulate, segment, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anatomies", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(__file__).resolve().parents[1] / "weights")
    parser.add_argument("--protocols", default=",".join(PROTOCOLS))
    parser.add_argument("--count", type=int, default=2, help="cases per protocol")
    parser.add_argument("--seed", type=int, default=9000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    weights, device, maps = Weights(args.weights), choose_device(args.device), label_maps(args.anatomies)
    rows: dict[str, list[dict[str, object]]] = {}
    print("| protocol | network | region | Dice | recall | precision | volume found / true |")
    print("|---|---|---|---|---|---|---|")
    for name in args.protocols.split(","):
        voxel = PROTOCOLS[name]
        results: dict[str, list[Scores]] = {"brain": [], "BG": [], "CSO": []}
        kind = "2d" if max(voxel) >= 2.5 else "3d"
        for number in range(args.count):
            seed = args.seed + number
            anatomy = load_anatomy(maps[number % len(maps)], args.cache)
            case = simulate(anatomy, seed, voxel, scan=plain_scan(seed, 3 if kind == "3d" else 2))
            volumes = {s: Volume(case.images[k], case.affine, Path(s)) for k, s in enumerate(SEQUENCES)}
            prepared = prepare(volumes)
            assert network_kind(prepared.grid) == kind
            ensemble = weights.ensemble(kind)
            text = weights.embed(prompt(SEQUENCES, max(voxel)))
            mask = to_mask(predict(prepared, ensemble, text, device), ensemble.threshold, prepared.inside) > 0
            truth = case.truth > 0
            for region, inside in (
                ("brain", None),
                ("BG", case.basal_ganglia > 0),
                ("CSO", case.centrum_semiovale > 0),
            ):
                found, real = (mask, truth) if inside is None else (mask & inside, truth & inside)
                result = scores(found, real)
                results[region].append(result)
                rows.setdefault(name, []).append({"seed": seed, "region": region, **asdict(result)})
        for region, values in results.items():
            cells = [_mean(v.dice for v in values), _mean(v.recall for v in values), _mean(v.precision for v in values)]
            volume = _mean(v.predicted_voxels / v.truth_voxels for v in values if v.truth_voxels)
            print(
                f"| {name} | {kind} | {region} | " + " | ".join(f"{c:.3f}" for c in [*cells, volume]) + " |", flush=True
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1).replace("NaN", "null") + "\n")


def _mean(values: object) -> float:
    kept = [v for v in values if not np.isnan(v)]  # type: ignore[attr-defined]
    return statistics.fmean(kept) if kept else float("nan")


if __name__ == "__main__":
    main()

"""Choose an ensemble's threshold and window on simulated heads held out of training.

    python -m benchmarks.calibrate --anatomies DIR --held-out 13,14,15 --kind 3d --windows 64,96

Prints the mean Dice of whole simulated cases per window and threshold. The numbers serve to choose, not to
be reported: reporting is ``benchmarks.accuracy`` on other heads.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.accuracy import PROTOCOLS
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.ensemble import Weights
from pvs_model.inference.predict import choose_device
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict, prepare
from pvs_model.synth.case import simulate
from pvs_model.training.cases import plain_scan
from pvs_model.training.data import label_maps, load_anatomy
from pvs_model.types import SEQUENCES, Volume

THRESHOLDS = np.round(np.arange(0.1, 0.85, 0.05), 2)


def main() -> None:
    """Simulate, predict once per window, score at every threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--anatomies", type=Path, required=True)
    parser.add_argument("--held-out", default="13,14,15", help="indices of the label maps, sorted by name")
    parser.add_argument("--kind", choices=("3d", "2d"), required=True)
    parser.add_argument("--windows", required=True)
    parser.add_argument("--protocols", help="default: 1mm,1x1x2 in 3d, 0.72x0.72x6 in 2d")
    parser.add_argument("--weights", type=Path, default=Path(__file__).resolve().parents[1] / "weights")
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path)
    args = parser.parse_args()
    weights, device, maps = Weights(args.weights), choose_device(args.device), label_maps(args.anatomies)
    ensemble = weights.ensemble(args.kind)
    chosen = [int(k) for k in args.held_out.split(",")]
    names = args.protocols or ("1mm,1x1x2" if args.kind == "3d" else "0.72x0.72x6")
    table: dict[int, list[list[float]]] = {int(w): [] for w in args.windows.split(",")}
    for number, index in enumerate(chosen):
        anatomy = load_anatomy(maps[index], args.cache)
        for name in names.split(","):
            seed, voxel = args.seed + number, PROTOCOLS[name]
            case = simulate(anatomy, seed, voxel, scan=plain_scan(seed, ensemble.dimensions))
            volumes = {s: Volume(case.images[k], case.affine, Path(s)) for k, s in enumerate(SEQUENCES)}
            prepared, truth = prepare(volumes), case.truth > 0
            text = weights.embed(prompt(SEQUENCES, max(voxel)))
            for window, rows in table.items():
                probability = predict(prepared, replace(ensemble, window=window), text, device)
                rows.append([dice((probability >= t) & prepared.inside, truth) for t in THRESHOLDS])
                best = int(np.argmax(rows[-1]))
                print(
                    f"{maps[index].name} {name} window {window}: best {rows[-1][best]:.3f} at {THRESHOLDS[best]}",
                    flush=True,
                )
    print("window | " + " | ".join(f"{t:.2f}" for t in THRESHOLDS))
    for window, rows in table.items():
        print(f"{window} | " + " | ".join(f"{d:.3f}" for d in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()

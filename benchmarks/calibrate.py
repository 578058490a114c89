"""Dice of an ensemble by threshold and window size on labelled cases held out of training.

    python -m benchmarks.calibrate SETS/NAME ... --windows 64,96

Prints the mean over cases of the mean Dice of brain, CSO and BG. The numbers serve to choose a threshold, not to be
reported: ``benchmarks.accuracy`` reports scores on other heads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.cases import argument_parser, load_cases, parse_sets
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration

THRESHOLDS = np.round(np.arange(0.1, 0.96, 0.05), 2)


def main() -> None:
    """Predicts once per window size and scores at every threshold."""
    parser = argument_parser(__doc__)
    parser.add_argument("--windows", required=True)
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    table: dict[int, list[list[float]]] = {int(w): [] for w in args.windows.split(",")}
    for name, folder in parse_sets(args.sets).items():
        for case in load_cases(folder, args.count):
            configuration = choose_configuration(case.prepared.grid)
            text = weights.embed(prompt(case.sequences, case.thickness_mm))
            for window, rows in table.items():
                ensemble = replace(weights.ensemble(configuration), roi_size=window)
                probability = predict_probability(case.prepared, ensemble, text, device, backend="auto")
                keep = case.prepared.foreground & ~case.ignore
                values = [
                    [dice((probability >= t) & keep & region, case.reference & region) for t in THRESHOLDS]
                    for region in case.regions.values()
                ]
                rows.append([float(np.nanmean(column)) for column in zip(*values, strict=True)])
                best = int(np.argmax(rows[-1]))
                print(
                    f"{name} {case.name} window {window}: best {rows[-1][best]:.3f} at {THRESHOLDS[best]}", flush=True
                )
    print("mean Dice of brain, CSO and BG")
    print("window | " + " | ".join(f"{t:.2f}" for t in THRESHOLDS))
    for window, rows in table.items():
        print(f"{window} | " + " | ".join(f"{d:.3f}" for d in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()

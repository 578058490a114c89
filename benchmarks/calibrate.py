"""Choose an ensemble's threshold and window on labelled cases held out of training.

    python -m benchmarks.calibrate SETS/NAME ... --windows 64,96

Prints the mean Dice per window and threshold, over the brain and as the mean of the two regions. The numbers serve to
choose, not to be reported: reporting is ``benchmarks.accuracy`` on other heads.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.cases import arguments, cases_of, sets_of
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration

THRESHOLDS = np.round(np.arange(0.1, 0.96, 0.05), 2)


def main() -> None:
    """Predict once per window, score at every threshold."""
    parser = arguments(__doc__)
    parser.add_argument("--windows", required=True)
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    table: dict[int, list[list[float]]] = {int(w): [] for w in args.windows.split(",")}
    for name, folder in sets_of(args.sets).items():
        for case in cases_of(folder, args.count):
            kind = choose_configuration(case.prepared.grid)
            text = weights.embed(prompt(list(case.volumes), max(case.prepared.grid.spacing_mm)))
            for window, rows in table.items():
                ensemble = replace(weights.ensemble(kind), roi_size=window)
                found = predict_probability(case.prepared, ensemble, text, device, backend="auto")
                keep = case.prepared.foreground & ~case.ignore
                regions = [np.ones_like(case.truth), case.regions["CSO"], case.regions["BG"]]
                values = [
                    [dice((found >= t) & keep & r, case.truth & r) for t in THRESHOLDS] for r in regions
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

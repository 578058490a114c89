"""Dice of an ensemble by threshold and window size on labelled cases held out of training.

    python -m benchmarks.calibrate [NAME=]SETS/NAME ... [--windows 64,96] [--reliability FILE.png]

Prints the mean over cases of the mean Dice of brain, CSO and BG. The numbers serve to choose a threshold, not to be
reported: ``benchmarks.accuracy`` reports scores on other heads. The anatomy network, if the weights hold one, decides
where windows lie, as in a run. ``--reliability`` draws, for the first window size, the fraction of labelled voxels
against the predicted probability, one curve per set. ``--pairs`` prints the scores of the masks of a run by both
thresholds: what a cluster must reach, and what each of its voxels must reach.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.cases import (
    Scores,
    argument_parser,
    load_cases,
    mask_of,
    mean,
    parse_sets,
    score_regions,
    table_header,
    table_row,
)
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.device import choose_device
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration

THRESHOLDS = np.round(np.arange(0.1, 0.96, 0.05), 2)
#: Pairs of thresholds of voxels and clusters.
PAIRS = [(low, high) for low in (0.2, 0.3, 0.4, 0.5) for high in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7) if low <= high]
#: Bins of the probability in the reliability diagram.
BINS = 10


def main() -> None:
    """Predicts once per window size and scores at every threshold."""
    parser = argument_parser(__doc__)
    parser.add_argument("--windows", default="0", help="sides, separated by commas (default: that of each ensemble)")
    parser.add_argument("--reliability", type=Path, metavar="FILE")
    parser.add_argument("--pairs", action="store_true", help="scores by both thresholds")
    args = parser.parse_args()
    weights, device = Weights(args.weights), choose_device(args.device)
    table: dict[int, list[list[float]]] = {int(w): [] for w in args.windows.split(",")}
    bins: dict[str, npt.NDArray[np.float64]] = {}
    pairs: dict[tuple[float, float], list[Scores]] = {}
    for name, folder in parse_sets(args.sets).items():
        for case in load_cases(folder, args.count, anatomy_weights=args.weights):
            configuration = choose_configuration(case.prepared.grid)
            text = weights.embed(prompt(case.sequences, case.thickness_mm))
            for window, rows in table.items():
                ensemble = weights.ensemble(configuration)
                ensemble = ensemble.with_settings(roi_size=window or ensemble.settings.roi_size)
                probability = predict_probability(case.prepared, ensemble, text, device, backend="auto")
                keep = case.prepared.foreground & ~case.ignore
                if window == next(iter(table)):
                    counted = count_bins(probability[keep], case.reference[keep] > 0)
                    bins[name] = bins.get(name, np.zeros((3, BINS))) + counted
                values = [
                    [dice((probability >= t) & keep & region, case.reference & region) for t in THRESHOLDS]
                    for region in case.regions.values()
                ]
                if args.pairs and window == next(iter(table)):
                    for low, high in PAIRS:
                        chosen = ensemble.with_settings(threshold=high, low_threshold=low)
                        scores = score_regions(case, mask_of(case.prepared, probability, chosen))
                        pairs.setdefault((low, high), []).append(summary(scores))
                rows.append([float(np.nanmean(column)) for column in zip(*values, strict=True)])
                best = int(np.argmax(rows[-1]))
                print(
                    f"{name} {case.name} window {window}: best {rows[-1][best]:.3f} at {THRESHOLDS[best]}", flush=True
                )
    print("mean Dice of brain, CSO and BG")
    print("window | " + " | ".join(f"{t:.2f}" for t in THRESHOLDS))
    for window, rows in table.items():
        print(f"{window} | " + " | ".join(f"{d:.3f}" for d in np.mean(rows, axis=0)))
    if pairs:
        print(f"\n{table_header('voxels', 'clusters')}")
        for (low, high), values_of_pair in pairs.items():
            print(table_row([f"{low:g}", f"{high:g}"], values_of_pair))
    if args.reliability is not None:
        draw_reliability(args.reliability, bins)


def summary(scores: dict[str, Scores]) -> Scores:
    """Scores of the brain, and the mean Dice of brain, CSO and BG."""
    return {**scores["brain"], "dice": mean(values["dice"] for values in scores.values())}


def count_bins(probability: npt.NDArray[np.float32], label: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Counts voxels by probability: (3, BINS) numbers of voxels, sums of probabilities, labelled voxels."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    weights = (None, probability, label)
    return np.stack([np.bincount(place, w, BINS) for w in weights]).astype(np.float64)


def draw_reliability(path: Path, bins: dict[str, npt.NDArray[np.float64]]) -> None:
    """Draws a reliability diagram with one curve per set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.8", label="calibrated")
    for number, (name, (count, total, labelled)) in enumerate(bins.items()):
        used = count >= 20
        style, marker = ("-", "--", ":", "-.")[number % 4], "osv^dx"[number % 6]
        axes.plot(total[used] / count[used], labelled[used] / count[used], style, marker=marker, label=name)
    axes.set(xlabel="predicted probability", ylabel="fraction of labelled voxels", xlim=(0, 1), ylim=(0, 1))
    axes.grid(color="0.9")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

"""Dice against CPU seconds by the overlap of windows, with the parenchyma or the whole foreground searched.

    python -m benchmarks.overlap SETS/NAME ... [--overlaps 0 0.125 0.25 0.5] [--count 1] [--threads 2] [--reference]

With ``--reference`` the first row is PyTorch in float32 at the largest overlap.
Dice is the mean of brain, CSO and BG at the ensemble's threshold, after the removal of PVS outside the parenchyma.
CPU seconds are those of this process for the networks, whatever else runs on the machine.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

from benchmarks.cases import argument_parser, load_cases, mask_of, parse_sets
from pvs_model.evaluation.metrics import dice
from pvs_model.inference.device import choose_device
from pvs_model.inference.sliding_window import backend_name
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.types import BoolArray

#: The precision of PyTorch, which ``--reference`` turns off.
AUTOCAST = "pvs_model.inference.sliding_window.autocast"


def main() -> None:
    """Predicts every case at every overlap and prints a Markdown table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.125, 0.25, 0.5])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reference", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weights, device = Weights(args.weights), choose_device(args.device)
    print("| case | backend | searched | overlap | windows | CPU s | s | Dice | Dice with the first row's mask |")
    print("| --- " * 9 + "|")
    for name, folder in parse_sets(args.sets).items():
        for case in load_cases(folder, args.count, anatomy_weights=args.weights):
            configuration = choose_configuration(case.prepared.grid)
            complete = weights.ensemble(configuration)
            text = weights.embed(prompt(case.sequences, case.thickness_mm))
            backend_name(complete, device, "auto")  # converts the networks
            alike = replace(case.prepared, anatomy=None)
            rows = [(p, o, "auto") for p in (alike, case.prepared) for o in sorted(args.overlaps, reverse=True)]
            if args.reference:
                rows = [(case.prepared, max(args.overlaps), "float32"), *rows[len(args.overlaps) :]]
            first: BoolArray | None = None
            for prepared, overlap, backend in rows:
                ensemble, bar = complete.with_settings(overlap=overlap), _Count()
                began, cpu = time.perf_counter(), time.process_time()
                with nullcontext() if backend == "auto" else mock.patch(AUTOCAST, lambda _: nullcontext()):
                    probability = predict_probability(
                        prepared, ensemble, text, device, bar=bar, backend="auto" if backend == "auto" else "torch"
                    )
                wall, cpu = time.perf_counter() - began, time.process_time() - cpu
                mask = mask_of(prepared, probability, ensemble) & ~case.ignore
                first = mask if first is None else first
                values = [dice(mask & region, case.reference & region) for region in case.regions.values()]
                searched = "foreground" if prepared is alike else "parenchyma"
                cells = (f"{name}/{case.name}", backend, searched, f"{overlap:g}", f"{bar.total}", f"{cpu:.1f}")
                cells = (*cells, f"{wall:.1f}", f"{np.nanmean(values):.4f}", f"{dice(mask, first):.4f}")
                print(f"| {' | '.join(cells)} |", flush=True)


class _Count:
    """Stands for a progress bar and keeps the number of windows."""

    total = 0

    def reset(self, total: int) -> None:
        """Sets the number of windows."""
        self.total = total

    def update(self, done: int) -> None:
        """Windows were computed."""


if __name__ == "__main__":
    main()

"""Whether every way of computing marks the same voxels as PyTorch in float32 does.

    python -m benchmarks.backends SETS/1mm SETS/shanghai_skyra ... [--count N] [--json FILE]

Per case, for PyTorch in the machine's fast format and for OpenVINO: Dice with the mask of PyTorch in float32, the
largest difference of a probability, and seconds. What runs by default shall reach a Dice of 0.995.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from benchmarks.cases import arguments, cases_of, sets_of, write_json
from pvs_model.inference import openvino, sliding_window
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.pipeline import predict_probability
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.types import SEQUENCES


def exact(device: torch.device) -> AbstractContextManager[Any]:
    """In place of ``autocast``: no other format than float32."""
    return nullcontext()


def main() -> None:
    """Print a table."""
    args = arguments(__doc__).parse_args()
    weights, device = Weights(args.weights), torch.device("cpu")
    ways = {"torch float32": "torch", "torch": "torch"} | ({"openvino": "openvino"} if openvino.is_installed() else {})
    usual = sliding_window.autocast
    results: dict[str, dict[str, dict[str, Any]]] = {}
    print("| case | voxels | " + " | ".join(f"{way}: Dice, max diff, s" for way in ways) + " |")
    print("|---" * (len(ways) + 2) + "|")
    for name, folder in sets_of(args.sets).items():
        for case in cases_of(folder, args.count):
            prepared = case.prepared
            ensemble = weights.ensemble(choose_configuration(prepared.grid))
            shown = [s for s, channel in zip(SEQUENCES, prepared.image, strict=True) if channel.any()]
            text = weights.embed(prompt(shown, max(prepared.grid.spacing_mm)))
            found: dict[str, Any] = {}
            row = results.setdefault(f"{name}/{case.name}", {})
            for way, backend in ways.items():
                sliding_window.autocast = exact if way == "torch float32" else usual  # type: ignore[assignment]
                began = time.perf_counter()
                found[way] = predict_probability(prepared, ensemble, text, device, backend=backend)
                seconds = time.perf_counter() - began
                mask, truth = (found[w] >= ensemble.threshold for w in (way, "torch float32"))
                both = float(2 * (mask & truth).sum() / max(1, mask.sum() + truth.sum()))
                differ = np.abs(found[way] - found["torch float32"]).max()
                row[way] = {"dice": both, "differ": float(differ), "seconds": seconds, "voxels": int(mask.sum())}
            cells = [f"{r['dice']:.4f}, {r['differ']:.3f}, {r['seconds']:.1f}" for r in row.values()]
            print(" | ".join([f"| {name}/{case.name} | {row['torch float32']['voxels']}", *cells]) + " |", flush=True)
    for way in ways:
        values = [row[way]["dice"] for row in results.values()]
        print(f"{way}: Dice {min(values):.4f} to 1 at best {max(values):.4f}, mean {np.mean(values):.4f}")
    write_json(args.json, results)


if __name__ == "__main__":
    main()

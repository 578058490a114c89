"""One window through each network and way of computing it, in turn: medians, and ratios to the floor.

    python -m benchmarks.windows [--repeats 7] [--kinds 3d 2d] [--json FILE]

Networks: the shipped one and, as the peer, MONAI's DynUNet with nnU-Net's widths (31 M parameters in 3D). Ways:
PyTorch in float32 and bfloat16, OpenVINO. Windows: those that a brain of 132 x 170 x 137 mm is cut into at 1 mm (3D),
at 0.5 mm (3D) and at 0.45 x 0.45 x 6 mm (2D); the last columns are the median times the windows and five networks.
The floor is the network's multiplications and additions over the machine's rate in products of matrices of 4096 x
4096 in the same number format, measured between the rounds. The peer's best way in PyTorch is what others are held
against.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import WEIGHTS
from pvs_model.inference import openvino
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.sliding_window import count_windows, roi_size_for
from pvs_model.inference.weights import Weights
from pvs_model.nets.model import SegmentationNet, build
from pvs_model.nets.precision import cpu_has_bfloat16
from pvs_model.nets.registry import ENTRIES
from pvs_model.nets.text import prompt
from pvs_model.types import SEQUENCES

#: nnU-Net's widths, full resolution first: 6 levels in 3D, 7 in 2D.
NNUNET = {"3d": (32, 64, 128, 256, 320, 320), "2d": (32, 64, 128, 256, 512, 512, 512)}
#: Voxels of the brain's box with a margin of 4.
BOXES = {
    "3d": {"1 mm": (140, 178, 145), "0.5 mm": (272, 348, 282)},
    "2d": {"0.45 x 0.45 x 6 mm": (301, 386, 31)},
}
FOLDS = 5


def ways(network: SegmentationNet) -> dict[str, Callable[[torch.Tensor, torch.Tensor], Any]]:
    """How a network can be run here: name -> function of windows and words."""

    def by_torch(precision: Any) -> Callable[[torch.Tensor, torch.Tensor], Any]:
        def run(windows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode(), precision():
                return network(windows, words)[:, :1].float().sigmoid()

        return run

    out = {"torch float32": by_torch(nullcontext)}
    if cpu_has_bfloat16():
        out["torch bfloat16"] = by_torch(lambda: torch.autocast("cpu", torch.bfloat16))
    graph = openvino.compiled((network,)) if openvino.is_installed() else None
    if graph is not None:
        out["openvino " + ("bfloat16" if cpu_has_bfloat16() else "float32")] = graph
    return out


def rate(dtype: torch.dtype, size: int = 4096) -> float:
    """GFLOP/s of one product of square matrices."""
    a, b = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    began = time.perf_counter()
    torch.mm(a, b)
    return 2 * size**3 / (time.perf_counter() - began) / 1e9


def gflop(network: SegmentationNet, windows: torch.Tensor, words: torch.Tensor) -> float:
    """Multiplications and additions of one window, counted by PyTorch; 1e9."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(windows, words)
    return counter.get_total_flops() / 1e9


def measure(ensemble: Ensemble, words: torch.Tensor, repeats: int) -> dict[str, dict[str, Any]]:
    """All networks and ways on a window of one kind of ensemble: row -> figures."""
    ours = ensemble.networks[0]
    torch.manual_seed(0)
    widths = NNUNET[ensemble.configuration]
    peer = build(replace(ENTRIES[f"dynunet-{ensemble.configuration}"].config, widths=widths)).eval()
    side = roi_size_for(ensemble, next(iter(BOXES[ensemble.configuration].values())))
    numbers = {name: count_windows(ensemble, box) for name, box in BOXES[ensemble.configuration].items()}
    # The peer halves its grid more often: its windows are rounded up to what it can take.
    multiple = 2 ** (len(widths) - 1)
    sides = {"ours": side, "DynUNet": tuple(-(-s // multiple) * multiple for s in side)}
    runs: dict[str, Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for title, network in (("ours", ours), ("DynUNet", peer)):
        windows = torch.randn(1, network.config.in_channels, *sides[title])
        work = gflop(network, windows, words)
        parameters = sum(p.numel() for p in network.parameters()) / 1e6
        for way, function in ways(network).items():
            row = f"{ensemble.configuration}: {title}, {way}"
            runs[row] = lambda f=function, w=windows: f(w, words)  # type: ignore[misc]
            facts[row] = {
                "window": list(sides[title]), "parameters_m": round(parameters, 2),
                "gflop": round(work, 1), "dtype": "bfloat16" if "bfloat16" in way else "float32",
            }  # fmt: skip
    seconds: dict[str, list[float]] = {row: [] for row in runs}
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for repeat in range(repeats + 1):  # the first round warms up
        for row, run in runs.items():
            began = time.perf_counter()
            run()
            if repeat:
                seconds[row].append(time.perf_counter() - began)
        for dtype, found in rates.items():
            found.append(rate(getattr(torch, dtype)))
    best_peer = "DynUNet, torch " + ("bfloat16" if cpu_has_bfloat16() else "float32")
    peers = next(taken for row, taken in seconds.items() if row.endswith(best_peer))
    for row, taken in seconds.items():
        middle = statistics.median(taken)
        best = statistics.median(rates[facts[row]["dtype"]])
        facts[row] |= {
            "seconds": round(middle, 3),
            "floor_s": round(facts[row]["gflop"] / best, 3),
            "to_floor": round(middle * best / facts[row]["gflop"], 2),
            "faster_than_peer": round(statistics.median(p / s for p, s in zip(peers, taken, strict=True)), 2),
            "gflop_per_s": round(facts[row]["gflop"] / middle),
        }
        for name, number in numbers.items():
            facts[row][f"{name}: {number} windows, {FOLDS} networks, s"] = round(middle * number * FOLDS, 1)
    return facts


def main() -> None:
    """Measure and print tables; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", choices=BOXES, default=list(BOXES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    weights = Weights(WEIGHTS)
    results: dict[str, Any] = {}
    keys = ("seconds", "gflop", "gflop_per_s", "floor_s", "to_floor", "faster_than_peer")
    for kind in args.kinds:
        words = weights.embed(prompt(SEQUENCES, 6.0 if kind == "2d" else 1.0))[None]
        found = measure(weights.ensemble(kind), words, args.repeats)
        results |= found
        columns = [*keys, *(key for key in next(iter(found.values())) if key.endswith("networks, s"))]
        print("| one window | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
        for row, facts in found.items():
            print("| " + " | ".join([row, *(f"{facts[key]:g}" for key in columns)]) + " |", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        content = {"machine": machine, "repeats": args.repeats, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

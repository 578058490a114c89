"""CPU seconds of five networks for one brain, beside one network of the previous size and five DynUNets.

    python -m benchmarks.ensembles [--shape 140 180 140] [--threads 2] [--rounds 3] [--precision f32]

Networks have random weights, which cost as much as trained ones. A window of every row is run in turn, and its median
over the rounds is multiplied by the number of windows that cover a brain of ``--shape`` voxels. CPU seconds are those
of this process, whatever else runs on the machine. ``--precision f32`` runs all rows in float32; with
``ONEDNN_MAX_CPU_ISA=AVX2`` in the environment, PyTorch's convolutions are those of a CPU without AVX-512.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

from pvs_model.config import NETWORK_3D, NetworkConfig
from pvs_model.inference.sliding_window import mean_probability
from pvs_model.inference.windows import windows
from pvs_model.nets.model import build
from pvs_model.nets.zoo import MODELS

BEFORE = NetworkConfig(widths=(16, 48, 96, 192), nested_from=0, fluid=False)
#: By name: configuration, networks, side and overlap of windows, backend.
ROWS = {
    "one network before (widths 16 to 192), OpenVINO": (BEFORE, 1, 96, 0.25, "openvino"),
    "five networks, OpenVINO": (NETWORK_3D, 5, 64, 0.125, "openvino"),
    "five networks, PyTorch": (NETWORK_3D, 5, 64, 0.125, "torch"),
    "one network (--fast), OpenVINO": (NETWORK_3D, 1, 64, 0.0, "openvino"),
    "five DynUNets, PyTorch": (MODELS["dynunet-3d"].config, 5, 96, 0.25, "torch"),
}


def measure(function: Callable[[], Tensor]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall


def window_of(config: NetworkConfig, members: int, side: int, backend: str) -> Callable[[], Tensor]:
    """A function that runs several networks on one window."""
    networks = tuple(build(config).eval() for _ in range(members))
    run = mean_probability(networks, torch.device("cpu"), backend)
    image, text = torch.randn(1, config.in_channels, side, side, side), torch.randn(1, 12, config.text_width)
    return lambda: run(image, text)


def main() -> None:
    """Measures all rows and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[140, 180, 140])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "f32"), default="auto")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    places = ("pvs_model.nets.precision", "pvs_model.inference.openvino")
    with torch.inference_mode():
        for place in places if args.precision == "f32" else ():
            mock.patch(f"{place}.cpu_has_bfloat16", lambda: False).start()
        calls = {name: window_of(config, n, side, backend) for name, (config, n, side, _, backend) in ROWS.items()}
        for call in calls.values():
            call()
        rounds = [{name: measure(call) for name, call in calls.items()} for _ in range(args.rounds)]
    print("| networks | windows | CPU s per window | CPU s | s | times the first row |")
    print("| --- " * 6 + "|")
    first = 0.0
    for name, (_, _, side, overlap, _) in ROWS.items():
        count = len(windows(args.shape, (side,) * 3, overlap))
        cpu, wall = (statistics.median(r[name][k] for r in rounds) for k in range(2))
        first = first or cpu * count
        print(f"| {name} | {count} | {cpu:.2f} | {cpu * count:.1f} | {wall * count:.1f} | {cpu * count / first:.2f} |")


if __name__ == "__main__":
    main()

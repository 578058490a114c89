"""CPU time of the parts of a training step: samples, forward, backward, optimiser, average.

    python -m benchmarks.training_step [--network 3d] [--patch 48] [--batch 2] [--steps 12] [--operators]
    python -m benchmarks.training_step --network grid-16-192          # a 3D candidate of the learning curves

Runs the same steps with and without ``nets.memory.keep_freed_memory`` and in both precisions, each in a separate
process with one thread. Prints medians, the share of system time and the ratio to the first row. ``--operators`` adds
the ten slowest operators of a step (torch's profiler). Scenes are of the phantom.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

PARTS = ("samples", "forward", "backward", "optimiser", "average")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the medians of the parts in this process."""
    import torch

    from benchmarks.learning_curves import candidate
    from pvs_model.nets.memory import keep_freed_memory
    from pvs_model.nets.precision import autocast
    from pvs_model.nets.zoo import MODELS
    from pvs_model.simulation.phantom import make_phantom
    from pvs_model.training.checkpoint import TrainingState
    from pvs_model.training.config import TrainingConfig
    from pvs_model.training.losses import DeepSupervision
    from pvs_model.training.segmentation import build_networks
    from pvs_model.training.simulated_patches import SimulatedPatches

    torch.set_num_threads(1)
    if args.keep_memory:
        keep_freed_memory()
    known, device = args.network in MODELS, torch.device("cpu")
    config = MODELS[args.network].config if known else candidate(args.network, "3d")
    network, average = build_networks(config, TrainingConfig(), device, None)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    state, loss_of = TrainingState(network, average, optimiser), DeepSupervision()
    stream = SimulatedPatches([make_phantom(0)], config, args.patch, seed=1, refresh_interval=6)
    text, mask = torch.randn(args.batch, 20, config.text_width), torch.ones(args.batch, 20, dtype=torch.bool)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    began_system = began = 0.0

    def step() -> None:
        clock = [time.process_time()]
        batch = stream.batch(args.batch)
        clock.append(time.process_time())
        with autocast(device, args.precision):
            logits = network(batch.images, text, mask)
        loss = loss_of(logits, batch.target)
        clock.append(time.process_time())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        clock.append(time.process_time())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        clock.append(time.process_time())
        state.advance(stream.sample_index, float(loss.detach()), 0.0, 0.997)
        clock.append(time.process_time())
        for part, (a, b) in zip(PARTS, itertools.pairwise(clock), strict=True):
            seconds[part].append(b - a)

    for number in range(args.steps + 3):
        if number == 3:  # after warm-up
            seconds.update({part: [] for part in PARTS})
            began, began_system = time.process_time(), os.times().system
        step()
    share = (os.times().system - began_system) / (time.process_time() - began)
    out: dict[str, Any] = {part: statistics.median(values) for part, values in seconds.items()} | {"kernel": share}
    out["samples"] = statistics.mean(seconds["samples"])  # one in six renders a scene
    if args.operators:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        out["operators"] = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=10)
    return out


def main() -> None:
    """Measures each setting in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="3d")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--keep-memory", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.precision:
        print(json.dumps(measure(args)))
        return
    print(f"| {args.network}, {args.batch} x {args.patch} | {' | '.join(PARTS)} | step | kernel's share | ratio |")
    print("|---|" + "---|" * (len(PARTS) + 3))
    first = None
    for precision, keep in itertools.product(("float32", "bfloat16"), (False, True)):
        command = [sys.executable, "-m", "benchmarks.training_step", *sys.argv[1:], "--precision", precision]
        command += ["--keep-memory"] if keep else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        total = sum(row[part] for part in PARTS)
        first = first or total
        cells = " | ".join(f"{row[part]:.3f}" for part in PARTS)
        name = precision + (", memory kept" if keep else "")
        print(f"| {name} | {cells} | {total:.3f} | {row['kernel']:.0%} | {total / first:.2f} |", flush=True)
    if args.operators:
        print(row["operators"])


if __name__ == "__main__":
    main()

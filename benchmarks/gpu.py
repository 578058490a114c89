"""What a GPU makes of the ensembles: batches, memory formats, graphs; whole cases; 16 GiB; where the time goes.

    python -m benchmarks.gpu [--members 5] [--repeats 5] [--json FILE] [--trace FILE]
    python -m benchmarks.gpu --device cpu --small          a dry run on any machine

One process, so that the machine's state is the same for all: (1) windows of a simulated phantom through the ensemble,
per way of computing and batch: seconds a window, peak memory, and the Dice of the mask against PyTorch in float32; what
does not reach 0.995 is no candidate. (2) Whole cases after loading, with their stages. (3) The same within 16 GiB.
(4) The operators that take the time, by PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.run import PHANTOMS, simulated, weights_with
from pvs_model.config import InferenceConfig
from pvs_model.inference.device import autocast
from pvs_model.inference.weights import Weights
from pvs_model.layouts import choose
from pvs_model.nets.text import prompt
from pvs_model.pipeline import Segmenter
from pvs_model.preprocessing.network_grid import choose_configuration
from pvs_model.preprocessing.prepare import prepare, read
from pvs_model.types import SEQUENCES
from pvs_model.volume import geometry

Call = Callable[[Tensor, Tensor], Tensor]
GIB = 2**30


def sync(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak(device: torch.device, into: dict[str, Any]) -> Iterator[None]:
    """Peak memory of the device, GiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield
    into["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / GIB, 2) if device.type == "cuda" else None


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, after two that warm up."""
    taken = []
    for repeat in range(repeats + 2):
        sync(device)
        began = time.perf_counter()
        run()
        sync(device)
        if repeat > 1:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def ways(networks: list[nn.Module], device: torch.device, dimensions: int) -> Iterator[tuple[str, Call]]:
    """Ways of computing the mean probability; each may change the networks' memory format, the last ones for good."""

    def mean(windows: Tensor, words: Tensor) -> Tensor:
        words = words.expand(len(windows), -1, -1)
        out = torch.zeros(len(windows), 1, *windows.shape[2:], device=device)
        for network in networks:
            with autocast(device):
                logits = network(windows, words)
            out += logits[:, :1].float().sigmoid()
        return out / len(networks)

    def exact(windows: Tensor, words: Tensor) -> Tensor:
        words = words.expand(len(windows), -1, -1)
        logits = [network(windows, words)[:, :1].sigmoid() for network in networks]
        return torch.stack(logits).mean(0)

    yield "float32", exact
    yield "autocast", mean
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        yield "autocast, cuDNN's search", mean
        yield "autocast, CUDA graph", graphed(mean)
        torch.backends.cudnn.benchmark = False
    last = torch.channels_last_3d if dimensions == 3 else torch.channels_last
    for network in networks:
        network.to(memory_format=last)
    yield "autocast, channels last", lambda w, t: mean(w.contiguous(memory_format=last), t)
    if device.type == "cuda":
        yield "autocast, channels last, CUDA graph", graphed(lambda w, t: mean(w.contiguous(memory_format=last), t))
        compiled = [torch.compile(network) for network in networks]
        networks[:] = compiled
        yield "autocast, channels last, torch.compile", lambda w, t: mean(w.contiguous(memory_format=last), t)


def graphed(call: Call) -> Call:
    """The same through a CUDA graph, captured anew for every shape."""
    kept: dict[tuple[int, ...], tuple[Any, Tensor, Tensor, Tensor]] = {}

    def run(windows: Tensor, words: Tensor) -> Tensor:
        shape = tuple(windows.shape)
        if shape not in kept:
            inputs, text = windows.clone(), words.clone()
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call(inputs, text)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = call(inputs, text)
            kept[shape] = graph, inputs, text, out
        graph, inputs, text, out = kept[shape]
        inputs.copy_(windows)
        text.copy_(words)
        graph.replay()
        return out

    return run


def windows_of(folder: Path, weights: Weights, side: int, number: int) -> tuple[str, Tensor, Tensor]:
    """Windows from the middle of a case's brain, its kind, and the words."""
    (case,) = choose(folder).find_cases(folder)
    prepared = prepare(read(case))
    kind = choose_configuration(prepared.grid)
    crop = geometry.crop_to(prepared.foreground, margin=0)
    image = torch.from_numpy(np.stack([crop.apply(channel) for channel in prepared.image]))
    words = weights.embed(prompt(SEQUENCES, max(prepared.grid.spacing_mm)))[None]
    x, y, z = ((n - side) // 2 for n in image.shape[1:])
    if kind == "2d":
        planes = image[:, max(0, x) :, max(0, y) :][:, :side, :side]
        middle = planes.shape[-1] // 2
        stack = torch.cat([planes[..., middle - 1 + k] for k in range(3)])
        stack = stack.view(3, 3, *stack.shape[1:]).transpose(0, 1).flatten(0, 1)
        return kind, stack[None].expand(number, -1, -1, -1).contiguous(), words
    cube = image[:, max(0, x) :, max(0, y) :, max(0, z) :][:, :side, :side, :side]
    return kind, torch.stack([cube.roll(8 * k, 1) for k in range(number)]).contiguous(), words


def windows(folder: Path, weights: Weights, args: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Part (1)."""
    side = 32 if args.small else 96
    kind, images, words = windows_of(folder, weights, side, max(args.batches))
    ensemble = weights.ensemble(kind)
    networks: list[nn.Module] = [network.to(device).eval() for network in ensemble.networks]
    images, words = images.to(device), words.to(device)
    rows = []
    truth = None
    for name, call in ways(networks, device, ensemble.dimensions):
        for batch in args.batches:
            row: dict[str, Any] = {"kind": kind, "way": name, "batch": batch}
            try:
                with torch.inference_mode(), peak(device, row):
                    taken = seconds_of(partial(call, images[:batch], words), device, args.repeats)
                    row["seconds_a_window"] = round(taken / batch, 4)
                    found = call(images[:1], words) >= ensemble.threshold
            except (RuntimeError, torch.OutOfMemoryError) as error:
                row["failed"] = str(error).splitlines()[0][:120]
            else:
                truth = found.clone() if truth is None else truth
                both = 2 * (found & truth).sum() / (found.sum() + truth.sum()).clamp_min(1)
                row["dice_to_float32"] = round(float(both), 4)
            rows.append(row)
            print(row, flush=True)
    for network in ensemble.networks:
        network.to("cpu", memory_format=torch.contiguous_format)
    return rows


def cases(
    folders: dict[str, Path], weights: Path, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Parts (2) and (3): medians of whole cases after a first one."""
    rows = []
    for limit in (None, 16):
        if limit is not None:
            if device.type != "cuda":
                break
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit * GIB / total), device)
        for name, folder in folders.items():
            segmenter = Segmenter(InferenceConfig(weights, device.type))
            (case,) = choose(folder).find_cases(folder)
            row: dict[str, Any] = {"case": name, "limit_gib": limit}
            runs = []
            with peak(device, row):
                for _ in range(1 + min(3, args.repeats)):
                    began = time.perf_counter()
                    facts = segmenter.segment(case).metadata
                    runs.append({**facts["seconds"], "total": time.perf_counter() - began})
            for stage in runs[0]:
                row[stage] = round(statistics.median(run[stage] for run in runs[1:]), 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    """Measure, print, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="one small window, one case: whether it runs at all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--trace", type=Path, help="a trace of one case for chrome://tracing")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: expected a CUDA device, found none (--device cpu --small is a dry run)")
    device = torch.device(args.device)
    if args.small:
        args.members, args.batches, args.repeats = 1, [1], 1
    with tempfile.TemporaryDirectory() as scratch:
        folder = weights_with(Path(scratch), args.members)
        names = ["0.45 x 0.45 x 6 mm"] if args.small else list(PHANTOMS)
        folders = simulated(Path(scratch), names)
        weights = Weights(folder)
        rows = [row for source in folders.values() for row in windows(source, weights, args, device)]
        whole = cases(folders, folder, args, device)
        segmenter = Segmenter(InferenceConfig(folder, args.device))
        source = next(iter(folders.values()))
        (case,) = choose(source).find_cases(source)
        with torch.profiler.profile() as profile:
            segmenter.segment(case)
    key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=key, row_limit=15))
    if args.trace:
        profile.export_chrome_trace(str(args.trace))
    if args.json:
        machine = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        args.json.write_text(json.dumps({"machine": machine, "windows": rows, "cases": whole}, indent=1) + "\n")


if __name__ == "__main__":
    main()

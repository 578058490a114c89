"""What a network costs: parameters, floating-point operations, seconds and memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pvs_model.config import NetworkConfig
from pvs_model.inference.device import autocast
from pvs_model.nets.model import SegmentationNet, build
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.precision import precision

#: Steps and windows that are timed after as many that are not.
TIMED = 3
#: Side of the window that operations, seconds and memory are told for.
WINDOW = {3: 96, 2: 256}
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: number.
        gflop: of one window (96^3 or 256^2), a multiplication and an addition counting as two.
        step_seconds: median of a training step on patches of the budget, without drawing them.
        window_seconds: median of a window.
        window_mib: memory that a window takes beyond the weights; None where it cannot be told.
    """

    parameters: int
    gflop: float
    step_seconds: float
    window_seconds: float
    window_mib: float | None


def measure(config: NetworkConfig, patch: int, batch: int, device: torch.device) -> Cost:
    """Build a network and see what it costs on a device, on noise."""
    torch.manual_seed(0)
    network = build(config).to(device)
    text = torch.randn(batch, 24, config.text_width, device=device)
    step_seconds = _median(_step(network, config, text, patch, batch, device), device)
    network.eval()
    image = torch.randn(1, config.in_channels, *[WINDOW[config.dimensions]] * config.dimensions, device=device)

    def window() -> None:
        with torch.inference_mode(), autocast(device):
            network(image, text[:1])

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(image, text[:1])
    seconds = _median(window, device)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=counter.get_total_flops() / 1e9,
        step_seconds=step_seconds,
        window_seconds=seconds,
        window_mib=peak_mib(window, device),
    )


def _step(
    network: SegmentationNet, config: NetworkConfig, text: torch.Tensor, patch: int, batch: int, device: torch.device
) -> Callable[[], None]:
    """A training step as a function."""
    optimiser, loss_of = torch.optim.AdamW(network.parameters(), lr=1e-4), DeepSupervision()
    sides = [patch] * config.dimensions
    image = torch.randn(batch, config.in_channels, *sides, device=device)
    label = (torch.rand(batch, 1, *sides, device=device) > 0.98).float()

    def step() -> None:
        with precision(device):
            logits = network(image, text)
        loss = loss_of(logits, label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()

    return step


def _median(call: Callable[[], None], device: torch.device) -> float:
    """Median seconds of a call, after warming up."""
    seconds = []
    for _ in range(2 * TIMED):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[TIMED:])


def peak_mib(call: Callable[[], None], device: torch.device) -> float | None:
    """MiB that a call takes at its height beyond what was taken before; None on systems that do not tell."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that what is taken counts
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the height counts from now on
        before = _status("VmRSS")
        call()
        return max(0.0, _status("VmHWM") - before) / 1024
    except (OSError, ValueError, AttributeError):
        return None


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status: expected {name}, found no such line")

"""Cost of a network: parameters, floating-point operations, seconds and memory."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from pvs_model.config import NetworkConfig
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build
from pvs_model.nets.precision import autocast
from pvs_model.training.losses import DeepSupervision

#: Timed steps and windows, after as many for warm-up.
TIMED = 3
#: Window size by dimensions for operations, seconds and memory.
WINDOW = {3: 96, 2: 256}
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Cost of a network.

    Attributes:
        parameters: Number of parameters.
        gflop: Operations of one window (96^3 or 256^2), a multiplication and an addition counting as two.
        step_seconds: Median time of a training step on patches of the budget, without drawing them.
        window_seconds: Median time of a window.
        window_mib: Memory of a window beyond the weights; None where it cannot be measured.
    """

    parameters: int
    gflop: float
    step_seconds: float
    window_seconds: float
    window_mib: float | None


def measure(config: NetworkConfig, patch: int, batch: int, device: torch.device) -> Cost:
    """Builds a network and measures its cost on a device, on noise."""
    seconds_of_step = step_seconds(config, patch, batch, device)
    network = build(config).to(device).eval()
    text = torch.randn(1, 24, config.text_width, device=device)
    image = torch.randn(1, config.in_channels, *[WINDOW[config.dimensions]] * config.dimensions, device=device)

    def window() -> None:
        with torch.inference_mode(), autocast(device):
            network(image, text)

    seconds = _median_seconds(window, device)
    return Cost(
        parameters=sum(p.numel() for p in network.parameters()),
        gflop=gigaflop(config),
        step_seconds=seconds_of_step,
        window_seconds=seconds,
        window_mib=peak_mib(window, device),
    )


def step_seconds(config: NetworkConfig, patch: int, batch: int, device: torch.device) -> float:
    """Measures the median time of a training step on noise, without drawing samples."""
    torch.manual_seed(0)
    network = build(config).to(device)
    text = torch.randn(batch, 24, config.text_width, device=device)
    return _median_seconds(_training_step(network, config, text, patch, batch, device), device)


def gigaflop(config: NetworkConfig) -> float:
    """Counts the operations of one window in 1e9; nothing is computed."""
    with FakeTensorMode(), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        image = torch.zeros(1, config.in_channels, *[WINDOW[config.dimensions]] * config.dimensions)
        build(config).eval()(image, torch.zeros(1, 24, config.text_width))
    return counter.get_total_flops() / 1e9


def _training_step(
    network: SegmentationNet, config: NetworkConfig, text: torch.Tensor, patch: int, batch: int, device: torch.device
) -> Callable[[], None]:
    """Returns a training step as a function."""
    optimiser, loss_of = torch.optim.AdamW(network.parameters(), lr=1e-4), DeepSupervision()
    sides = [patch] * config.dimensions
    image = torch.randn(batch, config.in_channels, *sides, device=device)
    label = (torch.rand(batch, 1, *sides, device=device) > 0.98).float()

    def step() -> None:
        with autocast(device):
            logits = network(image, text)
        loss = loss_of(logits, label)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()

    return step


def _median_seconds(call: Callable[[], None], device: torch.device) -> float:
    """Measures the median time of a call after warm-up."""
    seconds = []
    for _ in range(2 * TIMED):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[TIMED:])


def peak_mib(call: Callable[[], None], device: torch.device) -> float | None:
    """Measures the peak memory of a call in MiB beyond that in use before; None on systems without this measure."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / MIB
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory, so that new allocations count
        Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak
        before = _status_kib("VmRSS")
        call()
        return max(0.0, _status_kib("VmHWM") - before) / 1024
    except (OSError, ValueError, AttributeError):
        return None


def _status_kib(name: str) -> int:
    """Reads a line of /proc/self/status, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status: expected a line {name}, got none")

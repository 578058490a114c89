"""Choice of device, and what to do when a GPU fails or its memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from pvs_model.errors import DeviceError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Parts of messages by which errors of a GPU are recognised.
_GPU_ERRORS = ("cuda error", "cudnn error", "cublas error", "cublas_status", "cudnn_status", "no cuda-capable device")
_MEMORY_ERRORS = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


def choose_device(name: str) -> torch.device:
    """Chooses a device: "auto" takes a CUDA device if one is usable, else the CPU.

    Raises:
        DeviceError: "cuda" was requested and no CUDA device is usable.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if name == "cuda":
        raise DeviceError("--device cuda: expected a CUDA device, got none that this PyTorch build and driver can use")
    return torch.device("cpu")


def device_lost(error: BaseException) -> bool:
    """Whether an error comes from a failing GPU (reset, removed, memory fault) and not from lack of memory."""
    if out_of_memory(error):
        return False
    accelerator_error = getattr(torch, "AcceleratorError", None)
    if accelerator_error is not None and isinstance(error, accelerator_error):
        return True
    return any(part in str(error).lower() for part in _GPU_ERRORS)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a GPU or the CPU is out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(part in str(error).lower() for part in _MEMORY_ERRORS)


@dataclass(frozen=True)
class MemoryPlan:
    """How much memory one way of running takes.

    Attributes:
        batch_size: Windows per batch.
        device: Where the network runs.
        output_device: Where probabilities are accumulated.
    """

    batch_size: int
    device: torch.device
    output_device: torch.device

    def __str__(self) -> str:
        return f"batches of {self.batch_size} on {self.device.type}, accumulated on {self.output_device.type}"


def memory_plans(device: torch.device, batch_size: int) -> Iterator[MemoryPlan]:
    """Plans from fastest to safest: smaller batches, then accumulation on the CPU, then everything on the CPU."""
    cpu = torch.device("cpu")
    if device.type != "cpu":
        size = batch_size
        while size >= 1:
            yield MemoryPlan(size, device, device)
            size //= 2
        yield MemoryPlan(1, device, cpu)
    yield MemoryPlan(1, cpu, cpu)


def with_memory_fallback(run: Callable[[MemoryPlan], T], device: torch.device, batch_size: int) -> T:
    """The result of ``run`` with the fastest plan for which memory suffices.

    Raises:
        DeviceError: Memory runs out even for one window on the CPU.
    """
    plans = list(memory_plans(device, batch_size))
    for plan, safer in zip(plans, [*plans[1:], None], strict=True):
        try:
            return run(plan)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if plan.device.type != "cpu":
                torch.cuda.empty_cache()
            if safer is not None:
                log.warning("out of memory with %s; trying %s", plan, safer)
    raise DeviceError("expected enough memory for one window on the CPU, but it ran out")

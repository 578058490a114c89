"""Trains one network in several processes, one per GPU, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pvs_model.errors import DeviceError

#: Time limit of collective operations: the first process validates alone while the others wait in their next step.
TIMEOUT = timedelta(hours=1)


@dataclass(frozen=True)
class DistributedContext:
    """Rank of this process among ``count`` processes. The first one alone validates and writes."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def global_index(self, index: int) -> int:
        """Maps an index of this process's samples to a global one; no two processes share one."""
        return index * self.count + self.rank


SINGLE_PROCESS = DistributedContext()


@contextmanager
def init_distributed(device: torch.device) -> Iterator[tuple[DistributedContext, torch.device]]:
    """Joins the process group that torchrun started, gives this process's device, and leaves the group at the end.

    Without torchrun (RANK, WORLD_SIZE and LOCAL_RANK in the environment) there is a single process. Gradients travel by
    NCCL between GPUs and by Gloo between CPUs.

    Raises:
        DeviceError: There are more processes than GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield SINGLE_PROCESS, device
        return
    if device.type == "cuda":
        index, available = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= available:
            raise DeviceError(f"--nproc-per-node: expected at most one process per GPU ({available}), got more")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def wrap_ddp(network: nn.Module, device: torch.device, context: DistributedContext) -> nn.Module:
    """Wraps the network so that the backward pass averages gradients over processes; a single process gets it back."""
    if context.count == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def any_rank(flag: bool, device: torch.device, context: DistributedContext) -> bool:
    """Whether a flag is set in any process. Every process must call it."""
    if context.count == 1:
        return flag
    shared = torch.tensor(float(flag), device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


def barrier(context: DistributedContext) -> None:
    """Waits for every process."""
    if context.count > 1:
        dist.barrier()

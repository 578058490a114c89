"""Several processes that train one network together, one per GPU, as torchrun starts them."""

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

#: The first process validates alone while the others wait in their next step.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Ranks:
    """Which of ``count`` processes this one is. The first one alone validates and writes."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def number(self, own: int) -> int:
        """The number among all processes' samples of this process's ``own``-th: none is drawn by two."""
        return own * self.count + self.rank


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """The processes of this run, and the device of this one; leaves them at the end.

    torchrun tells each process its place in the environment (RANK, WORLD_SIZE, LOCAL_RANK); a process
    that torchrun did not start is alone. Gradients travel by NCCL between GPUs, by Gloo between CPUs.

    Raises:
        DeviceError: when more processes are started than there are GPUs.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        yield ALONE, device
        return
    if device.type == "cuda":
        index, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if index >= there:
            raise DeviceError(f"--nproc-per-node: expected at most one process per GPU ({there}), found more")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()


def averaging(network: nn.Module, device: torch.device, ranks: Ranks) -> nn.Module:
    """The network, its gradients averaged over all processes in the backward pass; itself when alone."""
    if ranks.count == 1:
        return network
    return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)


def any_rank(flag: bool, device: torch.device, ranks: Ranks) -> bool:
    """Whether a flag is raised in any process: all are told the same, and all must ask."""
    if ranks.count == 1:
        return flag
    told = torch.tensor(float(flag), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def wait_for_all(ranks: Ranks) -> None:
    """Go on when every process has come here."""
    if ranks.count > 1:
        dist.barrier()

"""Draws training samples in worker processes, with torch's ``DataLoader``."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pvs_model.config import NetworkConfig
from pvs_model.datasets.label_maps import load_cached, save_cached
from pvs_model.errors import PVSError
from pvs_model.training.batch import Batch, join
from pvs_model.training.config import TrainingConfig
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext
from pvs_model.training.sampling import FoldData, make_sampler

#: Samples that each process draws ahead: rendering a scene takes as long as many samples of it.
PREFETCH = 12
#: Fewest scenes that a process keeps.
MIN_SCENES = 8

#: Images, target and prompts of a sample. Not tensors: those would go through /dev/shm, which is small in containers.
Sample = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], list[str]]


class SampleWorkers:
    """Sampler (``loop.Sampler``) whose samples are drawn by worker processes.

    Each process has scenes of its own, so samples depend on the number of processes. For one number they are the same,
    in the same order, in every run, and continue from anywhere. Use it as a context manager.
    """

    def __init__(
        self,
        data: FoldData,
        config: NetworkConfig,
        training: TrainingConfig,
        device: torch.device,
        context: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """As ``sampling.make_sampler``; ``training.workers`` is at least 1."""
        self.config, self.training, self.device, self.context = config, training, device, context
        self.folder = tempfile.TemporaryDirectory(prefix="pvs_samples_")
        save_data(data, Path(self.folder.name))
        self.samples: Iterator[Sample] | None = None
        #: Index of the next sample; set it before the first batch.
        self.sample_index = 0

    def __enter__(self) -> SampleWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        self.samples = None  # ends the processes
        self.folder.cleanup()

    def batch(self, size: int) -> Batch:
        """Draws the next ``size`` samples.

        Raises:
            PVSError: A process ended, mostly because the system killed it.
        """
        if self.samples is None:
            where = self.device if self.training.simulate_on == "device" else torch.device("cpu")
            dataset = _Samples(
                Path(self.folder.name), self.config, self.training, where, self.context, first=self.sample_index
            )
            self.samples = iter(
                DataLoader(
                    dataset, batch_size=None, num_workers=self.training.workers, prefetch_factor=PREFETCH,
                    collate_fn=_unchanged,
                    multiprocessing_context="spawn",  # a fork of a process with threads, or CUDA, may hang
                )
            )  # fmt: skip
        parts = []
        for _ in range(size):
            try:
                images, target, prompts = next(self.samples)
            except RuntimeError as error:
                message = "--workers: a process that draws samples ended (too little memory?); try fewer"
                raise PVSError(message) from error
            parts.append(Batch(torch.from_numpy(images), torch.from_numpy(target), prompts))
        self.sample_index += size
        return join(parts, self.device)


def save_data(data: FoldData, folder: Path) -> None:
    """Writes training data for ``load_data``; held-out data is left out."""
    for number, anatomy in enumerate(data.anatomies):
        save_cached(folder / f"{number:04d}.safetensors", anatomy.to("cpu"))
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps((data.cases, data.scans), protocol=5, buffer_callback=buffers.append)
    sizes = []
    with (folder / "arrays.bin").open("wb") as file:
        for buffer in buffers:
            sizes.append(file.write(buffer.raw()))
    (folder / "data.pickle").write_bytes(pickle.dumps((content, sizes)))


def load_data(folder: Path) -> FoldData:
    """Reads what ``save_data`` wrote; arrays are mapped into memory, so that processes share them."""
    anatomies = [load_cached(path) for path in sorted(folder.glob("*.safetensors"))]
    content, sizes = pickle.loads((folder / "data.pickle").read_bytes())
    arrays: list[Any] = []
    if sizes:
        mapped = np.memmap(folder / "arrays.bin", np.uint8, "c")
        ends = np.cumsum(sizes)
        arrays = [mapped[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    cases, scans = pickle.loads(content, buffers=arrays)
    return FoldData(anatomies=anatomies, cases=cases, scans=scans)


def _unchanged(sample: Any) -> Any:
    """Keeps arrays, which the ``DataLoader`` would turn into tensors."""
    return sample


class _Samples(IterableDataset[Sample]):
    """Samples of one worker process, which knows its rank from ``get_worker_info``."""

    def __init__(
        self,
        folder: Path,
        config: NetworkConfig,
        training: TrainingConfig,
        device: torch.device,
        context: DistributedContext,
        first: int,
    ) -> None:
        self.folder, self.config, self.training, self.device = folder, config, training, device
        self.context, self.first = context, first

    def __iter__(self) -> Iterator[Sample]:
        info: Any = get_worker_info()
        count = info.num_workers
        rank = (info.id + self.first) % count  # the process that is asked first draws the sample ``first``
        context = DistributedContext(self.context.rank * count + rank, self.context.count * count)
        training = replace(self.training, scene_buffer=max(MIN_SCENES, self.training.scene_buffer // count))
        sampler = make_sampler(load_data(self.folder), self.config, training, self.device, context)
        sampler.sample_index = (self.first - rank + count - 1) // count
        while True:
            batch = sampler.batch(1)
            yield batch.images.cpu().numpy(), batch.target.cpu().numpy(), batch.prompts

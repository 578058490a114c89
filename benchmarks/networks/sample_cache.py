"""Trains several networks on the same simulated samples, which are rendered and drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from pvs_model.config import NetworkConfig
from pvs_model.simulation.render import Scene
from pvs_model.training import loop
from pvs_model.training.batch import Batch, join
from pvs_model.training.config import TrainingConfig
from pvs_model.training.distributed import DistributedContext
from pvs_model.training.sampling import FoldData, MixedSampler, make_sampler, validation_batches
from pvs_model.training.segmentation import SegmentationTask
from pvs_model.training.simulated_patches import SimulatedPatches


@dataclass
class SampleCache:
    """Keeps scenes and samples for later trainings of the same process that draw the same ones.

    Attributes:
        max_samples: Maximum number of samples of each kind, and of scenes.
        limit_mib: Maximum size of scenes and samples together; those used longest ago are dropped first.
        validation: Validation samples, all of them.
    """

    max_samples: int = 1000
    limit_mib: float = 3072.0
    scenes: dict[object, dict[int, Scene]] = field(default_factory=dict)
    samples: dict[object, dict[int, Batch]] = field(default_factory=dict)
    validation: dict[object, list[Batch]] = field(default_factory=dict)

    def sampler(
        self, data: FoldData, config: NetworkConfig, training: TrainingConfig, device: torch.device
    ) -> CachedSampler:
        """A sampler of simulated patches, rendered on the CPU, that reads from and adds to this cache."""
        sampler = make_sampler(data, config, training, torch.device("cpu"))
        stream = sampler.stream
        if stream is None or data.cases or data.scans or training.simulate_on != "cpu":
            raise ValueError("expected patches that are simulated on the CPU, and no others")
        names = tuple(anatomy.name for anatomy in stream.anatomies)
        key = (config.dimensions, config.view, stream.patch, stream.seed, stream.clear_scenes, names)
        scenes = self.scenes[key] = self.scenes.pop(key, {})  # the last of the dictionary
        self._attach(stream, scenes)
        sample_key = (*key, config.neighbour_slices, config.regions, stream.region_share, stream.region_warmup,
                      stream.labels, stream.coverage)  # fmt: skip
        samples = self.samples[sample_key] = self.samples.pop(sample_key, {})
        while self.size_mib() > self.limit_mib and len(self.scenes) + len(self.samples) > 2:
            older = self.scenes if len(self.scenes) > 1 else self.samples  # scenes are the larger
            older.pop(next(iter(older)))
        return CachedSampler(sampler, samples, self.max_samples, device)

    def _attach(self, stream: SimulatedPatches, scenes: dict[int, Scene]) -> None:
        """Makes a stream take its scenes from those kept, and add to them."""

        def source(number: int) -> Scene:
            if number not in scenes:
                scene = stream.render(number)
                if len(scenes) >= self.max_samples:
                    return scene
                scenes[number] = scene
            return scenes[number]

        stream.source = source

    def validation_batches(self, data: FoldData, config: NetworkConfig, training: TrainingConfig) -> list[Batch]:
        """As ``sampling.validation_batches``; the same list for networks that take the same samples."""
        key = (
            config.dimensions, config.view, config.neighbour_slices, config.regions, training.patch, training.seed,
            training.validation_patches, training.labels, training.coverage,
        )  # fmt: skip
        if key not in self.validation:
            self.validation[key] = validation_batches(data, config, training)
        return self.validation[key]

    def size_mib(self) -> float:
        """Size of scenes and samples."""
        scenes = [getattr(s, f.name) for kept in self.scenes.values() for s in kept.values() for f in fields(s)]
        samples = [t for kept in self.samples.values() for b in kept.values() for t in (b.images, b.target)]
        return sum(t.nbytes for t in (*scenes, *samples) if isinstance(t, torch.Tensor)) / 2**20


class CachedSampler:
    """Draws the samples of another sampler, and keeps the first ones; see ``loop.Sampler``."""

    def __init__(
        self, sampler: MixedSampler, samples: dict[int, Batch], max_samples: int, device: torch.device
    ) -> None:
        """
        Args:
            sampler: Draws the samples that are not kept, on the CPU.
            samples: Samples by index; added to.
            max_samples: Maximum number of them.
            device: Device of the batches.
        """
        self.sampler, self.samples, self.max_samples, self.device = sampler, samples, max_samples, device
        self.sample_index = 0

    def batch(self, size: int) -> Batch:
        """Draws the next ``size`` samples."""
        parts = [self._sample(self.sample_index + k) for k in range(size)]
        self.sample_index += size
        return join(parts, self.device)

    def _sample(self, index: int) -> Batch:
        if index in self.samples:
            return self.samples[index]
        self.sampler.sample_index = index
        sample = self.sampler.batch(1)
        if len(self.samples) < self.max_samples:
            self.samples[index] = sample
        return sample


class _Task(SegmentationTask):
    """A segmentation task that draws its samples through a cache."""

    cache: SampleCache

    @contextmanager
    def open_sampler(self, context: DistributedContext) -> Iterator[loop.Sampler]:
        """As ``loop.Task``."""
        self.validation_batches = self.cache.validation_batches(self.data, self.config, self.training)
        yield self.cache.sampler(self.data, self.config, self.training, self.device)


def train(
    config: NetworkConfig,
    training: TrainingConfig,
    data: FoldData,
    output: Path,
    encoder: Path,
    device: torch.device,
    cache: SampleCache,
) -> dict[str, float]:
    """Trains one segmentation network as ``segmentation.train`` does, in one process, with samples of a cache."""
    task = _Task(config, training, data, encoder, device)
    task.cache = cache
    return loop.run(task, training, output, device, show=False)

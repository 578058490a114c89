"""Draws each sample several times, for networks that learn faster than samples can be simulated."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.training.batch import Batch, flip, join

if TYPE_CHECKING:
    from pvs_model.training.loop import Sampler

#: Standard deviation of the logarithm of the scale, and of the shift, of a sequence's intensities at each use.
JITTER = 0.1
#: Batches that a buffer holds before the first one is drawn, also in a resumed run: networks overfit to few samples.
FIRST_BATCHES = 16


class ReplayBuffer:
    """Sampler (``loop.Sampler``) that keeps samples on the device and draws each about ``reuse`` times.

    Each use flips the sample and changes the intensities of its sequences a little. A step waits for new samples only
    when it has drawn ``reuse`` times as many as there were. A new or resumed run first draws ``FIRST_BATCHES`` batches.
    """

    def __init__(
        self, sampler: Sampler, config: NetworkConfig, reuse: int, capacity: int, device: torch.device, seed: int
    ) -> None:
        """
        Args:
            sampler: Source of new samples, on any device.
            config: Network of the samples.
            reuse: Mean number of times that a sample is drawn.
            capacity: Maximum number of samples kept, as float16; the oldest is replaced.
            device: Device of the buffer and the batches.
            seed: Seed of the draws.
        """
        self.sampler, self.reuse, self.capacity, self.device, self.seed = sampler, reuse, capacity, device, seed
        self.slices = config.neighbour_slices
        self.images, self.target = torch.empty(0), torch.empty(0)
        self.prompts: list[str] = []
        self.added = self.drawn = 0

    @property
    def sample_index(self) -> int:
        """Index of the next new sample."""
        return self.sampler.sample_index

    @sample_index.setter
    def sample_index(self, index: int) -> None:
        self.sampler.sample_index = index

    def batch(self, size: int) -> Batch:
        """Draws ``size`` samples of the buffer, with replacement."""
        rng = random.Random(f"{self.seed} {self.sample_index} {self.drawn}")
        self.drawn += size
        first = max(size, min(FIRST_BATCHES * size, self.capacity))
        missing = max(-(-self.drawn // self.reuse), first) - self.added
        if missing > 0:
            self._add(self.sampler.batch(missing))
        return self.take([rng.randrange(min(self.added, self.capacity)) for _ in range(size)], rng)

    def take(self, places: list[int], rng: random.Random) -> Batch:
        """Returns the samples at some places of the buffer, flipped and changed anew."""
        return join([self._vary(place, rng) for place in places], self.device)

    def _add(self, new: Batch) -> None:
        if not self.prompts:
            shape = {"device": self.device, "dtype": torch.float16}
            self.images = torch.zeros(self.capacity, *new.images.shape[1:], **shape)  # type: ignore[call-overload]
            self.target = torch.zeros(self.capacity, *new.target.shape[1:], **shape)  # type: ignore[call-overload]
            self.prompts = [""] * self.capacity
        for images, target, prompt in zip(new.images, new.target, new.prompts, strict=True):
            place = self.added % self.capacity
            self.images[place], self.target[place], self.prompts[place] = images, target, prompt
            self.added += 1

    def _vary(self, index: int, rng: random.Random) -> Batch:
        images, target = flip(self.images[index].float(), self.target[index].float(), rng)
        return Batch(_jitter(images, self.slices, rng)[None], target[None], [self.prompts[index]])


def _jitter(images: Tensor, slices: int, rng: random.Random) -> Tensor:
    """Scales and shifts each sequence of (C, *spatial), its slices alike; the background stays 0."""
    sequences = len(images) // slices
    scale = torch.tensor([rng.gauss(0, JITTER) for _ in range(sequences)], device=images.device).exp()
    shift = torch.tensor([rng.gauss(0, JITTER) for _ in range(sequences)], device=images.device)
    shape = (-1, *[1] * (images.ndim - 1))
    scale, shift = (x.repeat_interleave(slices).reshape(shape) for x in (scale, shift))
    return torch.where(images != 0, images * scale + shift, images)

"""The replay buffer: how often samples are drawn, what a use changes, and what it must not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from pvs_model.config import NetworkConfig
from pvs_model.training.batch import Batch
from pvs_model.training.replay import FIRST_BATCHES, ReplayBuffer

CPU = torch.device("cpu")


class Numbered:
    """Samples that hold their number plus one in one voxel of a background of 0."""

    def __init__(self) -> None:
        self.sample_index = 0

    def batch(self, size: int) -> Batch:
        images, target = torch.zeros(size, 3, 4, 4, 4), torch.zeros(size, 3, 4, 4, 4)
        for k in range(size):
            images[k, 1, 0, 1, 2] = self.sample_index + 1
            target[k, 0, 0, 1, 2] = self.sample_index + 1
            self.sample_index += 1
        return Batch(images, target, [str(self.sample_index - size + k) for k in range(size)])


def buffer_of(config: NetworkConfig, reuse: int = 4, capacity: int = 1000) -> ReplayBuffer:
    return ReplayBuffer(Numbered(), config, reuse, capacity, CPU, seed=3)


@pytest.mark.parametrize("reuse", [2, 5])
def test_samples_are_drawn_reuse_times_on_average(tiny: dict[str, NetworkConfig], reuse: int) -> None:
    replay = buffer_of(tiny["3d"], reuse)
    first = replay.batch(8)
    assert len(first.prompts) == 8 and replay.sample_index == 8 * FIRST_BATCHES, "the first batch is one of many"
    drawn = Counter(prompt for _ in range(100) for prompt in replay.batch(8).prompts)
    assert replay.sample_index == max(8 * FIRST_BATCHES, -(-808 // reuse))
    assert max(map(int, drawn)) < replay.sample_index


def test_the_oldest_sample_leaves_a_full_buffer(tiny: dict[str, NetworkConfig]) -> None:
    replay = buffer_of(tiny["3d"], reuse=1, capacity=4)
    replay.batch(4)
    replay.batch(2)
    seen = {prompt for _ in range(3) for prompt in replay.batch(4).prompts}
    assert seen <= {str(number) for number in range(2, 18)} and "0" not in seen


def test_a_use_moves_image_and_target_alike_and_keeps_the_background(tiny: dict[str, NetworkConfig]) -> None:
    replay = buffer_of(tiny["3d"])
    values, places = set(), set()
    for _ in range(20):
        batch = replay.batch(4)
        for images, target, prompt in zip(batch.images, batch.target, batch.prompts, strict=True):
            assert torch.equal(images[1] != 0, target[0] != 0) and int((images != 0).sum()) == 1
            assert target.max() == int(prompt) + 1, "labels keep their values"
            values.add(float(images.max()) / (int(prompt) + 1))
            places.add(tuple(torch.nonzero(target[0])[0].tolist()))
    assert len(values) > 40 and max(values) < 2.5 and len(places) > 1


def test_slices_of_a_sequence_change_alike(tiny: dict[str, NetworkConfig]) -> None:
    config = replace(tiny["2d"], neighbour_slices=3)

    class Ones(Numbered):
        def batch(self, size: int) -> Batch:
            self.sample_index += size
            return Batch(torch.ones(size, 9, 4, 4), torch.zeros(size, 3, 4, 4), [""] * size)

    images = ReplayBuffer(Ones(), config, 2, 10, CPU, seed=3).batch(1).images[0]
    levels = images.flatten(1)
    assert (levels == levels[:, :1]).all()
    assert len({float(v) for v in levels[:, 0]}) == 3 and torch.equal(levels[0::3, 0], levels[1::3, 0])


def test_draws_are_the_same_in_every_run(tiny: dict[str, NetworkConfig]) -> None:
    a, b = (buffer_of(tiny["3d"]) for _ in range(2))
    assert all(torch.equal(a.batch(3).images, b.batch(3).images) for _ in range(5))

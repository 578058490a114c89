"""Samples that several trainings of a benchmark share are those that each would draw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.networks.sample_cache import SampleCache
from pvs_model.config import NetworkConfig
from pvs_model.simulation.head import HeadModel
from pvs_model.training.config import TrainingConfig
from pvs_model.training.sampling import FoldData, make_sampler
from pvs_model.training.simulated_patches import SimulatedPatches

CPU = torch.device("cpu")
_NO_TEXT = {"text": False, "graph": False, "cross_attention": False, "fusion": False}


def test_shared_samples_are_those_that_each_would_draw(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingConfig(patch=8, scene_buffer=2, refresh_interval=1, seed=3)
    heads = FoldData([anatomy], [anatomy])
    kinds = {
        "text": tiny["3d"],
        "none": replace(tiny["3d"], **_NO_TEXT),  # type: ignore[arg-type]
        "wider": replace(tiny["3d"], widths=(8, 8, 8, 8)),
        "regions": replace(tiny["3d"], regions=True),
    }
    alone = {}
    for name, config in kinds.items():
        samples = make_sampler(heads, config, training, CPU)
        alone[name] = [samples.batch(2) for _ in range(3)]
    rendered = []
    real = SimulatedPatches.render
    monkeypatch.setattr(SimulatedPatches, "render", lambda self, number: rendered.append(number) or real(self, number))
    shared = SampleCache()
    for name, config in kinds.items():
        samples = shared.sampler(heads, config, training, CPU)
        for batch in alone[name]:
            actual = samples.batch(2)
            assert torch.equal(actual.images, batch.images) and torch.equal(actual.target, batch.target)
            assert actual.prompts == batch.prompts
    assert len(rendered) == len(set(rendered)), "a scene is rendered once"
    checks = shared.validation_batches(heads, kinds["text"], replace(training, validation_patches=1))
    assert shared.validation_batches(heads, kinds["wider"], replace(training, validation_patches=1)) is checks


def test_a_little_is_shared_where_there_is_room_for_little(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    shared, training = SampleCache(max_samples=2), TrainingConfig(patch=8, scene_buffer=2, refresh_interval=1)
    for _ in range(2):
        samples = shared.sampler(FoldData([anatomy], [anatomy]), tiny["3d"], training, CPU)
        for _ in range(4):
            samples.batch(1)
    assert max(len(kept) for kept in (*shared.samples.values(), *shared.scenes.values())) == 2


def test_what_was_asked_for_longest_ago_goes_first(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    shared, heads = SampleCache(limit_mib=0.0), FoldData([anatomy], [anatomy])
    for seed in (0, 1, 2):
        training = TrainingConfig(patch=8, scene_buffer=2, refresh_interval=1, seed=seed)
        samples = shared.sampler(heads, tiny["3d"], training, CPU)
        samples.batch(2)
        assert len(samples.samples) == 2
    assert len(shared.scenes) == 1 and len(shared.samples) == 1
    (kind,) = shared.scenes
    assert kind[3] == 2  # type: ignore[index]
    scene = next(iter(shared.scenes[kind].values()))
    assert shared.size_mib() > scene.pvs_fraction.nbytes / 2**20

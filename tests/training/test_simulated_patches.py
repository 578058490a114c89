"""Simulated patches: functions of their index, targets that follow the prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pvs_model.config import NetworkConfig
from pvs_model.nets.text import TEMPLATES, TRAINING_TEMPLATES, prompt
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, INDEX, TISSUES, HeadModel
from pvs_model.simulation.parameters import draw_scan
from pvs_model.simulation.render import Scene
from pvs_model.simulation.tissue_contrast import STRUCTURES
from pvs_model.training import simulated_patches
from pvs_model.training.batch import Batch
from pvs_model.training.simulated_patches import MARGIN, SimulatedPatches
from pvs_model.types import SEQUENCES


def stream_of(anatomy: HeadModel, config: NetworkConfig, **changes: Any) -> SimulatedPatches:
    settings: dict[str, Any] = {"patch": 8, "seed": 5, "scene_buffer": 3, "refresh_interval": 2}
    return SimulatedPatches([anatomy], config, **settings | changes)


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.target, b.target) and a.prompts == b.prompts


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_same_seed_is_the_same_stream(anatomy: HeadModel, tiny: dict[str, NetworkConfig], kind: str) -> None:
    first, again = (stream_of(anatomy, tiny[kind]) for _ in range(2))
    batches = [first.batch(2) for _ in range(3)]
    assert all(equal(batch, again.batch(2)) for batch in batches)
    spatial = (8, 8, 8) if kind == "3d" else (8, 8)
    for batch in batches:
        assert batch.images.shape == (2, tiny[kind].in_channels, *spatial) and batch.label.shape == (2, 1, *spatial)
        assert batch.images.dtype == batch.label.dtype == torch.float32
        assert set(batch.target[:, :2].unique().tolist()) <= {0.0, 1.0} and batch.images.isfinite().all()
        assert batch.target.shape == (2, 3, *spatial) and not (batch.label * batch.ignore).any()
        assert 0 <= float(batch.target[:, 2].min()) <= float(batch.target[:, 2].max()) <= 1
    other = stream_of(anatomy, tiny[kind], seed=6)
    assert not equal(batches[0], other.batch(2))


def test_a_stream_goes_on_from_any_visit(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    whole = stream_of(anatomy, tiny["2d"])
    batches = [whole.batch(1) for _ in range(14)]
    for start in (1, 6, 9, 13):
        resumed = stream_of(anatomy, tiny["2d"])
        resumed.sample_index = start
        for batch in batches[start : start + 3]:
            assert equal(batch, resumed.batch(1))


def test_the_pool_takes_new_scenes_in_and_drops_the_oldest(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(anatomy, tiny["2d"], scene_buffer=3, refresh_interval=2)
    taken: list[tuple[int, int]] = []
    rendered: list[int] = []

    def render(number: int) -> int:
        rendered.append(number)
        return number

    def sample(scene: int, seed: int, ask_region: bool) -> Batch:
        taken.append((stream.sample_index, scene))
        return Batch(torch.zeros(1), torch.zeros(1), [""])

    monkeypatch.setattr(stream, "render", render)
    monkeypatch.setattr(stream, "sample", sample)
    stream.batch(400)
    for visit, scene in taken:
        newest = visit // 2
        assert max(0, newest - 2) <= scene <= newest
    assert {visit // 2 - scene for visit, scene in taken} == {0, 1, 2}
    assert len(rendered) == len(set(rendered)), "a scene was rendered twice"
    assert len(stream.scenes) <= 3


def test_scenes_are_of_their_network(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    for number in range(4):
        three = stream_of(anatomy, tiny["3d"]).render(number)
        two = stream_of(anatomy, tiny["2d"]).render(number)
        side = 8 + 2 * MARGIN
        assert three.pvs_fraction.shape == (side, side, side) and three.thickness_mm < 2.5
        assert two.pvs_fraction.shape == (side, side, 5) and two.thickness_mm >= 2.5


def half_and_half(shape: tuple[int, int, int]) -> Scene:
    """PVS everywhere; one half is basal ganglia, the other centrum semiovale."""
    regions = torch.full(shape, BASAL_GANGLIA, dtype=torch.uint8)
    regions[: shape[0] // 2] = CENTRUM_SEMIOVALE
    white, kinds = INDEX["white_matter"], len(TISSUES) + len(STRUCTURES)
    fractions = torch.zeros(kinds, *shape, dtype=torch.uint8)
    fractions[len(TISSUES) + STRUCTURES.index("pvs")] = 255
    everywhere = torch.arange(regions.numel(), dtype=torch.int32)
    displaced = torch.zeros(kinds, len(everywhere), dtype=torch.float16)
    displaced[white] = 1.0
    histogram = torch.zeros(2, len(TISSUES))
    histogram[:, white - 1 : white + 1] = 0.5
    coverage, diameter = torch.full(shape, 255, dtype=torch.uint8), torch.full(shape, 50, dtype=torch.uint8)
    return Scene(
        fractions, coverage, everywhere, displaced, diameter, regions, (1.0, 1.0, 1.0), histogram, whole_head=False
    )


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_target_follows_the_prompt(anatomy: HeadModel, tiny: dict[str, NetworkConfig], kind: str) -> None:
    stream = stream_of(anatomy, tiny[kind], patch=16)
    scene = half_and_half((16, 16, 16 if kind == "3d" else 5))
    for seed in range(3):
        brain, basal, centrum = (
            stream.sample(scene, seed, region, template=0) for region in ("brain", "basal ganglia", "centrum semiovale")
        )
        assert brain.label.all()
        assert float(basal.label.mean()) == float(centrum.label.mean()) == 0.5
        assert torch.equal(basal.label + centrum.label, brain.label)
        # What is asked for is known: nothing elsewhere is ignored, and the fluid follows the question as well.
        assert not brain.ignore.any() and not basal.ignore.any()
        assert brain.target[:, 2].all() and torch.equal(basal.target[:, 2:], basal.label)
        # Nothing but the question differs.
        assert torch.equal(brain.images, basal.images) and torch.equal(brain.images, centrum.images)
        there = draw_scan(seed, stream.config.dimensions).present
        present = [name for name, drawn in zip(SEQUENCES, there, strict=True) if drawn]
        assert basal.prompts == [prompt(present, 1.0, "basal ganglia")]
        assert centrum.prompts == [prompt(present, 1.0, "centrum semiovale")]


def test_prompts_vary_and_tell_the_truth(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    stream = stream_of(anatomy, tiny["3d"], patch=8, region_share=0.5)
    scene = half_and_half((8, 8, 8))
    regions, templates = set(), set()
    for seed in range(80):
        batch = stream.sample(scene, seed)
        present = [name for k, name in enumerate(SEQUENCES) if batch.images[0, k].any()]
        possible = {
            prompt(present, 1.0, region, template): (region, template)
            for region in ("brain", "basal ganglia", "centrum semiovale")
            for template in range(len(TEMPLATES))
        }
        region, template = possible[batch.prompts[0]]
        regions.add(region)
        templates.add(template)
    assert regions == {"brain", "basal ganglia", "centrum semiovale"}
    assert templates == set(TRAINING_TEMPLATES)


def test_no_region_is_asked_for_where_none_is_wanted(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    stream = stream_of(anatomy, tiny["3d"], patch=8, region_share=0.0)
    scene = half_and_half((8, 8, 8))
    assert all("the whole brain" in stream.sample(scene, seed).prompts[0] for seed in range(20))


def test_a_2d_patch_is_a_slice_of_its_scene_and_its_neighbours(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images that hold their own position: channel, slice.
    monkeypatch.setattr(simulated_patches, "acquire", lambda scene, params: None)
    codes = (torch.arange(3)[:, None] * 10 + torch.arange(5)).float()
    images = codes[:, None, None, :].expand(3, 16, 16, 5)
    monkeypatch.setattr(simulated_patches, "standardise", lambda scan, scene: images)
    scene = half_and_half((16, 16, 5))
    coverage = torch.zeros(16, 16, 5, dtype=torch.uint8)
    coverage[..., 2] = 255
    stream = stream_of(anatomy, tiny["2d"], patch=8, labels="coverage")
    middles = []
    for seed in range(20):
        batch = stream.sample(replace(scene, pvs_fraction=coverage), seed, "brain")
        values = batch.images[0].flatten(1).unique(dim=1)[:, 0]
        z = int(values[1])
        middles.append(z)
        assert values.tolist() == [z - 1, z, z + 1, z + 9, z + 10, z + 11, z + 19, z + 20, z + 21]
        assert bool(batch.label.all()) == (z == 2) and bool(batch.label.any()) == (z == 2)
    # Half of the patches are the slice with the most PVS, and a third of the others happen to be.
    assert set(middles) == {1, 2, 3} and 8 <= middles.count(2) <= 18

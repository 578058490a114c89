"""What training offers for comparisons: views, regions, coverage, one prompt for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pvs_model import cli
from pvs_model.config import NetworkConfig
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.render import labelling_threshold
from pvs_model.training.config import TrainingConfig
from pvs_model.training.prompts import CONSTANT_PROMPT, Prompts
from pvs_model.training.sampling import FoldData, make_sampler
from pvs_model.training.simulated_patches import SimulatedPatches
from pvs_model.types import PLANES

CPU = torch.device("cpu")
_NO_TEXT = {"text": False, "graph": False, "cross_attention": False, "fusion": False}


def stream_of(anatomy: HeadModel, config: NetworkConfig, **changes: Any) -> SimulatedPatches:
    settings: dict[str, Any] = {"patch": 8, "seed": 5, "scene_buffer": 3, "refresh_interval": 2}
    return SimulatedPatches([anatomy], config, **settings | changes)


@pytest.mark.parametrize("view", PLANES)
def test_planes_of_a_view_are_cut_from_a_thin_slab(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], view: str
) -> None:
    config = replace(tiny["2d"], view=view)
    stream = stream_of(anatomy, config)
    scene = stream.render(0)
    across = PLANES[view][2]
    assert [n == 5 for n in scene.pvs_fraction.shape] == [axis == across for axis in range(3)]
    assert max(scene.voxel_mm) < 2.5, "slices of a volume are thin"
    batch = stream.batch(2)
    assert batch.images.shape == (2, 9, 8, 8) and batch.label.shape == (2, 1, 8, 8)


def test_a_planes_label_is_that_of_its_middle_slice(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    stream = stream_of(anatomy, replace(tiny["2d"], view="coronal"), patch=16, region_share=0.0, labels="coverage")
    for number in range(6):
        scene = stream.render(number)
        if scene.label_by_fraction().any():
            break
    stacked = scene.label_by_fraction().permute(PLANES["coronal"])
    for seed in range(4):
        label = stream.sample(scene, seed, region="brain").label[0, 0]
        flips = [label, label.flip(0), label.flip(1), label.flip(0, 1)]
        crops = [
            stacked[x : x + 16, y : y + 16, z].float()
            for x in range(stacked.shape[0] - 15)
            for y in range(stacked.shape[1] - 15)
            for z in (1, 2, 3)
        ]
        assert any(torch.equal(flip, crop) for flip in flips for crop in crops)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_region_channel_comes_last_and_leaves_the_rest_alone(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], kind: str
) -> None:
    plain, more = stream_of(anatomy, tiny[kind]), stream_of(anatomy, replace(tiny[kind], regions=True))
    slices = tiny[kind].neighbour_slices
    seen = set()
    for _ in range(10):
        a, b = plain.batch(1), more.batch(1)
        assert b.images.shape[1] == 4 * slices
        assert torch.equal(b.images[:, : 3 * slices], a.images) and torch.equal(a.target, b.target)
        seen |= set(b.images[:, 3 * slices :].unique().tolist())
    assert seen == {0.0, 1.0}


def test_coverage_moves_the_border_of_labels_alone(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    shares = (0.05, None, 0.9)
    settings: dict[str, Any] = {"patch": 16, "region_share": 0.0, "labels": "coverage"}
    streams = [stream_of(anatomy, tiny["3d"], coverage=share, **settings) for share in shares]
    scene = next(s for s in (streams[0].render(k) for k in range(12)) if s.label_by_fraction().any())
    low, rule, high = (stream.sample(scene, seed=1, region="brain") for stream in streams)
    assert torch.equal(low.images, rule.images) and torch.equal(rule.images, high.images)
    assert (high.label <= rule.label).all() and (rule.label <= low.label).all()
    assert low.label.sum() > high.label.sum()
    same = stream_of(anatomy, tiny["3d"], coverage=labelling_threshold(scene.voxel_mm), **settings)
    assert torch.equal(same.sample(scene, seed=1, region="brain").label, rule.label)
    # By the coverage rule nothing is ignored; by what is seen, the same scan has another label.
    assert not rule.ignore.any() and torch.equal(rule.target[:, 2], low.target[:, 2])
    seen = stream_of(anatomy, tiny["3d"], patch=16, region_share=0.0).sample(scene, seed=1, region="brain")
    assert torch.equal(seen.images, rule.images) and not torch.equal(seen.label, rule.label)


class Letters:
    """An encoder that gives each prompt its own numbers."""

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [torch.full((2, 3), float(len(p))) for p in prompts]


def test_one_prompt_for_all() -> None:
    varied, constant = Prompts(Letters()), Prompts(Letters(), constant=True)  # type: ignore[arg-type]
    words = ["a", "abc"]
    assert varied(words, CPU)[0][:, 0, 0].tolist() == [1, 3]
    assert constant(words, CPU)[0][:, 0, 0].tolist() == [len(CONSTANT_PROMPT)] * 2


@pytest.mark.parametrize(
    ("changes", "prompts", "asked"),
    [({}, "varied", True), ({}, "constant", False), (_NO_TEXT, "varied", False)],
    ids=["prompts", "one prompt", "no text"],
)
def test_who_cannot_know_the_region_is_asked_for_the_whole_brain(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], changes: dict[str, bool], prompts: str, asked: bool
) -> None:
    training = TrainingConfig(patch=8, region_share=1.0, prompts=prompts, scene_buffer=2, region_warmup=0)
    config = replace(tiny["3d"], **changes)  # type: ignore[arg-type]
    samples = make_sampler(FoldData([anatomy], [anatomy]), config, training, CPU)
    words = [samples.batch(1).prompts[0] for _ in range(3)]
    named = [any(region in text.lower() for region in ("basal ganglia", "semioval")) for text in words]
    assert all(named) if asked else not any(named)


def test_regions_are_asked_for_after_the_warmup_steps_alone(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    training = TrainingConfig(patch=8, region_share=1.0, scene_buffer=1, refresh_interval=100, region_warmup=4)
    samples = make_sampler(FoldData([anatomy], [anatomy]), tiny["2d"], training, CPU)
    words = [samples.batch(1).prompts[0] for _ in range(8)]
    assert ["the whole brain" in text for text in words] == [True] * 4 + [False] * 4


def test_cases_train_no_network_of_views_or_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pvs_model import cli

    for name in ("swin_unetr-axial", "gated-3d"):
        code = cli.main(["train", "--network", name, "--cases", str(tmp_path), "--output", str(tmp_path / "out"),
                         "--patch", "32", "--encoder", str(tmp_path)])  # fmt: skip
        assert code == 2 and f"--cases with --network {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save-every", "0"], "--save-every, --refresh: expected at least 1 each, got 0, 3"),
        (["--refresh", "0"], "--save-every, --refresh: expected at least 1 each, got 200, 0"),
        (["--refresh", "-2"], "--save-every, --refresh: expected at least 1 each, got 200, -2"),
        ([], "maps: expected label maps besides those of --held-out"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pvs_model.datasets import label_maps

    monkeypatch.setattr(label_maps, "load_head_model", lambda *_: pytest.fail("no head is to be built"))
    for folder in ("maps", "held_out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.nii.gz").touch()
    options = ["--anatomies", str(tmp_path / "maps"), "--held-out", str(tmp_path / "held_out"), "--device", "cpu"]
    options += ["--encoder", str(tmp_path), "--output", str(tmp_path / "out")]
    assert cli.main(["train", "--network", "3d", *options, *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_networks_with_a_learning_rate_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pvs_model.commands import train
    from pvs_model.training import segmentation

    seen: list[TrainingConfig] = []
    monkeypatch.setattr(segmentation, "train", lambda config, training, *rest: seen.append(training) or {})
    monkeypatch.setattr(train, "_load_data", lambda args, network: FoldData())
    fixed = ["--patch", "32", "--encoder", str(tmp_path), "--device", "cpu", "--output", str(tmp_path / "out")]
    for name in ("segresnet-2d", "unet-2d"):
        assert cli.main(["train", "--network", name, *fixed]) == 0
    assert cli.main(["train", "--network", "segresnet-2d", "--learning-rate", "0.01", *fixed]) == 0
    assert [training.learning_rate for training in seen] == [4e-4, 1.5e-3, 0.01]
    assert all((training.clear_samples, training.region_warmup) == (1500, 2000) for training in seen)


def test_trained_weights_need_no_curriculum_and_no_prompt_warmup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pvs_model.commands import train
    from pvs_model.training import segmentation

    seen: list[TrainingConfig] = []
    monkeypatch.setattr(segmentation, "train", lambda config, training, *rest: seen.append(training) or {})
    monkeypatch.setattr(train, "_load_data", lambda args, network: FoldData())
    monkeypatch.setattr(train, "_check_start", lambda *_: None)
    words = ["train", "--network", "3d", "--start", str(tmp_path / "net.safetensors"), "--encoder", str(tmp_path)]
    assert cli.main([*words, "--device", "cpu", "--output", str(tmp_path / "out")]) == 0
    assert (seen[0].clear_samples, seen[0].region_warmup, seen[0].learning_rate) == (0, 0, 3e-4)

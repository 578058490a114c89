"""Losses by hand, patches that are a function of their number, a loop that resumes exactly, and the release."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pvs_model.config import MANIFEST, NetworkConfig
from pvs_model.datasets.labelled_cases import LabelledCase
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.inference.sliding_window import predict
from pvs_model.inference.weights import Weights
from pvs_model.nets import checkpoint
from pvs_model.nets.text import TEMPLATES, TRAINING_TEMPLATES, TextCache, prompt, thickness_class
from pvs_model.synth.anatomy import BASAL_GANGLIA, CENTRUM_SEMIOVALE, INDEX, TISSUES, Anatomy
from pvs_model.synth.contrast import OVERLAYS
from pvs_model.synth.engine import Scene
from pvs_model.synth.params import draw_scan
from pvs_model.training import data, loop, recorder, state
from pvs_model.training.data import MARGIN, PatchStream, label_maps, load_anatomy
from pvs_model.training.loop import train
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.material import Material
from pvs_model.training.precision import precision
from pvs_model.training.release import release, sha256_of
from pvs_model.training.settings import LOSSES, TrainingConfig, learning_rate
from pvs_model.training.state import HEADER, HEADER_PER_TENSOR, MIB, pack, read_state
from pvs_model.training.validation import THRESHOLDS, dice_counts
from pvs_model.types import SEQUENCES
from pvs_model.volume.io import write_volume
from tests.test_training_distributed import material

ROOT = Path(__file__).parent.parent


# ---- loss ----------------------------------------------------------------------------------------------------------


def dice_ce(logits: list[float], labels: list[float]) -> float:
    """Dice (smoothed by 1) + binary cross-entropy, from their formulas."""
    p = [1 / (1 + math.exp(-x)) for x in logits]
    dice = 1 - (2 * sum(a * y for a, y in zip(p, labels, strict=True)) + 1) / (sum(p) + sum(labels) + 1)
    ce = -sum(y * math.log(a) + (1 - y) * math.log(1 - a) for a, y in zip(p, labels, strict=True)) / len(p)
    return dice + ce


def test_top_k_takes_the_hardest_tenth_by_hand() -> None:
    # 20 voxels: the mean of the two largest entropies, found voxel by voxel, in place of the mean of all.
    logits = [2.0, -1.0, 0.5, -3.0] + [-4.0] * 16
    labels = [1.0, 0.0, 0.0, 1.0] + [0.0] * 16
    entropy = sorted(math.log(1 + math.exp(-x if y else x)) for x, y in zip(logits, labels, strict=True))
    expected = dice_ce(logits, labels) - sum(entropy) / 20 + (entropy[-1] + entropy[-2]) / 2
    shape = (2, 1, 2, 5)  # over the batch, as nnU-Net does
    loss = DeepSupervision("dice-topk")
    found = loss([torch.tensor(logits).reshape(shape)], torch.tensor(labels).reshape(shape))
    assert float(found) == pytest.approx(expected, abs=1e-6)
    one = loss([torch.tensor([2.0]).reshape(1, 1, 1, 1)], torch.ones(1, 1, 1, 1))
    assert float(one) == pytest.approx(dice_ce([2.0], [1.0]), abs=1e-6), "at least one voxel is taken"


def test_there_is_no_other_loss() -> None:
    with pytest.raises(ValueError, match="dice-topk"):
        DeepSupervision("focal")


def test_the_loss_of_one_scale_by_hand() -> None:
    logits, labels = [2.0, -1.0, 0.5, -3.0], [1.0, 0.0, 0.0, 1.0]
    found = DeepSupervision()([torch.tensor(logits).reshape(1, 1, 2, 2)], torch.tensor(labels).reshape(1, 1, 2, 2))
    assert float(found) == pytest.approx(dice_ce(logits, labels), abs=1e-6)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_coarser_scales_weigh_half_and_keep_a_single_voxel(dimensions: int) -> None:
    label = torch.zeros(1, 1, *[4] * dimensions)
    label[(0, 0, *[3] * dimensions)] = 1.0
    logits = [torch.full((1, 1, *[4 // 2**s] * dimensions), 0.3 * (s + 1)) for s in range(3)]
    expected = 0.0
    for scale, weight in enumerate((1.0, 0.5, 0.25)):
        count = (4 // 2**scale) ** dimensions
        # One voxel of the label at every scale: of 4^d, of 2^d and of 1.
        expected += weight * dice_ce([0.3 * (scale + 1)] * count, [1.0] + [0.0] * (count - 1))
    assert float(DeepSupervision()(logits, label)) == pytest.approx(expected / 1.75, abs=1e-6)


def test_dice_is_taken_over_the_batch() -> None:
    logits = torch.tensor([[4.0, 4.0], [-4.0, -4.0]]).reshape(2, 1, 1, 2)
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).reshape(2, 1, 1, 2)
    assert float(DeepSupervision()([logits], labels)) == pytest.approx(dice_ce([4, 4, -4, -4], [1, 1, 0, 0]), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_float32_and_its_gradient_points_to_the_label(name: str) -> None:
    logits = [torch.zeros(1, 1, 4, 4, 4, dtype=torch.bfloat16, requires_grad=True)]
    label = (torch.arange(64).reshape(1, 1, 4, 4, 4) < 9).float()
    loss = DeepSupervision(name)(logits, label)
    loss.backward()
    assert loss.dtype == torch.float32 and logits[0].grad is not None
    assert (logits[0].grad[label > 0] < 0).all() and (logits[0].grad[label == 0] > 0).all()


# ---- the stream of patches -----------------------------------------------------------------------------------------


def stream_of(anatomy: Anatomy, config: NetworkConfig, **changes: Any) -> PatchStream:
    settings: dict[str, Any] = {"patch": 8, "seed": 5, "pool": 3, "refresh": 2}
    return PatchStream([anatomy], config, **settings | changes)


def equal(a: data.Batch, b: data.Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.target, b.target) and a.prompts == b.prompts


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_the_same_seed_is_the_same_stream(anatomy: Anatomy, tiny: dict[str, NetworkConfig], kind: str) -> None:
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


def test_a_stream_goes_on_from_any_visit(anatomy: Anatomy, tiny: dict[str, NetworkConfig]) -> None:
    whole = stream_of(anatomy, tiny["2d"])
    batches = [whole.batch(1) for _ in range(14)]
    for start in (1, 6, 9, 13):
        resumed = stream_of(anatomy, tiny["2d"])
        resumed.visits = start
        for batch in batches[start : start + 3]:
            assert equal(batch, resumed.batch(1))


def test_the_pool_takes_new_scenes_in_and_drops_the_oldest(
    anatomy: Anatomy, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of(anatomy, tiny["2d"], pool=3, refresh=2)
    taken: list[tuple[int, int]] = []
    rendered: list[int] = []

    def render(number: int) -> int:
        rendered.append(number)
        return number

    def sample(scene: int, seed: int, asks: bool) -> data.Batch:
        taken.append((stream.visits, scene))
        return data.Batch(torch.zeros(1), torch.zeros(1), [""])

    monkeypatch.setattr(stream, "render", render)
    monkeypatch.setattr(stream, "sample", sample)
    stream.batch(400)
    for visit, scene in taken:
        newest = visit // 2
        assert max(0, newest - 2) <= scene <= newest
    assert {visit // 2 - scene for visit, scene in taken} == {0, 1, 2}
    assert len(rendered) == len(set(rendered)), "a scene was rendered twice"
    assert len(stream.scenes) <= 3


def test_scenes_are_of_their_network(anatomy: Anatomy, tiny: dict[str, NetworkConfig]) -> None:
    for number in range(4):
        three = stream_of(anatomy, tiny["3d"]).render(number)
        two = stream_of(anatomy, tiny["2d"]).render(number)
        side = 8 + 2 * MARGIN
        assert three.coverage.shape == (side, side, side) and three.thickness_mm < 2.5
        assert two.coverage.shape == (side, side, 5) and two.thickness_mm >= 2.5


def half_and_half(shape: tuple[int, int, int]) -> Scene:
    """PVS everywhere; one half is basal ganglia, the other centrum semiovale."""
    regions = torch.full(shape, BASAL_GANGLIA, dtype=torch.uint8)
    regions[: shape[0] // 2] = CENTRUM_SEMIOVALE
    white, kinds = INDEX["white_matter"], len(TISSUES) + len(OVERLAYS)
    fractions = torch.zeros(kinds, *shape, dtype=torch.uint8)
    fractions[len(TISSUES) + OVERLAYS.index("pvs")] = 255
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
def test_the_target_follows_the_prompt(anatomy: Anatomy, tiny: dict[str, NetworkConfig], kind: str) -> None:
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


def test_prompts_vary_and_tell_the_truth(anatomy: Anatomy, tiny: dict[str, NetworkConfig]) -> None:
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


def test_no_region_is_asked_for_where_none_is_wanted(anatomy: Anatomy, tiny: dict[str, NetworkConfig]) -> None:
    stream = stream_of(anatomy, tiny["3d"], patch=8, region_share=0.0)
    scene = half_and_half((8, 8, 8))
    assert all("the whole brain" in stream.sample(scene, seed).prompts[0] for seed in range(20))


def test_a_2d_patch_is_a_slice_of_its_scene_and_its_neighbours(
    anatomy: Anatomy, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images that hold their own position: channel, slice.
    monkeypatch.setattr(data, "acquire", lambda scene, params: None)
    codes = (torch.arange(3)[:, None] * 10 + torch.arange(5)).float()
    images = codes[:, None, None, :].expand(3, 16, 16, 5)
    monkeypatch.setattr(data, "standardise", lambda scan, scene: images)
    scene = half_and_half((16, 16, 5))
    coverage = torch.zeros(16, 16, 5, dtype=torch.uint8)
    coverage[..., 2] = 255
    stream = stream_of(anatomy, tiny["2d"], patch=8, labels="coverage")
    middles = []
    for seed in range(20):
        batch = stream.sample(replace(scene, coverage=coverage), seed, "brain")
        values = batch.images[0].flatten(1).unique(dim=1)[:, 0]
        z = int(values[1])
        middles.append(z)
        assert values.tolist() == [z - 1, z, z + 1, z + 9, z + 10, z + 11, z + 19, z + 20, z + 21]
        assert bool(batch.label.all()) == (z == 2) and bool(batch.label.any()) == (z == 2)
    # Half of the patches are the slice with the most PVS, and a third of the others happen to be.
    assert set(middles) == {1, 2, 3} and 8 <= middles.count(2) <= 18


# ---- anatomies from files ------------------------------------------------------------------------------------------


def test_an_anatomy_from_a_file_is_the_one_from_its_labels(
    small_labels: npt.NDArray[np.int32], anatomy: Anatomy, tmp_path: Path
) -> None:
    # Stored from left to right: it comes out upright all the same, and from the cache as from the file.
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])
    path = tmp_path / "labels" / "toy.nii.gz"
    write_volume(path, small_labels[::-1].astype(np.float32), affine)
    first = load_anatomy(path, tmp_path / "cache")
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1 and kept[0].name.startswith("toy.nii.gz-")
    cached = load_anatomy(path, tmp_path / "cache")
    for loaded in (first, cached):
        assert loaded.whole_head and loaded.name == "toy.nii.gz"
        for name in ("tissues", "regions", "field", "histogram"):
            assert torch.equal(getattr(loaded, name), getattr(anatomy, name)), name
    assert label_maps(tmp_path / "labels") == [path]


def test_a_folder_without_label_maps(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"expected label maps .* found none"):
        label_maps(tmp_path)
    with pytest.raises(VolumeError, match=r"expected label maps .* found none"):
        label_maps(tmp_path / "none")


# ---- the loop ------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(steps=1000, warm_up=100, learning_rate=2e-3)
    assert learning_rate(0, config) == pytest.approx(2e-5)
    assert learning_rate(99, config) == learning_rate(100, config) == pytest.approx(2e-3)
    assert learning_rate(550, config) == pytest.approx(2e-3 * (0.01 + 0.99 / 2))
    assert learning_rate(1000, config) == learning_rate(5000, config) == pytest.approx(2e-5)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert learning_rate(0, TrainingConfig(steps=1, warm_up=0, learning_rate=1.0)) == 1.0


def test_the_polynomial_schedule_is_nnunets_after_the_warm_up() -> None:
    config = TrainingConfig(steps=1000, warm_up=100, learning_rate=2e-3, schedule="polynomial")
    assert learning_rate(49, config) == pytest.approx(1e-3)
    assert learning_rate(100, config) == pytest.approx(2e-3)
    assert learning_rate(550, config) == pytest.approx(2e-3 * 0.5**0.9)
    assert learning_rate(1000, config) == learning_rate(5000, config) == 0.0


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"loss": "focal"}, "dice-topk"),
        ({"schedule": "step"}, "polynomial"),
        ({"precision": "float16"}, "bfloat16"),
        ({"simulate_on": "gpu"}, "device"),
        ({"simulate_on": "device", "workers": 1}, "on the CPU"),
    ],
)
def test_settings_that_there_are_not(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainingConfig(**wrong)


def test_precision_is_chosen_or_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")

    def dtype(wanted: str) -> torch.dtype:
        with precision(cpu, wanted):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    assert dtype("float32") == torch.float32 and dtype("bfloat16") == torch.bfloat16
    for there, expected in ((lambda: True, torch.bfloat16), (lambda: False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", there, raising=False)
        assert dtype("auto") == expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # private: another torch may not have it
    assert dtype("auto") == torch.float32
    with pytest.raises(ValueError, match="float16"):
        precision(cpu, "float16")


def test_dice_over_patches_by_hand() -> None:
    probability = torch.tensor([0.1, 0.45, 0.6, 0.9])
    label = torch.tensor([0.0, 1.0, 0.0, 1.0])
    at = torch.tensor([0.05, 0.4, 0.5, 0.95])
    image, alone = probability.reshape(1, 1, 2, 2), label.reshape(1, 1, 2, 2)
    assert dice_counts(image, alone, at).tolist() == [[2, 4, 2], [2, 3, 2], [1, 2, 2], [0, 0, 2]]
    # The third voxel is left out, whatever is found there; the fluid fraction and a second output are not looked at.
    ignore = torch.tensor([0.0, 0.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    target = torch.cat([alone, ignore, torch.full_like(ignore, 0.3)], 1)
    both = torch.cat([image, torch.ones_like(image)], 1)
    assert dice_counts(both, target, at).tolist() == [[2, 3, 2], [2, 2, 2], [1, 1, 2], [0, 0, 2]]
    assert len(THRESHOLDS) == 17 and float(THRESHOLDS[8]) == pytest.approx(0.5)


class CachedEncoder:
    """In place of BERT: embeddings of standard prompts from the shipped cache, of others from their length."""

    cache = TextCache.load(ROOT / "weights" / "text.safetensors")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, prompts: list[str]) -> list[Tensor]:
        standard = prompt(SEQUENCES, 1.0)
        return [self.cache[p] if p in self.cache else self.cache[standard] * (1 + len(p) / 100) for p in prompts]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the training of a tiny network."""
    monkeypatch.setattr(recorder, "can_plot", lambda: False)


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TextEncoder", CachedEncoder)


def run(anatomy: Anatomy, config: NetworkConfig, output: Path, **changes: Any) -> dict[str, float]:
    settings: dict[str, Any] = {
        "steps": 4, "batch": 1, "patch": 16, "warm_up": 2, "pool": 2, "refresh": 1, "save_every": 2,
        "validation_patches": 2,
    }  # fmt: skip
    start = changes.pop("start", None)
    training = TrainingConfig(**settings | changes)
    return train(config, training, Material([anatomy], [anatomy]), output, Path("none"), torch.device("cpu"), start)


def run_on_case(case: LabelledCase, config: NetworkConfig, output: Path, **changes: Any) -> dict[str, float]:
    """As ``run``, without the seconds that simulation takes."""
    settings: dict[str, Any] = {"steps": 4, "patch": 16, "warm_up": 2, "save_every": 2, "validation_patches": 1}
    material = Material(cases=[case], held_out_cases=[case])
    return train(config, TrainingConfig(**settings | changes), material, output, Path("none"), torch.device("cpu"))


@pytest.fixture(scope="module")
def noise_case() -> LabelledCase:
    """A labelled case of noise."""
    return material().cases[0]


def log_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.usefixtures("fake_encoder")
def test_training_writes_its_log_its_state_and_a_network(
    anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "can_plot", lambda: True)
    facts = run(anatomy, tiny["3d"], tmp_path / "run", steps=3)
    assert facts["steps"] == 3 and 0 <= facts["dice"] <= 1 and 0.1 <= facts["threshold"] <= 0.9
    assert facts["samples_per_second"] > 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "log.csv",
        "log.png",
        "network.safetensors",
        "state-0000003-00.safetensors",
        "state.json",
    ]
    rows = log_of(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [2, 3]
    assert all(float(row["loss"]) > 0 and float(row["learning_rate"]) > 0 for row in rows)
    assert all(0 < float(row["data_share"]) < 1 and float(row["samples_per_second"]) > 0 for row in rows)
    network = checkpoint.load(tmp_path / "run" / "network.safetensors")
    assert network.config == tiny["3d"]
    # What is kept is the average of the weights, not the last ones.
    _, kept = read_state(tmp_path / "run")
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, kept[f"average.{name}"].half().float(), rtol=0, atol=0)
    assert any((kept[f"average.{name}"] != kept[f"network.{name}"]).any() for name in network.state_dict())
    metadata = checkpoint.read_metadata(tmp_path / "run" / "network.safetensors")
    assert json.loads(metadata["facts"]) == facts and json.loads(metadata["training"])["patch"] == 16


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_a_run_that_was_killed_resumes_exactly(
    anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run(anatomy, tiny[kind], tmp_path / "whole")
    real, calls = PatchStream.batch, []

    def killed(self: PatchStream, size: int) -> data.Batch:
        calls.append(size)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PatchStream, "batch", killed)
        run(anatomy, tiny[kind], tmp_path / "cut")
    facts, _ = read_state(tmp_path / "cut")
    assert (facts["step"], facts["visits"]) == (2, 2)
    run(anatomy, tiny[kind], tmp_path / "cut")
    (whole_facts, whole), (cut_facts, cut) = (read_state(tmp_path / name) for name in ("whole", "cut"))
    assert same_tensors(whole, cut)
    assert {**whole_facts, "seconds": 0} == {**cut_facts, "seconds": 0}
    assert same_tensors(*(load_file(tmp_path / name / "network.safetensors") for name in ("whole", "cut")))
    compared = ("step", "loss", "learning_rate", "dice_at_0.5", "best_dice", "best_threshold")
    logs = [[[row[name] for name in compared] for row in log_of(tmp_path / name)] for name in ("whole", "cut")]
    assert logs[0] == logs[1] and [row[0] for row in logs[0]] == ["2", "4"]


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("moment", ["shard", "index", "network"])
def test_a_run_killed_while_it_saves_resumes_exactly(
    noise_case: LabelledCase,
    tiny: dict[str, NetworkConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    # The second save dies between its shards, before its index is in place, or before its network is.
    small = {"shard_mib": 0.06}
    run_on_case(noise_case, tiny["2d"], tmp_path / "whole", **small)
    run_on_case(noise_case, tiny["2d"], tmp_path / "cut", steps=2, **small)
    shards = sorted(tmp_path.glob("cut/state-*"))
    assert len(shards) > 3 and all(path.stat().st_size <= 0.06 * MIB for path in shards)
    written = []

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def second_dies(tensors: dict[str, Tensor], path: Path) -> None:
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half a shard")
            raise KeyboardInterrupt
        save_file(tensors, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "shard":
            patch.setattr(state, "save_file", second_dies)
        elif moment == "index":
            patch.setattr(state, "asdict", dies)
        else:
            patch.setattr(recorder.checkpoint, "save", dies)
        run_on_case(noise_case, tiny["2d"], tmp_path / "cut", **small)
    if moment == "shard":
        assert len(list(tmp_path.glob("cut/state-*"))) == len(shards) + 3, "the old state is not touched"
    facts, _ = read_state(tmp_path / "cut")
    assert facts["step"] == 2
    run_on_case(noise_case, tiny["2d"], tmp_path / "cut", **small)
    assert same_tensors(read_state(tmp_path / "whole")[1], read_state(tmp_path / "cut")[1])
    assert [row["step"] for row in log_of(tmp_path / "cut")] == ["2", "4"], "the row of the save that died is gone"
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "cut")]
    assert names[0] == names[1]


@pytest.mark.usefixtures("fake_encoder")
def test_a_state_in_one_file_is_still_read(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    run_on_case(noise_case, tiny["2d"], tmp_path / "whole")
    run_on_case(noise_case, tiny["2d"], tmp_path / "old", steps=2)
    facts, tensors = read_state(tmp_path / "old")
    for path in (tmp_path / "old").glob("state*"):
        path.unlink()
    older = {"step": facts["step"], "visits": facts["visits"]}
    save_file(tensors, tmp_path / "old" / "state.safetensors", metadata={"facts": json.dumps(older)})
    (tmp_path / "old" / "log.csv").write_text("step,seconds,loss,learning_rate,dice_at_0.5\n2,1.5,0.7,0.001,0.25\n")
    run_on_case(noise_case, tiny["2d"], tmp_path / "old")
    assert same_tensors(read_state(tmp_path / "whole")[1], read_state(tmp_path / "old")[1])
    assert not (tmp_path / "old" / "state.safetensors").exists()
    rows = log_of(tmp_path / "old")
    assert [row["step"] for row in rows] == ["2", "4"] and rows[0]["data_share"] == "" != rows[1]["data_share"]


@pytest.mark.usefixtures("fake_encoder")
def test_a_finished_run_tells_what_it_reached(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    facts = run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2) == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.usefixtures("fake_encoder")
def test_a_state_of_another_network_or_without_a_shard(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=1)
    with pytest.raises(WeightsError, match=r"state.json: expected the state of a run of this network, found"):
        run_on_case(noise_case, replace(tiny["2d"], widths=(4, 8, 8, 12)), tmp_path / "run", steps=2)
    next((tmp_path / "run").glob("state-*")).unlink()
    with pytest.raises(WeightsError, match=r"state.json: expected the state of a run of this network, found"):
        run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2)


@pytest.mark.usefixtures("fake_encoder")
def test_shards_too_small_are_told_before_the_first_step(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="--shard-mib: expected room for"):
        run_on_case(noise_case, tiny["2d"], tmp_path / "run", shard_mib=1e-4)
    assert not list((tmp_path / "run").iterdir())


def test_shards_hold_everything_in_order_and_no_more_than_their_limit(tmp_path: Path) -> None:
    tensors = {f"t{k}": torch.randn(k + 1, 7, 3) for k in range(12)} | {"scalar": torch.tensor(3.0)}
    # The largest tensor, of 12 * 21 floats, has to be cut: there is room for five rows of 84 bytes.
    limit = HEADER + HEADER_PER_TENSOR + 3 + 5 * 84
    groups = pack(tensors, limit)
    for number, group in enumerate(groups):
        save_file(group, tmp_path / f"{number}")
        assert (tmp_path / f"{number}").stat().st_size <= limit
    names = [name for group in groups for name in group]
    assert names[-4:] == ["t11#0", "t11#1", "t11#2", "scalar"]
    joined: dict[str, list[Tensor]] = {}
    for group in groups:
        for name, piece in group.items():
            joined.setdefault(name.split("#")[0], []).append(piece)
    found = {name: torch.cat(pieces) if len(pieces) > 1 else pieces[0] for name, pieces in joined.items()}
    assert list(found) == list(tensors) and same_tensors(found, tensors)
    assert [list(group) for group in pack(tensors, 10 * MIB)] == [list(tensors)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("simulate_on", ["cpu", "device"])
def test_a_gpu_trains_and_resumes(
    anatomy: Anatomy, noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path, simulate_on: str
) -> None:
    material = Material([anatomy], [anatomy], [noise_case], [noise_case])
    for steps in (2, 4):
        training = TrainingConfig(
            steps=steps, batch=2, patch=16, warm_up=2, pool=2, save_every=2, validation_patches=1,
            simulate_on=simulate_on,
        )  # fmt: skip
        facts = train(tiny["2d"], training, material, tmp_path, Path("none"), torch.device("cuda"))
        assert facts["steps"] == steps and math.isfinite(float(log_of(tmp_path)[-1]["loss"]))


@pytest.mark.usefixtures("fake_encoder")
def test_training_changes_every_parameter(anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    run(anatomy, tiny["2d"], tmp_path / "one", steps=1)
    run(anatomy, tiny["2d"], tmp_path / "two", steps=2)
    one, two = (read_state(tmp_path / name)[1] for name in ("one", "two"))
    names = [name for name in one if name.startswith("network.")]
    still = [name for name in names if torch.equal(one[name], two[name])]
    assert not still


@pytest.mark.usefixtures("fake_encoder")
def test_training_can_begin_from_weights(anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    run(anatomy, tiny["2d"], tmp_path / "first", steps=1)
    start = tmp_path / "first" / "network.safetensors"
    run(anatomy, tiny["2d"], tmp_path / "second", steps=1, start=start, learning_rate=0.0, weight_decay=0.0)
    _, found = read_state(tmp_path / "second")
    for name, value in load_file(start).items():
        torch.testing.assert_close(found[f"network.{name}"], value.float(), rtol=0, atol=0)
    with pytest.raises(WeightsError, match=r"network.safetensors: expected weights of"):
        run(anatomy, replace(tiny["2d"], widths=(4, 8, 8, 12)), tmp_path / "third", start=start)


@pytest.mark.usefixtures("fake_encoder")
def test_a_run_out_of_time_leaves_a_state(anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    done = run(anatomy, tiny["2d"], tmp_path / "run", steps=1000, save_every=1000, minutes=0.01)["steps"]
    assert 1 <= done < 1000
    assert read_state(tmp_path / "run")[0]["step"] == done
    assert run(anatomy, tiny["2d"], tmp_path / "run", steps=done + 1)["steps"] == done + 1


# ---- release -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_encoder")
def test_what_is_trained_is_released_and_runs(anatomy: Anatomy, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    folder = tmp_path / "weights"  # a new one: the embeddings of the prompts come along
    for kind in ("3d", "2d"):
        run(anatomy, tiny[kind], tmp_path / kind, steps=1, seed=7)
        networks = [tmp_path / kind / "network.safetensors"] * 2
        release(folder, kind, networks, 0.35, 16, 0.25, "simulated", {"dice": 0.5})
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format"] == 1 and set(manifest["ensembles"]) == {"3d", "2d"}
    for kind, entry in manifest["ensembles"].items():
        assert [m["file"] for m in entry["members"]] == [f"{kind}_fold0.safetensors", f"{kind}_fold1.safetensors"]
        for member in entry["members"]:
            assert member["sha256"] == sha256_of(folder / member["file"])
            assert (member["steps"], member["seed"], member["patch"]) == (1, 7, 16)
            assert NetworkConfig.from_json(json.dumps(member["network"])) == tiny[kind]
        assert entry["scores"] == {"dice": 0.5} and entry["data"] == "simulated"
    weights = Weights(folder)
    tokens = weights.embed(prompt(SEQUENCES, thickness_class(1.0)))
    for kind in ("3d", "2d"):
        ensemble = weights.ensemble(kind)
        assert ensemble.threshold == 0.35 and len(ensemble.networks) == 2
        found = predict(ensemble, torch.randn(3, 16, 16, 4), tokens, torch.device("cpu"))
        assert found.shape == (16, 16, 4) and 0 <= float(found.min()) <= float(found.max()) <= 1

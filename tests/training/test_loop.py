"""The training loop: schedules and precision, runs that resume exactly, and a release of what was trained."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pvs_model.config import MANIFEST, TRAINED_RANGE, NetworkConfig
from pvs_model.datasets.labelled_cases import LabelledCase
from pvs_model.errors import WeightsError
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.weights import Weights
from pvs_model.nets import checkpoint
from pvs_model.nets.text import TextCache, prompt, thickness_class
from pvs_model.simulation.head import HeadModel
from pvs_model.training import loop, segmentation
from pvs_model.training.batch import Batch
from pvs_model.training.checkpoint import STATE, read_state
from pvs_model.training.config import TrainingConfig, learning_rate
from pvs_model.training.release import release, sha256_of
from pvs_model.training.sampling import FoldData
from pvs_model.training.segmentation import train
from pvs_model.training.simulated_patches import SimulatedPatches
from pvs_model.training.validation import THRESHOLDS, dice_counts
from pvs_model.types import SEQUENCES
from tests.prediction import predict
from tests.training.test_distributed import material

ROOT = Path(__file__).parents[2]


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(steps=1000, warmup_steps=100, learning_rate=2e-3)
    assert learning_rate(0, config) == pytest.approx(2e-5)
    assert learning_rate(99, config) == learning_rate(100, config) == pytest.approx(2e-3)
    assert learning_rate(550, config) == pytest.approx(2e-3 * (0.01 + 0.99 / 2))
    assert learning_rate(1000, config) == learning_rate(5000, config) == pytest.approx(2e-5)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[:100] == sorted(rates[:100]) and rates[100:] == sorted(rates[100:], reverse=True)
    assert learning_rate(0, TrainingConfig(steps=1, warmup_steps=0, learning_rate=1.0)) == 1.0


def test_the_polynomial_schedule_is_nnunets_after_the_warmup_steps() -> None:
    config = TrainingConfig(steps=1000, warmup_steps=100, learning_rate=2e-3, schedule="polynomial")
    assert learning_rate(49, config) == pytest.approx(1e-3)
    assert learning_rate(100, config) == pytest.approx(2e-3)
    assert learning_rate(550, config) == pytest.approx(2e-3 * 0.5**0.9)
    assert learning_rate(1000, config) == learning_rate(5000, config) == 0.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "focal"}, "dice-topk"),
        ({"schedule": "step"}, "polynomial"),
        ({"precision": "float16"}, "bfloat16"),
        ({"simulate_on": "gpu"}, "device"),
    ],
)
def test_settings_that_there_are_not(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**wrong)


def test_dice_over_patches_by_hand() -> None:
    probability = torch.tensor([0.1, 0.45, 0.6, 0.9])
    label = torch.tensor([0.0, 1.0, 0.0, 1.0])
    at = torch.tensor([0.05, 0.4, 0.5, 0.95])
    image, alone = probability.reshape(1, 1, 2, 2), label.reshape(1, 1, 2, 2)
    assert dice_counts(image, alone, at).tolist() == [[2, 4, 2], [2, 3, 2], [1, 2, 2], [0, 0, 2]]
    # The third voxel is left out, whatever is found there; the PVS fraction and a second output are not looked at.
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
    monkeypatch.setattr(loop, "can_plot", lambda: False)


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "TextEncoder", CachedEncoder)


def run(anatomy: HeadModel, config: NetworkConfig, output: Path, **changes: Any) -> dict[str, float]:
    settings: dict[str, Any] = {
        "steps": 4, "batch": 1, "patch": 16, "warmup_steps": 2, "scene_buffer": 2, "refresh_interval": 1,
        "save_every": 2, "validation_patches": 2,
    }  # fmt: skip
    start = changes.pop("start", None)
    training = TrainingConfig(**settings | changes)
    return train(config, training, FoldData([anatomy], [anatomy]), output, Path("none"), torch.device("cpu"), start)


def run_on_case(case: LabelledCase, config: NetworkConfig, output: Path, **changes: Any) -> dict[str, float]:
    """As ``run``, without the seconds that simulation takes."""
    settings: dict[str, Any] = {"steps": 4, "patch": 16, "warmup_steps": 2, "save_every": 2, "validation_patches": 1}
    data = FoldData(cases=[case], held_out_cases=[case])
    return train(config, TrainingConfig(**settings | changes), data, output, Path("none"), torch.device("cpu"))


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
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "can_plot", lambda: True)
    facts = run(anatomy, tiny["3d"], tmp_path / "run", steps=3)
    assert facts["steps"] == 3 and 0 <= facts["dice"] <= 1 and 0.1 <= facts["threshold"] <= 0.9
    assert facts["samples_per_second"] > 0
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "log.csv",
        "log.png",
        "network.safetensors",
        "state.safetensors",
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
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    run(anatomy, tiny[kind], tmp_path / "whole")
    real, calls = SimulatedPatches.batch, []

    def killed(self: SimulatedPatches, size: int) -> Batch:
        calls.append(size)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SimulatedPatches, "batch", killed)
        run(anatomy, tiny[kind], tmp_path / "cut")
    progress, _ = read_state(tmp_path / "cut")
    assert (progress.step, progress.samples) == (2, 2)
    run(anatomy, tiny[kind], tmp_path / "cut")
    (whole_progress, whole), (cut_progress, cut) = (read_state(tmp_path / name) for name in ("whole", "cut"))
    assert same_tensors(whole, cut)
    assert replace(whole_progress, seconds=0.0) == replace(cut_progress, seconds=0.0)
    assert same_tensors(*(load_file(tmp_path / name / "network.safetensors") for name in ("whole", "cut")))
    compared = ("step", "loss", "learning_rate", "dice_at_0.5", "best_dice", "best_threshold")
    logs = [[[row[name] for name in compared] for row in log_of(tmp_path / name)] for name in ("whole", "cut")]
    assert logs[0] == logs[1] and [row[0] for row in logs[0]] == ["2", "4"]


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("moment", ["state", "network"])
def test_a_run_killed_while_it_saves_resumes_exactly(
    noise_case: LabelledCase,
    tiny: dict[str, NetworkConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    # The second save dies before its network is in place, or before its state is.
    run_on_case(noise_case, tiny["2d"], tmp_path / "whole")
    run_on_case(noise_case, tiny["2d"], tmp_path / "cut", steps=2)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    def dies_halfway(tensors: Any, path: Path, metadata: Any) -> None:
        if path.name != STATE:
            return save_file(tensors, path, metadata)
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "state":
            patch.setattr(safetensors.torch, "save_file", dies_halfway)
        else:
            patch.setattr(checkpoint, "save", dies)
        run_on_case(noise_case, tiny["2d"], tmp_path / "cut")
    assert read_state(tmp_path / "cut")[0].step == 2
    run_on_case(noise_case, tiny["2d"], tmp_path / "cut")
    assert same_tensors(read_state(tmp_path / "whole")[1], read_state(tmp_path / "cut")[1])
    assert [row["step"] for row in log_of(tmp_path / "cut")] == ["2", "4"], "the row of the save that died is gone"
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("whole", "cut")]
    assert names[0] == names[1]


@pytest.mark.usefixtures("fake_encoder")
def test_a_finished_run_tells_what_it_reached(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    facts = run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2) == facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.usefixtures("fake_encoder")
def test_a_state_that_is_damaged_or_of_another_network(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=1)
    with pytest.raises(WeightsError, match=r"state.safetensors: expected the state of a run of this network, got"):
        run_on_case(noise_case, replace(tiny["2d"], widths=(4, 8, 8, 12)), tmp_path / "run", steps=2)
    state = tmp_path / "run" / STATE
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"state.safetensors: expected the state of a run of this network, got"):
        run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2)
    save_file({"network.a": torch.ones(1)}, state, metadata={"facts": '{"step": 1, "unknown": 1}'})
    with pytest.raises(WeightsError, match=r"state.safetensors: expected the state of a run of this network, got"):
        run_on_case(noise_case, tiny["2d"], tmp_path / "run", steps=2)


@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize("steps", [4, 2])  # to be resumed, and already finished
def test_a_run_is_resumed_with_the_same_held_out_data_only(
    noise_case: LabelledCase, tiny: dict[str, NetworkConfig], tmp_path: Path, steps: int
) -> None:
    a, b, c = (replace(noise_case, name=name) for name in "abc")

    def run_fold(held_out: list[LabelledCase], fold: tuple[int, int] | None, output: Path, last: int) -> None:
        training = TrainingConfig(steps=last, batch=1, patch=16, warmup_steps=2, save_every=2, validation_patches=1)
        data = FoldData(cases=[noise_case], held_out_cases=held_out, fold=fold)
        train(tiny["2d"], training, data, output, Path("none"), torch.device("cpu"))

    run_fold([a, b], (0, 2), tmp_path / "run", 2)
    before = (tmp_path / "run" / STATE).read_bytes()
    for held_out, fold, shown in (
        ([c], (1, 2), r"fold 1 of 2 \(c\)"), ([a, b], (0, 3), r"fold 0 of 3 \(a, b\)"), ([a], None, "a"),
        ([], None, "nothing"),
    ):  # fmt: skip
        message = (
            rf"state.safetensors: expected a run that holds out {shown}, got one that holds out fold 0 of 2 \(a, b\)"
        )
        with pytest.raises(WeightsError, match=message):
            run_fold(held_out, fold, tmp_path / "run", steps)
    assert (tmp_path / "run" / STATE).read_bytes() == before
    run_fold([b, a], (0, 2), tmp_path / "run", steps)
    # A state that an earlier version wrote does not say what is held out.
    with safe_open(tmp_path / "run" / STATE, framework="pt") as file:
        facts = file.metadata()["facts"]
    save_file(load_file(tmp_path / "run" / STATE), tmp_path / "run" / STATE, {"facts": facts})
    run_fold([c], (1, 2), tmp_path / "run", steps + 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("fake_encoder")
@pytest.mark.parametrize(("simulate_on", "workers"), [("cpu", 0), ("device", 0), ("device", 2)])
def test_a_gpu_trains_and_resumes(
    anatomy: HeadModel,
    noise_case: LabelledCase,
    tiny: dict[str, NetworkConfig],
    tmp_path: Path,
    simulate_on: str,
    workers: int,
) -> None:
    material = FoldData([anatomy], [anatomy], [noise_case], [noise_case])
    for steps in (2, 4):
        training = TrainingConfig(
            steps=steps, batch=2, patch=16, warmup_steps=2, scene_buffer=2, save_every=2, validation_patches=1,
            simulate_on=simulate_on, workers=workers,
        )  # fmt: skip
        facts = train(tiny["2d"], training, material, tmp_path, Path("none"), torch.device("cuda"))
        assert facts["steps"] == steps and math.isfinite(float(log_of(tmp_path)[-1]["loss"]))


@pytest.mark.usefixtures("fake_encoder")
def test_training_changes_every_parameter(anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    run(anatomy, tiny["2d"], tmp_path / "one", steps=1)
    run(anatomy, tiny["2d"], tmp_path / "two", steps=2)
    one, two = (read_state(tmp_path / name)[1] for name in ("one", "two"))
    names = [name for name in one if name.startswith("network.")]
    still = [name for name in names if torch.equal(one[name], two[name])]
    assert not still


@pytest.mark.usefixtures("fake_encoder")
def test_training_can_begin_from_weights(anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    run(anatomy, tiny["2d"], tmp_path / "first", steps=1)
    start = tmp_path / "first" / "network.safetensors"
    run(anatomy, tiny["2d"], tmp_path / "second", steps=1, start=start, learning_rate=0.0, weight_decay=0.0)
    _, state = read_state(tmp_path / "second")
    for name, value in load_file(start).items():
        torch.testing.assert_close(state[f"network.{name}"], value.float(), rtol=0, atol=0)
    with pytest.raises(WeightsError, match=r"network.safetensors: expected weights of"):
        run(anatomy, replace(tiny["2d"], nested_from=1), tmp_path / "third", start=start)
    wide = replace(tiny["2d"], widths=tuple(2 * width for width in tiny["2d"].widths))
    run(anatomy, wide, tmp_path / "wide", steps=1, start=start, learning_rate=0.0, weight_decay=0.0)
    assert checkpoint.load(tmp_path / "wide" / "network.safetensors").config == wide, "a narrower network is widened"


@pytest.mark.usefixtures("fake_encoder")
def test_a_run_out_of_time_leaves_a_state(anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path) -> None:
    done = run(anatomy, tiny["2d"], tmp_path / "run", steps=1000, save_every=1000, max_minutes=0.01)["steps"]
    assert 1 <= done < 1000
    assert read_state(tmp_path / "run")[0].step == done
    assert run(anatomy, tiny["2d"], tmp_path / "run", steps=done + 1)["steps"] == done + 1


@pytest.mark.usefixtures("fake_encoder")
def test_what_is_trained_is_released_and_runs(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], tmp_path: Path
) -> None:
    folder = tmp_path / "weights"  # a new one: the embeddings of the prompts come along
    for kind in ("3d", "2d"):
        run(anatomy, tiny[kind], tmp_path / kind, steps=1, seed=7)
        networks = [tmp_path / kind / "network.safetensors"] * 2
        settings = EnsembleSettings(0.35, 16, 0.25, *TRAINED_RANGE[kind])
        release(folder, kind, networks, settings, "simulated", {"dice": 0.5})
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
        assert ensemble.settings.threshold == 0.35 and len(ensemble.networks) == 2
        probability = predict(ensemble, torch.randn(3, 16, 16, 4), tokens, torch.device("cpu"))
        assert probability.shape == (16, 16, 4) and 0 <= float(probability.min()) <= float(probability.max()) <= 1

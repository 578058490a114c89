"""Ensembles: the plan of their trainings, folds, resuming after any stop, and the copy of the code."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pvs_model.errors import PVSError, VolumeError
from pvs_model.training import ensemble, loop, segmentation
from pvs_model.training.checkpoint import read_state
from pvs_model.training.config import TrainingConfig
from pvs_model.training.ensemble import COMMON, MEMBER_RATE, continue_from_copy, fold_data, plan_stages, train_ensemble
from pvs_model.training.sampling import FoldData
from pvs_model.training.segmentation import NETWORK
from tests.training.test_distributed import CONFIG, CPU, Encoder, material, settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_encoder_and_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "TextEncoder", Encoder)
    monkeypatch.setattr(loop, "can_plot", lambda: False)


def data() -> FoldData:
    case = material().cases[0]
    cases = [replace(case, name=str(k)) for k in range(4)]
    return FoldData(cases=cases, held_out_cases=[case])


def test_members_have_seeds_and_folds_of_their_own_and_begin_from_the_common_network() -> None:
    common = TrainingConfig(steps=100, seed=7, learning_rate=2e-3, clear_samples=50)
    stages = plan_stages(common, 3, 40)
    assert stages[0].config == common and stages[0].start is None and stages[0].fold is None
    members = stages[1:]
    assert [m.fold for m in members] == [0, 1, 2] and {m.start for m in members} == {COMMON}
    assert len({m.config.seed for m in stages}) == len({m.folder for m in stages}) == 4
    for member in members:
        assert member.config.steps == 40 and member.config.learning_rate == pytest.approx(2e-3 * MEMBER_RATE)
        assert member.config.clear_samples == 0 == member.config.region_warmup


def test_every_item_is_held_out_by_one_member_and_what_is_held_out_from_all_stays_so() -> None:
    whole = data()
    assert fold_data(whole, None, 3) is whole
    held_out = []
    for fold in range(3):
        part = fold_data(whole, fold, 3)
        names, out = {c.name for c in part.cases}, {c.name for c in part.held_out_cases}
        assert names | out == {"0", "1", "2", "3"} and not names & out
        held_out += sorted(out)
    assert sorted(held_out) == ["0", "1", "2", "3"]
    with pytest.raises(VolumeError, match="expected"):
        fold_data(whole, 0, 5)


def test_an_ensemble_goes_on_after_a_stop_and_then_has_nothing_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: Path) -> dict[str, dict[str, float]]:
        stages = plan_stages(settings(), 2, 2)
        return train_ensemble(CONFIG, stages, data(), output, Path("none"), CPU, show=False)

    class Killed(BaseException):
        pass

    original, steps = loop.learning_rate, 0

    def killed_in_a_member(step: int, config: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 6:  # the second step of the second member; the common training has three, the first member two
            raise Killed
        return original(step, config)

    monkeypatch.setattr(loop, "learning_rate", killed_in_a_member)
    with pytest.raises(Killed):
        run(tmp_path / "stopped")
    monkeypatch.setattr(loop, "learning_rate", original)
    whole = run(tmp_path / "whole")
    resumed = run(tmp_path / "stopped")
    assert list(whole) == list(resumed) == [COMMON, "member0", "member1"]
    networks = [load_file(tmp_path / "whole" / name / NETWORK) for name in whole]
    for name, expected in zip(whole, networks, strict=True):
        actual = load_file(tmp_path / "stopped" / name / NETWORK)
        assert all(torch.equal(actual[k], expected[k]) for k in expected)
    assert any(not torch.equal(networks[1][k], networks[2][k]) for k in networks[1]), "members differ"
    before = (tmp_path / "whole" / "member1" / NETWORK).read_bytes()
    assert {k: v["steps"] for k, v in run(tmp_path / "whole").items()} == {COMMON: 3, "member0": 2, "member1": 2}
    assert (tmp_path / "whole" / "member1" / NETWORK).read_bytes() == before


def test_the_time_limit_holds_for_all_stages_together(tmp_path: Path) -> None:
    stages = plan_stages(settings(max_minutes=0.0), 2, 2)
    results = train_ensemble(CONFIG, stages, data(), tmp_path, Path("none"), CPU, show=False)
    assert list(results) == [COMMON] and results[COMMON]["steps"] < 3
    assert not (tmp_path / "member0").exists()


def test_a_state_is_saved_after_some_minutes_whatever_the_steps(tmp_path: Path) -> None:
    config = settings(save_every=1000, save_minutes=0.0, steps=2)
    saved: list[int] = []

    class Watch(segmentation.SegmentationTask):
        def validate(self) -> dict[str, float]:
            saved.append(1)
            return super().validate()

    loop.run(Watch(CONFIG, config, material(), Path("none"), CPU), config, tmp_path, CPU, show=False)
    assert len(saved) == 2 and read_state(tmp_path)[0].step == 2


def test_the_code_is_copied_once_and_the_copy_is_what_runs(tmp_path: Path) -> None:
    """Run for its refusal alone: the sentence comes from the copy, which has no --anatomies to train on."""
    command = [
        sys.executable, "-m", "pvs_model", "train", "--network", "2d", "--ensemble", "2", "--held-out", str(tmp_path),
        "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    marker = tmp_path / "out" / ensemble.SOURCE / "pvs_model" / "training" / "config.py"
    for expected in ("--anatomies, --cases: expected", "edited copy"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert expected in done.stderr, done.stderr
        marker.write_text("raise SystemExit('edited copy')\n")
    assert (marker.parents[2] / "weights" / "MANIFEST.json").is_file()


def test_several_processes_and_a_file_in_the_way_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PVSError, match="expected a folder for a copy of the code"):
        continue_from_copy(tmp_path / "file")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PVSError, match="expected one process"):
        continue_from_copy(tmp_path / "out")
    assert not (tmp_path / "out").exists()

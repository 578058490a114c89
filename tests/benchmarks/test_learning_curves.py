"""Learning curves: equal budgets, resuming, and the files that are written."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import learning_curves
from pvs_model.config import NETWORK_3D
from pvs_model.simulation.head import HeadModel
from pvs_model.training.batch import Batch
from pvs_model.training.replay import ReplayBuffer


class Encoder:
    """In place of BERT: noise that follows from the prompt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, prompts: list[str]) -> list[Tensor]:
        return [torch.randn(5, 8, generator=torch.Generator().manual_seed(sum(p.encode()))) for p in prompts]


@pytest.fixture
def small(anatomy: HeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny candidates on the phantom."""
    names = {"maps": ["a", "held"], "held": ["held"]}
    monkeypatch.setattr(learning_curves, "find_label_maps", lambda folder: [Path(n) for n in names[folder.name]])
    monkeypatch.setattr(learning_curves, "load_head_model", lambda path, cache: anatomy)
    narrow = {"widths": (4, 4, 4, 8), "text_width": 8}
    candidates = {"nested": narrow, "grid": {**narrow, "nested_from": 0}}
    monkeypatch.setattr(learning_curves, "CANDIDATES", {"3d": candidates})
    monkeypatch.setattr(learning_curves, "POINTS", 2)
    monkeypatch.setattr(learning_curves, "TextEncoder", Encoder)


@pytest.fixture
def run(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, str]]]:
    """Runs the benchmark with some options more, and reads its table."""
    options = (
        "--anatomies maps --held-out held --encoder none --patch 16 --validation 1 --scenes 2 --reuse 4 --device cpu"
    )

    def call(*more: str) -> list[dict[str, str]]:
        monkeypatch.setattr(sys, "argv", ["learning_curves", *options.split(), "--output", str(tmp_path), *more])
        learning_curves.main()
        with (tmp_path / "curves.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return call


def test_networks_have_equal_budgets_and_a_run_resumes(
    run: Callable[..., list[dict[str, str]]], tmp_path: Path
) -> None:
    first = run("--minutes", "0.005")
    assert {row["network"] for row in first} == {"nested", "grid"}
    last = {row["network"]: row for row in first}
    assert all(0.3 <= float(row["seconds"]) < 10 for row in last.values()), "each network spends its budget, and stops"
    assert run("--minutes", "0.005") == first, "a finished run trains no further"
    resumed = run("--minutes", "0.01")
    assert resumed[: len(first)] == first and len(resumed) > len(first)
    assert (tmp_path / "curves.png").is_file() and "| nested" in (tmp_path / "curves.md").read_text()


def test_a_budget_in_steps_is_the_same_number_for_all(run: Callable[..., list[dict[str, str]]], tmp_path: Path) -> None:
    rows = run("--steps", "4", "--networks", "nested", "nested+hard")
    assert [(row["network"], row["step"]) for row in rows] == [
        ("nested", "2"), ("nested+hard", "2"), ("nested", "4"), ("nested+hard", "4"),
    ]  # fmt: skip
    (tmp_path / "curves.md").unlink()
    assert run("--redraw", "--batch", "1") == rows, "the table of the run stays"
    table = (tmp_path / "curves.md").read_text().splitlines()
    assert float(table[2].split("|")[4]) > 0, "seconds of a step on this machine"


class Numbered:
    """Samples whose image holds their number."""

    sample_index = 0

    def batch(self, size: int) -> Batch:
        numbers = torch.arange(self.sample_index, self.sample_index + size, dtype=torch.float32)
        self.sample_index += size
        images = (numbers + 1).reshape(-1, 1, 1, 1, 1).expand(-1, 3, 2, 2, 2)
        return Batch(images, torch.zeros(size, 3, 2, 2, 2), [str(int(n)) for n in numbers])


def test_hard_samples_are_drawn_more_often_and_weigh_less() -> None:
    # Losses 3 and 1: half of the draws uniform, half in proportion, so probabilities 5/8 and 3/8 of the two samples.
    buffer = ReplayBuffer(Numbered(), NETWORK_3D, 1000, 2, torch.device("cpu"), 0)
    buffer.batch(2)
    hard = learning_curves.HardSamples(buffer, 0)
    _, weights = hard.batch(4)
    assert weights.tolist() == [1.0] * 4, "nothing is known yet"
    hard.losses[:] = torch.tensor([3.0, 1.0])
    batch, weights = hard.batch(4000)
    first = [prompt == batch.prompts[0] for prompt in batch.prompts]
    expected = {0: 8 / 10, 1: 8 / 6}
    assert {(int(c), round(float(w), 4)) for c, w in zip(hard.chosen, weights, strict=True)} == {
        (place, round(weight, 4)) for place, weight in expected.items()
    }
    assert float((hard.chosen == 0).float().mean()) == pytest.approx(5 / 8, abs=0.03) and 0 < sum(first) < 4000
    assert float(weights.mean()) == pytest.approx(1.0, abs=0.03), "the expected loss is that of uniform draws"


def test_the_loss_of_a_hard_sample_is_that_of_its_last_use_and_goes_with_it() -> None:
    buffer = ReplayBuffer(Numbered(), NETWORK_3D, 1000, 4, torch.device("cpu"), 0)
    buffer.batch(4)
    hard = learning_curves.HardSamples(buffer, 0)
    hard.batch(1)
    hard.update(torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 3, 2, 2, 2))
    place = int(hard.chosen[0])
    assert float(hard.losses[place]) == pytest.approx(math.log(2)) and int(hard.losses.isnan().sum()) == 3
    ignored = torch.zeros(1, 3, 2, 2, 2)
    ignored[:, 1] = 1
    hard.update(torch.zeros(1, 2, 2, 2, 2), ignored)
    assert float(hard.losses[place]) == 0, "ignored voxels have no loss"
    buffer._add(Numbered().batch(4))
    hard.batch(1)
    assert hard.losses.isnan().all(), "new samples in all places"

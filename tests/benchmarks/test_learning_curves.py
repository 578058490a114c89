"""Learning curves: equal budgets, resuming, and the files that are written."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import learning_curves
from pvs_model.simulation.head import HeadModel


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


@pytest.mark.usefixtures("small")
def test_networks_have_equal_budgets_and_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [
        "--anatomies",
        "maps",
        "--held-out",
        "held",
        "--output",
        str(tmp_path),
        "--encoder",
        "none",
        "--patch",
        "16",
    ]
    words += ["--validation", "1", "--scenes", "2", "--reuse", "4", "--device", "cpu"]

    def run(minutes: float) -> list[dict[str, str]]:
        monkeypatch.setattr(sys, "argv", ["learning_curves", *words, "--minutes", str(minutes)])
        learning_curves.main()
        with (tmp_path / "curves.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    first = run(0.005)
    assert {row["network"] for row in first} == {"nested", "grid"}
    last = {row["network"]: row for row in first}
    assert all(0.3 <= float(row["seconds"]) < 10 for row in last.values()), "each network spends its budget, and stops"
    assert run(0.005) == first, "a finished run trains no further"
    resumed = run(0.01)
    assert resumed[: len(first)] == first and len(resumed) > len(first)
    assert (tmp_path / "curves.png").is_file() and "| nested" in (tmp_path / "curves.md").read_text()

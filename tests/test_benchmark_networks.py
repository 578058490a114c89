"""``python -m pvs_model benchmark``: plan, trainings that resume, scores, ensembles that the container runs, tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pvs_model.benchmark import plan, report, run, score
from pvs_model.benchmark.cost import measure, peak_mib
from pvs_model.benchmark.plan import Budget, Job, chosen, jobs_of
from pvs_model.benchmark.run import Bench, Outcome, Study, keep_budget
from pvs_model.commands import segment
from pvs_model.config import NetworkConfig
from pvs_model.errors import PVSError
from pvs_model.nets.registry import ENTRIES
from pvs_model.nets.text import TextCache
from pvs_model.synth.anatomy import Anatomy
from pvs_model.training import loop, recorder
from pvs_model.training.material import Material
from pvs_model.training.prompts import CONSTANT_PROMPT
from pvs_model.training.sets import Heads

CPU = torch.device("cpu")
#: So little that a training takes a second; nothing that these networks find means anything.
LITTLE = Budget(steps=2, seeds=2, peer_seeds=1, patch=16, batch=1, crop_mm=16.0, window=32, validation_patches=1)
NAMES = ["3d", "backbone-3d", "dynunet-3d"]


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_names_are_taken_in_the_registrys_order() -> None:
    assert [entry.name for entry in chosen(["3d", "dynunet-3d"])] == ["dynunet-3d", "3d"]
    assert chosen(["all"]) == list(ENTRIES.values())


@pytest.mark.parametrize("names", [["resnet-3d"], ["3d", "4d"], [], ["all", "3d"]])
def test_unknown_names_are_told_with_those_there_are(names: list[str]) -> None:
    with pytest.raises(PVSError, match=r"--networks: expected all, or some of .*dynunet-3d.*; found"):
        chosen(names)


@pytest.mark.parametrize("changes", [{"patch": 20}, {"window": 8}, {"steps": 0}, {"seeds": 0}, {"crop_mm": -1.0}])
def test_impossible_budgets_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PVSError, match="expected"):
        replace(Budget(), **changes)


def test_every_first_seed_comes_before_any_second_and_equal_seconds_last() -> None:
    jobs = jobs_of(chosen(NAMES), LITTLE)
    told = [(job.entry.name, job.equal, job.seed) for job in jobs]
    assert told == [
        ("dynunet-3d", "steps", 0),
        ("3d", "steps", 0),
        ("backbone-3d", "steps", 0),
        ("3d", "steps", 1),
        ("backbone-3d", "steps", 1),
        ("dynunet-3d", "seconds", 0),
    ]
    assert len({job.folder(Path("out")) for job in jobs}) == len(jobs)
    assert len(jobs_of(chosen(NAMES), replace(LITTLE, equal_seconds=False))) == 5


def test_equal_seconds_are_as_many_steps_as_fit(tmp_path: Path) -> None:
    study = Study(Material(), Heads(None, None), [], tmp_path, tmp_path, CPU)
    bench = Bench(study, replace(LITTLE, steps=100), tmp_path, {})
    costs = {"3d": {"step_seconds": 0.3}, "dynunet-3d": {"step_seconds": 0.4}}
    job = Job(ENTRIES["dynunet-3d"], 0, "seconds")
    assert bench.steps_of(job, costs) == 75
    assert bench.steps_of(replace(job, equal="steps"), costs) == 100


def test_another_budget_in_the_folder_is_told(tmp_path: Path) -> None:
    keep_budget(tmp_path, LITTLE)
    keep_budget(tmp_path, replace(LITTLE, seeds=5, peer_seeds=3))
    with pytest.raises(PVSError, match=r"budget\.json: .* steps 2 \(asked for: 9\)"):
        keep_budget(tmp_path, replace(LITTLE, steps=9))


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(PVSError, match=r"budget\.json: expected a JSON file of the benchmark"):
        keep_budget(tmp_path, LITTLE)


def test_networks_are_scored_on_the_scans_they_are_for() -> None:
    assert plan.sets_of(ENTRIES["2d"]) == plan.THICK
    for name in ("3d", "swin_unetr-sagittal"):
        assert plan.sets_of(ENTRIES[name]) == (*plan.THIN, plan.REAL)


# ---- costs ---------------------------------------------------------------------------------------------------------


def test_costs_of_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvs_model.benchmark.cost.WINDOW", {2: 32, 3: 16})
    config = NetworkConfig(
        widths=(4, 8, 8, 8), text_width=10, text=False, graph=False, cross_attention=False, fusion=False
    )
    found = measure(config, 16, 1, CPU)
    # The first convolution alone: 3 -> 4 channels, 27 voxels, 16^3 places, 2 operations.
    assert found.gflop > 2 * 3 * 4 * 27 * 16**3 / 1e9
    assert found.parameters > 3 * 4 * 27 and found.step_seconds > 0 and found.window_seconds > 0


def test_memory_is_the_height_of_a_call() -> None:
    def hold() -> None:
        torch.ones(32 * 2**18)  # 32 MiB

    found = peak_mib(hold, CPU)
    assert found is None or 25 < found < 60


# ---- scores --------------------------------------------------------------------------------------------------------


def test_box_around_a_region() -> None:
    region = np.zeros((20, 20, 10), bool)
    region[9:12, 4:7, 5] = True
    box = score.box_around(region, (1.0, 2.0, 4.0), 8.0)
    places = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(box)]
    assert places == [(6, 13), (3, 6), (4, 5)]  # 8 voxels around 10, 4 around 5, 2 around 5
    assert score.box_around(region, (1.0, 1.0, 1.0), 0.0).all()
    assert score.box_around(region & False, (1.0, 1.0, 1.0), 8.0).all()


# ---- a whole benchmark ---------------------------------------------------------------------------------------------


class ToyHeads(Heads):
    """One small head."""

    def __init__(self, anatomy: Anatomy) -> None:
        super().__init__(None, None)
        self.toy = anatomy

    def name(self, seed: int) -> str:
        return "toy"

    def find(self, name: str) -> Anatomy:
        return self.toy


class Cached:
    """The shipped embeddings in place of the encoder."""

    def __init__(self, folder: Path) -> None:
        self.cache = TextCache.load(Path(__file__).parent.parent / "weights" / "text.safetensors")

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [self.cache[p if p in self.cache else CONSTANT_PROMPT] for p in prompts]


@pytest.fixture
def small(anatomy: Anatomy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Study:
    """Three entries in small, one protocol, one head."""
    for name in NAMES:
        entry = ENTRIES[name]
        widths = (4, 8, 8, 8) if entry.config.architecture == "graph_fusion" else (4, 6, 8)
        monkeypatch.setitem(ENTRIES, name, replace(entry, config=replace(entry.config, widths=widths)))
    for module in (plan, run):
        monkeypatch.setattr(module, "THIN", ("sg70",))
        monkeypatch.setattr(module, "THICK", ("shanghai_skyra",))
    monkeypatch.setattr("pvs_model.benchmark.cost.WINDOW", {2: 32, 3: 16})
    monkeypatch.setattr(loop, "TextEncoder", Cached)
    monkeypatch.setattr(recorder, "can_plot", lambda: False)
    return Study(Material([anatomy], [anatomy]), ToyHeads(anatomy), [], tmp_path, Path("none"), CPU)


@pytest.mark.filterwarnings("ignore")
def test_a_benchmark_trains_scores_resumes_and_reports(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bench"
    outcome = run.run(small, NAMES, LITTLE, output)
    assert not outcome.failed and not outcome.left
    assert {(r["entry"], r["equal"], r["seed"]) for r in outcome.runs} == {
        *((name, "steps", 0) for name in NAMES),
        ("3d", "steps", 1),
        ("backbone-3d", "steps", 1),
        ("dynunet-3d", "seconds", 0),
    }
    for record in outcome.runs:
        assert [row["region"] for row in record["rows"]] == ["CSO", "BG", "brain"]
        assert len(record["seconds"]) == 1 and 0.1 <= record["threshold"] <= 0.9
    whole = next(r for r in outcome.runs if r["entry"] == "3d" and r["seed"] == 0)
    assert len(whole["mirrored"]["rows"]) == 3
    systems = [(e["system"], e["networks"]) for e in outcome.ensembles]
    assert systems == [("bear_walker", 1), ("ours", 2), ("ours, 1 of 2", 1)]
    assert not list(output.rglob("state*")), "states of finished trainings are not kept"

    # again: nothing is trained or scored anew
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "train", never)
    monkeypatch.setattr(run, "scores", never)
    again = run.run(small, NAMES, LITTLE, output)
    assert again == outcome

    paths = report.write_report(output, again)
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.md", "ranks_3d.png"]
    assert json.loads(paths[0].read_text())["runs"] == json.loads(json.dumps(outcome.runs))
    told = paths[1].read_text()
    for words in ("dynunet-3d", "+ dynamic fusion: ours", "mirrored (first seed)", "bear_walker", "IAANet"):
        assert words in told

    # the container runs what was trained by its manifest alone
    case = next((output / "sets" / "sg70").iterdir())
    scans = tmp_path / "in" / case.name
    scans.mkdir(parents=True)
    for sequence in ("T1w", "T2w", "FLAIR"):
        (scans / f"{case.name}_{sequence}.nii.gz").symlink_to(case / f"{case.name}_{sequence}.nii.gz")
    for system in ("bear_walker", "ours"):
        options = ["--input", str(scans.parent), "--output", str(tmp_path / system), "--device", "cpu"]
        weights = ["--weights", str(output / "weights" / system)]
        assert segment.main([*options, *weights]) == 0
        assert len(list((tmp_path / system).rglob("*.nii.gz"))) == 1


def test_what_there_was_no_time_for_is_told_and_done_later(small: Study, tmp_path: Path) -> None:
    budget = replace(LITTLE, seeds=1, equal_seconds=False)
    outcome = run.run(small, ["backbone-3d"], budget, tmp_path / "bench", minutes=0)
    assert outcome.left == 1 and not outcome.runs
    assert run.run(small, ["backbone-3d"], budget, tmp_path / "bench").left == 0


def test_a_network_that_fails_is_told_and_the_others_go_on(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = run.train

    def fails(config: NetworkConfig, *args: Any, **kwargs: Any) -> Any:
        if config.architecture == "dynunet":
            (args[2] / "state.json").parent.mkdir(parents=True)
            (args[2] / "state.json").write_text("hours of work")
            raise RuntimeError("out of everything\nand more")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(run, "train", fails)
    budget = replace(LITTLE, seeds=1, equal_seconds=False)
    outcome = run.run(small, ["dynunet-3d", "backbone-3d"], budget, tmp_path / "bench")
    assert outcome.failed == [{"entry": "dynunet-3d", "why": "out of everything"}]
    assert [record["entry"] for record in outcome.runs] == ["backbone-3d"]
    (kept,) = (tmp_path / "bench" / "runs" / "dynunet-3d").rglob("state.json")
    assert kept.read_text() == "hours of work", "another run goes on from there"


# ---- tables --------------------------------------------------------------------------------------------------------


def record(entry: str, seed: int, dice: float, equal: str = "steps", steps: int = 10) -> dict[str, Any]:
    row = {"set": "sg70", "case": "a", "thickness_mm": 1.0, "iou": 0.1, "recall": 0.5, "precision": 0.5, "f1": 0.5,
           "avd": 0.2, "official": {"recall": 0.5, "precision": 0.5, "dice": dice, "avd_capped": 0.2}}  # fmt: skip
    rows = [{**row, "region": region, "dice": dice} for region in ("CSO", "BG", "brain")]
    return {"entry": entry, "seed": seed, "equal": equal, "steps": steps, "kind": "3d", "rows": rows, "seconds": [1.0]}


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_ablation_tells_gains_per_seed_over_the_right_row() -> None:
    runs = [
        record("backbone-3d", 0, 0.40), record("backbone-3d", 1, 0.44),
        record("text-3d", 0, 0.50), record("text-3d", 1, 0.43),
        record("3d", 0, 0.60), record("3d", 1, 0.62),
        record("printed-3d", 0, 0.55), record("printed-3d", 1, 0.60),
    ]  # fmt: skip
    table = report.ablation(runs, "3d")
    assert cells(table, "backbone")[-2:] == ["0.400 to 0.440", "-"]
    assert cells(table, "+ text")[-1] == "+0.045 (-0.010 to +0.100)"
    assert cells(table, "equation (3) as printed (V_T)")[-1] == "-0.035 (-0.050 to -0.020)"
    assert cells(table, "+ dynamic fusion: ours")[1] == "0.610"


def test_networks_are_ordered_by_dice_and_equal_seconds_name_their_steps() -> None:
    costs = {
        name: {"parameters": 2_500_000, "gflop": 9.6, "step_seconds": 0.5, "window_seconds": 1.0, "window_mib": None}
        for name in NAMES
    }
    outcome = Outcome({}, "cpu", costs)
    runs = [record("3d", 0, 0.5), record("dynunet-3d", 0, 0.6), record("dynunet-3d", 0, 0.7, "seconds", 25)]
    table = report.networks(runs, outcome)
    assert table.index("dynunet-3d") < table.index("| 3d ")
    peer, ours = cells(table, "dynunet-3d"), cells(table, "3d")
    assert peer[1] == "0.600" and peer[7:11] == ["one seed", "0.700 (25)", "2.50", "10"] and peer[-1] == "-"
    assert ours[8] == "as steps"
    unfinished = report.networks(runs[:2], outcome)
    assert cells(unfinished, "dynunet-3d")[8] == "-"

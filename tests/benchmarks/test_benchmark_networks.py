"""``python -m benchmarks.networks``: plan, resumed trainings, scores, ensembles for the container, and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import process
from benchmarks.networks import __main__ as command
from benchmarks.networks import plan, report, run
from benchmarks.networks.cost import measure, peak_mib
from benchmarks.networks.plan import Budget, Job, evaluation_sets, plan_jobs, select_models
from benchmarks.networks.run import Benchmark, BenchmarkResult, Setup, check_budget, run_benchmark
from pvs_model.config import NetworkConfig
from pvs_model.datasets.simulated_sets import HeadModels
from pvs_model.errors import PVSError
from pvs_model.nets.text import TextCache
from pvs_model.nets.zoo import MODELS
from pvs_model.simulation.head import HeadModel
from pvs_model.training import loop, segmentation
from pvs_model.training.prompts import CONSTANT_PROMPT
from pvs_model.training.sampling import FoldData

CPU = torch.device("cpu")
#: A training takes a second; the scores of these networks mean nothing.
SMALL_BUDGET = Budget(
    steps=2, seeds=2, baseline_seeds=1, patch=16, batch=1, crop_mm=16.0, window=32, validation_patches=1
)
NAMES = ["3d", "backbone-3d", "dynunet-3d"]


# ---- the plan ------------------------------------------------------------------------------------------------------


def test_models_are_selected_in_the_order_of_the_zoo() -> None:
    assert [model.name for model in select_models(["3d", "dynunet-3d"])] == ["dynunet-3d", "3d"]
    assert select_models(["all"]) == list(MODELS.values())


@pytest.mark.parametrize("names", [["resnet-3d"], ["3d", "4d"], [], ["all", "3d"]])
def test_unknown_names_are_rejected_with_the_known_ones(names: list[str]) -> None:
    with pytest.raises(PVSError, match=r"--networks: expected all, or some of .*dynunet-3d.*; got"):
        select_models(names)


@pytest.mark.parametrize("changes", [{"patch": 20}, {"window": 8}, {"steps": 0}, {"seeds": 0}, {"crop_mm": -1.0}])
def test_invalid_budgets_are_rejected(changes: dict[str, Any]) -> None:
    with pytest.raises(PVSError, match="expected"):
        replace(Budget(), **changes)


def test_every_first_seed_comes_before_any_second_and_equal_seconds_last() -> None:
    jobs = plan_jobs(select_models(NAMES), SMALL_BUDGET)
    assert [(job.model.name, job.equal, job.seed) for job in jobs] == [
        ("dynunet-3d", "steps", 0),
        ("3d", "steps", 0),
        ("backbone-3d", "steps", 0),
        ("3d", "steps", 1),
        ("backbone-3d", "steps", 1),
        ("dynunet-3d", "seconds", 0),
    ]
    assert len({job.folder(Path("out")) for job in jobs}) == len(jobs)
    assert len(plan_jobs(select_models(NAMES), replace(SMALL_BUDGET, equal_seconds=False))) == 5


def test_equal_seconds_are_as_many_steps_as_fit(tmp_path: Path) -> None:
    setup = Setup(FoldData(), HeadModels(None, None), [], tmp_path, tmp_path, CPU)
    benchmark = Benchmark(setup, replace(SMALL_BUDGET, steps=100), tmp_path, {})
    costs = {"3d": {"step_seconds": 0.3}, "dynunet-3d": {"step_seconds": 0.4}}
    job = Job(MODELS["dynunet-3d"], 0, "seconds")
    assert benchmark.number_of_steps(job, costs) == 75
    assert benchmark.number_of_steps(replace(job, equal="steps"), costs) == 100


def test_a_folder_with_another_budget_is_rejected(tmp_path: Path) -> None:
    check_budget(tmp_path, SMALL_BUDGET)
    check_budget(tmp_path, replace(SMALL_BUDGET, seeds=5, baseline_seeds=3))
    with pytest.raises(PVSError, match=r"budget\.json: .* steps 2 \(requested: 9\)"):
        check_budget(tmp_path, replace(SMALL_BUDGET, steps=9))


def test_a_damaged_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(PVSError, match=r"budget\.json: expected a JSON file of the benchmark"):
        check_budget(tmp_path, SMALL_BUDGET)


def test_networks_are_scored_on_scans_of_their_configuration() -> None:
    assert evaluation_sets(MODELS["2d"]) == plan.THICK
    for name in ("3d", "swin_unetr-sagittal"):
        assert evaluation_sets(MODELS[name]) == (*plan.THIN, plan.REAL)


# ---- costs ---------------------------------------------------------------------------------------------------------


def test_costs_of_a_small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.networks.cost.WINDOW", {2: 32, 3: 16})
    config = NetworkConfig(
        widths=(4, 8, 8, 8),
        text_width=10,
        text=False,
        graph=False,
        cross_attention=False,
        fusion=False,
        nested_from=0,
        fluid=False,
    )
    result = measure(config, 16, 1, CPU)
    # The first convolution: 3 -> 4 channels, 27 voxels, 16^3 positions, 2 operations.
    assert result.gflop > 2 * 3 * 4 * 27 * 16**3 / 1e9
    assert result.parameters > 3 * 4 * 27 and result.step_seconds > 0 and result.window_seconds > 0


def test_peak_memory_of_a_call() -> None:
    def hold() -> None:
        torch.ones(32 * 2**18)  # 32 MiB

    peak = peak_mib(hold, CPU)
    assert peak is None or 25 < peak < 60


# ---- a complete benchmark ------------------------------------------------------------------------------------------


class ToyHeads(HeadModels):
    """HeadModels that are all one small phantom."""

    def __init__(self, anatomy: HeadModel) -> None:
        super().__init__(None, None)
        self.toy = anatomy

    def name(self, seed: int) -> str:
        return "toy"

    def find(self, name: str) -> HeadModel:
        return self.toy


class Cached:
    """The shipped embeddings instead of an encoder."""

    def __init__(self, folder: Path) -> None:
        self.cache = TextCache.load(Path(__file__).parents[2] / "weights" / "text.safetensors")

    def encode(self, prompts: list[str]) -> list[torch.Tensor]:
        return [self.cache[p if p in self.cache else CONSTANT_PROMPT] for p in prompts]


@pytest.fixture
def small(anatomy: HeadModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Setup:
    """Three models with small widths, one protocol, one head."""
    for name in NAMES:
        model = MODELS[name]
        widths = (4, 8, 8, 8) if model.config.architecture == "graph_fusion" else (4, 6, 8)
        monkeypatch.setitem(MODELS, name, replace(model, config=replace(model.config, widths=widths)))
    for module in (plan, run):
        monkeypatch.setattr(module, "THIN", ("sg70",))
        monkeypatch.setattr(module, "THICK", ("shanghai_skyra",))
    monkeypatch.setattr("benchmarks.networks.cost.WINDOW", {2: 32, 3: 16})
    monkeypatch.setattr(segmentation, "TextEncoder", Cached)
    monkeypatch.setattr(loop, "can_plot", lambda: False)
    return Setup(FoldData([anatomy], [anatomy]), ToyHeads(anatomy), [], tmp_path, Path("none"), CPU)


@pytest.mark.filterwarnings("ignore")
def test_a_benchmark_trains_scores_resumes_and_reports(
    small: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bench"
    result = run_benchmark(small, NAMES, SMALL_BUDGET, output)
    assert not result.failed and not result.remaining
    assert {(r["model"], r["equal"], r["seed"]) for r in result.runs} == {
        *((name, "steps", 0) for name in NAMES),
        ("3d", "steps", 1),
        ("backbone-3d", "steps", 1),
        ("dynunet-3d", "seconds", 0),
    }
    for record in result.runs:
        assert [row["region"] for row in record["rows"]] == ["CSO", "BG", "brain"]
        assert len(record["seconds"]) == 1 and 0.1 <= record["threshold"] <= 0.9
    ours = next(r for r in result.runs if r["model"] == "3d" and r["seed"] == 0)
    assert len(ours["mirrored"]["rows"]) == 3
    systems = [(e["system"], e["networks"]) for e in result.ensembles]
    assert systems == [("bear_walker", 1), ("ours", 2), ("ours, 1 of 2", 1)]
    assert not list(output.rglob("state*")), "states of finished trainings are removed"

    # a second run trains and scores nothing
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(run, "train", never)
    monkeypatch.setattr(run, "score_regions", never)
    again = run_benchmark(small, NAMES, SMALL_BUDGET, output)
    assert again == result

    paths = report.write_report(output, again)
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.md", "ranks_3d.png"]
    assert json.loads(paths[0].read_text())["runs"] == json.loads(json.dumps(result.runs))
    page = paths[1].read_text()
    for text in ("dynunet-3d", "+ dynamic fusion: ours", "mirrored (first seed)", "bear_walker", "IAANet"):
        assert text in page

    # the container runs the ensembles by their manifests
    case = next((output / "sets" / "sg70").iterdir())
    scans = tmp_path / "in" / case.name
    scans.mkdir(parents=True)
    for sequence in ("T1w", "T2w", "FLAIR"):
        (scans / f"{case.name}_{sequence}.nii.gz").symlink_to(case / f"{case.name}_{sequence}.nii.gz")
    for system in ("bear_walker", "ours"):
        options = ["--input", str(scans.parent), "--output", str(tmp_path / system), "--device", "cpu"]
        weights = ["--weights", str(output / "weights" / system)]
        assert process.main([*options, *weights]) == 0
        assert len(list((tmp_path / system).rglob("*.nii.gz"))) == 1


def test_trainings_that_exceed_the_time_are_done_later(small: Setup, tmp_path: Path) -> None:
    budget = replace(SMALL_BUDGET, seeds=1, equal_seconds=False)
    result = run_benchmark(small, ["backbone-3d"], budget, tmp_path / "bench", minutes=0)
    assert result.remaining == 1 and not result.runs
    assert run_benchmark(small, ["backbone-3d"], budget, tmp_path / "bench").remaining == 0


def test_a_failed_network_is_reported_and_the_others_continue(
    small: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = run.train

    def fails(config: NetworkConfig, *args: Any, **kwargs: Any) -> Any:
        if config.architecture == "dynunet":
            (args[2] / "state.safetensors").parent.mkdir(parents=True)
            (args[2] / "state.safetensors").write_text("hours of work")
            raise RuntimeError("out of everything\nand more")
        return real(config, *args, **kwargs)

    monkeypatch.setattr(run, "train", fails)
    budget = replace(SMALL_BUDGET, seeds=1, equal_seconds=False)
    result = run_benchmark(small, ["dynunet-3d", "backbone-3d"], budget, tmp_path / "bench")
    assert result.failed == [{"model": "dynunet-3d", "error": "out of everything"}]
    assert [record["model"] for record in result.runs] == ["backbone-3d"]
    (kept,) = (tmp_path / "bench" / "runs" / "dynunet-3d").rglob("state.safetensors")
    assert kept.read_text() == "hours of work", "another run resumes it"


@pytest.mark.parametrize("count", [1, 2])
def test_at_least_two_label_maps_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    for k in range(count):
        (tmp_path / f"{k}.nii.gz").touch()
    splits: list[tuple[list[str], list[str]]] = []

    def setup(material: FoldData, *_: Any) -> None:
        splits.append(([str(a) for a in material.anatomies], [str(a) for a in material.held_out_anatomies]))
        raise PVSError("enough")

    monkeypatch.setattr("pvs_model.datasets.label_maps.load_head_model", lambda path, cache: path.name)
    monkeypatch.setattr(run, "Setup", setup)
    arguments = ["--networks", "3d", "--anatomies", str(tmp_path), "--output", str(tmp_path / "out")]
    assert command.main([*arguments, "--encoder", str(tmp_path), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    if count == 1:
        assert message == f"error: {tmp_path}: expected at least 2 label maps, one to choose thresholds on, got 1\n"
    else:
        assert splits == [(["1.nii.gz"], ["0.nii.gz"])] and message == "error: enough\n"


# ---- tables --------------------------------------------------------------------------------------------------------


def record(model: str, seed: int, dice: float, equal: str = "steps", steps: int = 10) -> dict[str, Any]:
    row = {
        "set": "sg70",
        "case": "a",
        "thickness_mm": 1.0,
        "iou": 0.1,
        "recall": 0.5,
        "precision": 0.5,
        "f1": 0.5,
        "avd": 0.2,
    }
    rows = [{**row, "region": region, "dice": dice} for region in ("CSO", "BG", "brain")]
    return {
        "model": model,
        "seed": seed,
        "equal": equal,
        "steps": steps,
        "configuration": "3d",
        "rows": rows,
        "seconds": [1.0],
    }


def cells(table: str, name: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_gains_of_the_ablation_are_per_seed_and_over_the_right_row() -> None:
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


def test_networks_are_ordered_by_dice_with_steps_at_equal_seconds() -> None:
    costs = {
        name: {"parameters": 2_500_000, "gflop": 9.6, "step_seconds": 0.5, "window_seconds": 1.0, "window_mib": None}
        for name in NAMES
    }
    result = BenchmarkResult({}, "cpu", costs)
    runs = [record("3d", 0, 0.5), record("dynunet-3d", 0, 0.6), record("dynunet-3d", 0, 0.7, "seconds", 25)]
    table = report.networks(runs, result)
    assert table.index("dynunet-3d") < table.index("| 3d ")
    baseline, ours = cells(table, "dynunet-3d"), cells(table, "3d")
    assert baseline[1] == "0.600" and baseline[7:11] == ["one seed", "0.700 (25)", "2.50", "10"] and baseline[-1] == "-"
    assert ours[8] == "as steps"
    unfinished = report.networks(runs[:2], result)
    assert cells(unfinished, "dynunet-3d")[8] == "-"

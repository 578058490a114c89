"""Trainings, scores and ensembles of the benchmark; each step is resumed from its folder."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.cases import LabelledCase, load_cases, mask_of, score_regions, write_json
from benchmarks.networks import cost
from benchmarks.networks.plan import (
    FIRST_SEED,
    REAL,
    THICK,
    THIN,
    Budget,
    Job,
    evaluation_sets,
    plan_jobs,
    select_models,
)
from benchmarks.networks.recipes import ENSEMBLES, EnsembleSpec
from benchmarks.networks.sample_cache import SampleCache, train
from pvs_model.config import TRAINED_RANGE
from pvs_model.datasets.simulated_sets import HeadModels, plan_insertions, plan_simulated, write_set
from pvs_model.errors import PVSError, first_line
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.inference.weights import Weights
from pvs_model.nets.text import prompt
from pvs_model.nets.zoo import MODELS, ModelSpec
from pvs_model.pipeline import predict_probability
from pvs_model.simulation.insertion import RealScan
from pvs_model.training.checkpoint import STATE
from pvs_model.training.config import TrainingConfig
from pvs_model.training.prompts import CONSTANT_PROMPT
from pvs_model.training.release import release
from pvs_model.training.sampling import FoldData

log = logging.getLogger(__name__)

#: Version of the JSON files of a benchmark.
FORMAT = 2
#: Contrast of the PVS inserted into real scans, the default of ``simulate --backgrounds``.
INSERTION_CONTRAST = (0.2, 0.7)
RESULT, COSTS = "result.json", "costs.json"

Record = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """Data and device of a benchmark.

    Attributes:
        material: Heads to train on, and others to choose thresholds on.
        heads: Heads of the simulated test cases, never used in training.
        scans: Real scans to insert PVS into; may be empty.
        anatomy: Weights folder with the anatomy network, for networks with a region channel.
        encoder: Folder of the BERT encoder.
        device: Device of training and inference.
    """

    material: FoldData
    heads: HeadModels
    scans: Sequence[RealScan]
    anatomy: Path
    encoder: Path
    device: torch.device


@dataclass
class BenchmarkResult:
    """All results, as written to ``benchmark.json``."""

    budget: dict[str, Any]
    device: str
    costs: dict[str, Record] = field(default_factory=dict)
    runs: list[Record] = field(default_factory=list)
    ensembles: list[Record] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    remaining: int = 0  # trainings not finished in time


def run_benchmark(
    setup: Setup, names: Sequence[str], budget: Budget, output: Path, minutes: float = math.inf
) -> BenchmarkResult:
    """Runs the unfinished parts of a benchmark.

    Args:
        setup: Data and device.
        names: Names of models, or "all".
        budget: Extent of training and scoring.
        output: Folder of test cases (``sets``), trainings (``runs``) and ensembles (``weights``).
        minutes: Maximum time of training; the results so far are combined and reported.

    Returns:
        New and earlier results.

    Raises:
        PVSError: If a name is unknown, or the folder contains a benchmark with another budget.
    """
    end = time.monotonic() + 60 * minutes
    models = select_models(names)
    check_budget(output, budget)
    device = torch.cuda.get_device_name() if setup.device.type == "cuda" else "cpu"
    result = BenchmarkResult(asdict(budget), device)
    benchmark = Benchmark(setup, budget, output, make_sets(setup, models, budget, output / "sets"))
    result.costs = benchmark.measure_costs(models)
    jobs = plan_jobs(models, budget)
    expected = [benchmark.expected_seconds(job, result.costs) for job in jobs]
    bar_format = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} elapsed, about {remaining} remaining{postfix}"
    with tqdm(total=round(sum(expected)), desc="benchmark", bar_format=bar_format, mininterval=5) as bar:
        for job, seconds in zip(jobs, expected, strict=True):
            bar.set_postfix_str(f" {job.model.name}, equal {job.equal}, seed {job.seed}")
            try:
                record = benchmark.run_job(job, result.costs, (end - time.monotonic()) / 60)
                if record is None:
                    result.remaining += 1
                else:
                    result.runs.append(record)
            except (PVSError, RuntimeError) as error:
                message = first_line(error)
                log.warning("%s: failed: %s", job.model.name, message)
                result.failed.append({"model": job.model.name, "error": message})
            bar.update(round(seconds))
    result.ensembles = benchmark.score_ensembles(result.runs)
    return result


def check_budget(output: Path, budget: Budget) -> None:
    """Writes the budget into a folder, or checks that it equals the one there but for the number of trainings.

    Raises:
        PVSError: If the budgets differ.
    """
    path = output / "budget.json"
    requested = {"format": FORMAT, **asdict(budget)}
    if path.is_file():
        stored = read_json(path)
        free = ("seeds", "baseline_seeds", "equal_seconds")  # more trainings extend the benchmark
        differing = [k for k, v in requested.items() if stored.get(k) != v and k not in free]
        if differing:
            got = ", ".join(f"{k} {stored.get(k)} (requested: {requested[k]})" for k in differing)
            raise PVSError(f"{path}: expected the requested budget, got {got}; choose another --output")
    write_json(path, requested)


def make_sets(setup: Setup, models: Sequence[ModelSpec], budget: Budget, folder: Path) -> dict[str, Path]:
    """Simulates the missing test cases. Returns the folder of each set by name."""
    names = {name for model in models for name in evaluation_sets(model)}
    sets = {}
    for number, protocol in enumerate((*THIN, *THICK)):
        if protocol in names:
            # Sets start with different heads, so that a small number of cases is not one head throughout.
            seed = FIRST_SEED + 101 * number
            write_set(folder / protocol, plan_simulated(budget.cases, seed, protocol, setup.heads), sheet=False)
            sets[protocol] = folder / protocol
    if REAL in names and setup.scans:
        plan = plan_insertions(budget.cases * len(setup.scans), FIRST_SEED, setup.scans, INSERTION_CONTRAST)
        write_set(folder / "real", plan, sheet=False)
        sets[REAL] = folder / "real"
    return sets


class Benchmark:
    """Trains and scores the jobs of one budget in one folder."""

    def __init__(self, setup: Setup, budget: Budget, output: Path, sets: dict[str, Path]) -> None:
        self.setup, self.budget, self.output, self.sets = setup, budget, output, sets
        self.cache = SampleCache()
        self._cases: dict[tuple[str, bool], list[LabelledCase]] = {}

    def measure_costs(self, models: Sequence[ModelSpec]) -> dict[str, Record]:
        """Measures the cost of each model, by name; results are cached in ``costs.json``."""
        path = self.output / COSTS
        costs: dict[str, Record] = read_json(path) if path.is_file() else {}
        for model in tqdm(models, desc="costs", unit="network", mininterval=5):
            if model.name not in costs:
                costs[model.name] = self._measure_cost(model)
                write_json(path, costs)
        return costs

    def _measure_cost(self, model: ModelSpec) -> Record:
        patch = self.budget.patch_size(model)
        return asdict(cost.measure(model.config, patch, self.budget.batch, self.setup.device))

    def number_of_steps(self, job: Job, costs: dict[str, Record]) -> int:
        """Steps of a job: the budget's, or as many as take the time of the graph-fusion network of equal dimensions."""
        if job.equal == "steps":
            return self.budget.steps
        ours = f"{job.model.config.dimensions}d"
        if ours not in costs:
            costs[ours] = self._measure_cost(MODELS[ours])
        ratio = costs[ours]["step_seconds"] / costs[job.model.name]["step_seconds"]
        return max(1, round(self.budget.steps * ratio))

    def expected_seconds(self, job: Job, costs: dict[str, Record]) -> float:
        """Estimates the duration of a job for the progress bar; 0 if it is finished."""
        if (job.folder(self.output) / RESULT).is_file():
            return 0.0
        c = costs[job.model.name]
        return float(c["step_seconds"] * self.number_of_steps(job, costs) + 8 * c["window_seconds"] + 5)

    def run_job(self, job: Job, costs: dict[str, Record], minutes: float = math.inf) -> Record | None:
        """Trains and scores a model unless that is done.

        Returns:
            The record, which is kept beside the weights. None if time ran out; the training can be resumed.
        """
        folder = job.folder(self.output)
        if (folder / RESULT).is_file():
            return read_json(folder / RESULT)
        if minutes <= 0:
            return None
        model, budget, steps = job.model, self.budget, self.number_of_steps(job, costs)
        training = TrainingConfig(
            steps=steps, batch=budget.batch, patch=budget.patch_size(model), seed=job.seed,
            warmup_steps=min(100, steps // 10), save_every=max(200, steps // 10), max_minutes=minutes,
            validation_patches=budget.validation_patches,
            **model.training,  # type: ignore[arg-type]
        )  # fmt: skip
        facts = train(
            model.config, training, self.setup.material, folder, self.setup.encoder, self.setup.device,
            self.cache,
        )  # fmt: skip
        if facts["steps"] < steps:
            return None
        (folder / STATE).unlink(missing_ok=True)  # several times the size of the network, and no longer needed
        weights = folder / "weights"
        settings = EnsembleSettings(
            facts["threshold"], budget.window_size(model), 0.25, *TRAINED_RANGE[model.configuration]
        )
        data = f"simulated; benchmark, {steps} steps"
        release(weights, model.configuration, [folder / "network.safetensors"], settings, data, {})
        sets = evaluation_sets(model)
        record: Record = {
            "model": model.name, "seed": job.seed, "equal": job.equal, "steps": steps,
            "configuration": model.configuration, "validation_dice": facts["dice"], "threshold": facts["threshold"],
            **self.score(weights, model.configuration, sets, model),
        }  # fmt: skip
        if job.equal == "steps" and job.seed == 0 and model.name in ("3d", "2d"):
            record["mirrored"] = self.score(weights, model.configuration, sets, model, mirror=True)
        write_json(folder / RESULT, record)
        return record

    def score(
        self,
        folder: Path,
        configuration: str,
        sets: Sequence[str],
        model: ModelSpec | None = None,
        mirror: bool = False,
    ) -> Record:
        """Scores a weights folder: one row per case and region (``cases.score``), and the seconds of each case."""
        weights = Weights(folder)
        ensemble = weights.ensemble(configuration)
        constant = model is not None and model.training.get("prompts") == "constant"
        regions = any(network.config.regions for network in ensemble.networks)
        rows, seconds = [], []
        for name in sets:
            for case in self.load_set(name, regions):
                text = CONSTANT_PROMPT if constant else prompt(case.sequences, case.thickness_mm)
                embedding = weights.embed(text)
                began = time.perf_counter()
                probability = predict_probability(
                    case.prepared, ensemble, embedding, self.setup.device, mirror=mirror, backend="torch"
                )
                seconds.append(time.perf_counter() - began)
                labels = {"set": name, "case": case.name, "thickness_mm": round(case.thickness_mm, 3)}
                # Without the anatomy, which only networks with a region channel have, for a fair comparison.
                mask = mask_of(replace(case.prepared, anatomy=None), probability, ensemble)
                scores = score_regions(case, mask)
                rows += [{**labels, "region": region, **values} for region, values in scores.items()]
        return {"rows": rows, "seconds": seconds}

    def load_set(self, name: str, regions: bool) -> list[LabelledCase]:
        """Loads the cases of a set once; with estimated anatomy where a network has a region channel."""
        if (name, regions) not in self._cases:
            if name not in self.sets:
                return []
            anatomy = self.setup.anatomy if regions else None
            cases = load_cases(self.sets[name], None, self.budget.crop_mm, anatomy)
            self._cases[name, regions] = [replace(case, volumes={}, maps={}) for case in cases]  # to save memory
        return self._cases[name, regions]

    def score_ensembles(self, runs: Sequence[Record]) -> list[Record]:
        """Builds and scores the ensembles of the teams, and ours of 1, 2, ... seeds, as far as members are trained."""
        trained: dict[str, list[Record]] = {}
        for record in sorted((r for r in runs if r["equal"] == "steps"), key=lambda r: int(r["seed"])):
            trained.setdefault(record["model"], []).append(record)
        records = []
        for spec in tqdm(ENSEMBLES, desc="ensembles", mininterval=5):
            if all(name in trained for name, _ in spec.members):
                records.append(self.score_ensemble(spec, trained, self.output / "weights" / spec.name))
        for ours in ("3d", "2d"):
            folds = len(trained.get(ours, []))
            spec = EnsembleSpec("ours", ours, ((ours, ""),), "mean", None, True, "")
            for count in range(1, folds):
                subset = {ours: trained[ours][:count]}
                record = self.score_ensemble(spec, subset, self.output / "weights" / f"ours_{count}_of_{folds}")
                records.append({**record, "system": f"ours, {count} of {folds}"})
        return records

    def score_ensemble(self, spec: EnsembleSpec, trained: dict[str, list[Record]], folder: Path) -> Record:
        """Writes an ensemble as a weights folder that the container can run, and scores it."""
        members, groups, thresholds = [], [], []
        for name, group in spec.members:
            for record in trained[name] if spec.every_seed else trained[name][:1]:
                members.append(self.output / "runs" / name / f"steps-seed{record['seed']}" / "network.safetensors")
                groups.append(group)
                thresholds.append(float(record["threshold"]))
        threshold = spec.threshold if spec.threshold is not None else sum(thresholds) / len(thresholds)
        window = self.budget.window if spec.configuration == "3d" else 2 * self.budget.window
        settings = EnsembleSettings(threshold, window, 0.25, *TRAINED_RANGE[spec.configuration], spec.combine)
        data = f"simulated; benchmark, {spec.name}"
        release(folder, spec.configuration, members, settings, data, {}, groups=groups)
        path = folder / f"{spec.configuration}_{RESULT}"
        made_from = [str(m.stat().st_mtime_ns) for m in members]
        if path.is_file() and (stored := read_json(path)).get("made_from") == made_from:
            return stored
        sets = THICK if spec.configuration == "2d" else (*THIN, REAL)
        record = {
            "system": spec.name, "configuration": spec.configuration, "members": [name for name, _ in spec.members],
            "networks": len(members), "combine": spec.combine, "threshold": threshold, "made_from": made_from,
            **self.score(folder, spec.configuration, sets),
        }  # fmt: skip
        write_json(path, record)
        return record


def read_json(path: Path) -> Record:
    """Reads a JSON file of the benchmark.

    Raises:
        PVSError: If it is damaged.
    """
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise PVSError(
            f"{path}: expected a JSON file of the benchmark, got {error!r}; remove it to continue"
        ) from error

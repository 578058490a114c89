"""The benchmark itself: scans, costs, trainings, scores and the teams' ensembles; each resumed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pvs_model.benchmark import cost
from pvs_model.benchmark.plan import FIRST_SEED, REAL, THICK, THIN, Budget, Job, chosen, jobs_of, sets_of
from pvs_model.benchmark.score import ScoredCase, load_cases, predict, scores
from pvs_model.errors import PVSError, first_line
from pvs_model.inference.weights import Weights
from pvs_model.nets.registry import ENTRIES, RECIPES, Entry, Recipe
from pvs_model.nets.text import prompt
from pvs_model.synth.background import Background
from pvs_model.training.loop import train
from pvs_model.training.material import Material, Shared
from pvs_model.training.prompts import CONSTANT_PROMPT
from pvs_model.training.release import release
from pvs_model.training.sets import Heads, plan_heads, plan_mixes, write_set
from pvs_model.training.settings import TrainingConfig

log = logging.getLogger(__name__)

#: Contrast of the PVS that are mixed into real scans, as ``simulate --backgrounds`` has it by default.
MIX_CONTRAST = (0.2, 0.7)
RESULT, COSTS = "result.json", "costs.json"


@dataclass(frozen=True)
class Study:
    """What everything is trained and scored on.

    Attributes:
        material: heads to train on, and others to choose thresholds on.
        heads: that scans to be scored are simulated from; training never saw them.
        scans: real ones, into which PVS are mixed; may be empty.
        anatomy: weights folder with the anatomy network, for networks that see regions.
        encoder: folder of the BERT encoder.
        device: where to train and to predict.
    """

    material: Material
    heads: Heads
    scans: Sequence[Background]
    anatomy: Path
    encoder: Path
    device: torch.device


@dataclass
class Outcome:
    """Everything that was found, as it is written to ``benchmark.json``."""

    budget: dict[str, Any]
    device: str
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    ensembles: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    left: int = 0  # trainings that there was no time for


def run(study: Study, names: Sequence[str], budget: Budget, output: Path, minutes: float = math.inf) -> Outcome:
    """Do what has not been done yet.

    Args:
        study: what to train and to score on.
        names: of entries, or "all".
        budget: how much.
        output: folder that keeps scans (``sets``), trainings (``runs``) and ensembles (``weights``).
        minutes: after which no more is trained; what there is, is joined and told.

    Returns:
        what was found now and before.

    Raises:
        PVSError: an unknown name, or the folder holds a benchmark of another budget.
    """
    end = time.monotonic() + 60 * minutes
    entries = chosen(names)
    keep_budget(output, budget)
    outcome = Outcome(asdict(budget), torch.cuda.get_device_name() if study.device.type == "cuda" else "cpu")
    bench = Bench(study, budget, output, make_sets(study, entries, budget, output / "sets"))
    outcome.costs = bench.measure(entries)
    jobs = jobs_of(entries, budget)
    expected = [bench.expected_seconds(job, outcome.costs) for job in jobs]
    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, about {remaining} left{postfix}"
    with tqdm(total=round(sum(expected)), desc="benchmark", bar_format=form, mininterval=5) as bar:
        for job, seconds in zip(jobs, expected, strict=True):
            bar.set_postfix_str(f" {job.entry.name}, equal {job.equal}, seed {job.seed}")
            try:
                record = bench.do(job, outcome.costs, (end - time.monotonic()) / 60)
                if record is None:
                    outcome.left += 1
                else:
                    outcome.runs.append(record)
            except (PVSError, RuntimeError) as error:
                told = first_line(error)
                log.warning("%s: not finished: %s", job.entry.name, told)
                outcome.failed.append({"entry": job.entry.name, "why": told})
            bar.update(round(seconds))
    outcome.ensembles = bench.ensembles(outcome.runs)
    return outcome


def keep_budget(output: Path, budget: Budget) -> None:
    """Write the budget into a folder, or see that the one there is the same but for the number of seeds.

    Raises:
        PVSError: it is another.
    """
    path = output / "budget.json"
    wanted = asdict(budget)
    if path.is_file():
        found = read_json(path)
        free = ("seeds", "peer_seeds", "equal_seconds")  # more of these go on from what is there
        differing = [k for k, v in wanted.items() if found.get(k) != v and k not in free]
        if differing:
            told = ", ".join(f"{k} {found.get(k)} (asked for: {wanted[k]})" for k in differing)
            raise PVSError(f"{path}: expected the budget asked for, found {told}; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def make_sets(study: Study, entries: Sequence[Entry], budget: Budget, folder: Path) -> dict[str, Path]:
    """Simulate the scans that are not there yet. Returns their folders by the set's name."""
    wanted = {name for entry in entries for name in sets_of(entry)}
    found = {}
    for number, protocol in enumerate((*THIN, *THICK)):
        if protocol in wanted:
            # Another head first in each set, so that a small number of cases is not one head throughout.
            seed = FIRST_SEED + 101 * number
            write_set(folder / protocol, plan_heads(budget.cases, seed, protocol, study.heads), sheet=False)
            found[protocol] = folder / protocol
    if REAL in wanted and study.scans:
        plan = plan_mixes(budget.cases * len(study.scans), FIRST_SEED, study.scans, MIX_CONTRAST)
        write_set(folder / "real", plan, sheet=False)
        found[REAL] = folder / "real"
    return found


class Bench:
    """Trains and scores jobs of one budget in one folder."""

    def __init__(self, study: Study, budget: Budget, output: Path, sets: dict[str, Path]) -> None:
        self.study, self.budget, self.output, self.sets = study, budget, output, sets
        self.shared = Shared()
        self._cases: dict[str, list[ScoredCase]] = {}

    def measure(self, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        """What each entry costs, by name; kept in ``costs.json``."""
        path = self.output / COSTS
        known: dict[str, dict[str, Any]] = read_json(path) if path.is_file() else {}
        for entry in tqdm(entries, desc="costs", unit="network", mininterval=5):
            if entry.name not in known:
                patch = self.budget.patch_of(entry)
                known[entry.name] = asdict(cost.measure(entry.config, patch, self.budget.batch, self.study.device))
                write_json(path, known)
        return known

    def steps_of(self, job: Job, costs: dict[str, dict[str, Any]]) -> int:
        """Of a job: the budget's, or as many as take the seconds of our network of the same dimensions."""
        if job.equal == "steps":
            return self.budget.steps
        own = f"{job.entry.config.dimensions}d"
        if own not in costs:
            patch = self.budget.patch_of(job.entry)
            costs[own] = asdict(cost.measure(ENTRIES[own].config, patch, self.budget.batch, self.study.device))
        ratio = costs[own]["step_seconds"] / costs[job.entry.name]["step_seconds"]
        return max(1, round(self.budget.steps * ratio))

    def expected_seconds(self, job: Job, costs: dict[str, dict[str, Any]]) -> float:
        """A guess, for the progress bar; 0 for what is done."""
        if (job.folder(self.output) / RESULT).is_file():
            return 0.0
        c = costs[job.entry.name]
        return float(c["step_seconds"] * self.steps_of(job, costs) + 8 * c["window_seconds"] + 5)

    def do(self, job: Job, costs: dict[str, dict[str, Any]], minutes: float = math.inf) -> dict[str, Any] | None:
        """Train and score, unless that is done. Returns the record, which is kept beside the weights.

        None where the minutes were not enough; the training goes on from there another time.
        """
        folder = job.folder(self.output)
        if (folder / RESULT).is_file():
            return read_json(folder / RESULT)
        if minutes <= 0:
            return None
        entry, budget, steps = job.entry, self.budget, self.steps_of(job, costs)
        training = TrainingConfig(
            steps=steps, batch=budget.batch, patch=budget.patch_of(entry), seed=job.seed, warm_up=min(100, steps // 10),
            save_every=max(200, steps // 10), minutes=minutes, validation_patches=budget.validation_patches,
            **entry.training,  # type: ignore[arg-type]
        )  # fmt: skip
        facts = train(
            entry.config, training, self.study.material, folder, self.study.encoder, self.study.device,
            shared=self.shared, show=False,
        )  # fmt: skip
        if facts["steps"] < steps:
            return None
        for state in folder.glob("state*"):
            state.unlink()  # several times the network's size, and not needed any more
        weights = folder / "weights"
        kind = kind_of(entry)
        release(
            weights, kind, [folder / "network.safetensors"], facts["threshold"], budget.window_of(entry), 0.25,
            f"simulated; benchmark, {steps} steps", {},
        )  # fmt: skip
        record: dict[str, Any] = {
            "entry": entry.name, "seed": job.seed, "equal": job.equal, "steps": steps, "kind": kind,
            "validation_dice": facts["dice"], "threshold": facts["threshold"],
            **self.score(weights, kind, sets_of(entry), entry),
        }  # fmt: skip
        if job.equal == "steps" and job.seed == 0 and entry.name in ("3d", "2d"):
            record["mirrored"] = self.score(weights, kind, sets_of(entry), entry, mirror=True)
        write_json(folder / RESULT, record)
        return record

    def score(
        self, weights: Path, kind: str, sets: Sequence[str], entry: Entry | None = None, mirror: bool = False
    ) -> dict[str, Any]:
        """Rows of ``score.scores`` of all cases of some sets, and the seconds that each case took."""
        loaded = Weights(weights)
        ensemble = loaded.ensemble(kind)
        constant = entry is not None and entry.training.get("prompts") == "constant"
        rows, seconds = [], []
        regions = any(network.config.regions for network in ensemble.networks)
        for name in sets:
            for case in self.cases(name, regions):
                words = CONSTANT_PROMPT if constant else prompt(case.present, case.thickness_mm)
                found = predict(case, ensemble, loaded.embed(words), self.study.device, mirror)
                rows += scores(case, found.probability, ensemble.threshold)
                seconds.append(found.seconds)
        return {"rows": rows, "seconds": seconds}

    def cases(self, name: str, regions: bool) -> list[ScoredCase]:
        """Of a set, read once; with anatomies, as the container finds them, where a network sees regions."""
        key = f"{name} with regions" if regions else name
        if key not in self._cases:
            if name not in self.sets:
                return []
            anatomy = self.study.anatomy if regions else None
            self._cases[key] = load_cases(self.sets[name], name, 10_000, self.budget.crop_mm, anatomy)
        return self._cases[key]

    def ensembles(self, runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The teams' recipes, and ours of 1, 2, ... seeds, of what has been trained: as weights folders, and scored."""
        trained: dict[str, list[dict[str, Any]]] = {}
        for record in sorted((r for r in runs if r["equal"] == "steps"), key=lambda r: int(r["seed"])):
            trained.setdefault(record["entry"], []).append(record)
        found = []
        for recipe in tqdm(RECIPES, desc="ensembles", mininterval=5):
            if any(name not in trained for name, _ in recipe.members):
                continue
            found.append(self.ensemble(recipe, trained, self.output / "weights" / recipe.name))
        for kind in ("3d", "2d"):
            folds = len(trained.get(kind, []))
            recipe = Recipe("ours", kind, ((kind, ""),), "mean", None, True, "")
            for count in range(1, folds) if folds > 1 else ():
                few = {kind: trained[kind][:count]}
                record = self.ensemble(recipe, few, self.output / "weights" / f"ours_{count}_of_{folds}")
                found.append({**record, "system": f"ours, {count} of {folds}"})
        return found

    def ensemble(self, recipe: Recipe, trained: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
        """One recipe as a weights folder that the container can run, and its scores."""
        members, groups, thresholds = [], [], []
        for name, group in recipe.members:
            for record in trained[name] if recipe.every_seed else trained[name][:1]:
                members.append(self.output / "runs" / name / f"steps-seed{record['seed']}" / "network.safetensors")
                groups.append(group)
                thresholds.append(float(record["threshold"]))
        threshold = recipe.threshold if recipe.threshold is not None else sum(thresholds) / len(thresholds)
        window = self.budget.window if recipe.kind == "3d" else 2 * self.budget.window
        release(
            folder, recipe.kind, members, threshold, window, 0.25, f"simulated; benchmark, {recipe.name}", {},
            groups=groups, combine=recipe.combine,
        )  # fmt: skip
        kept = folder / f"{recipe.kind}_{RESULT}"
        digest = [str(m.stat().st_mtime_ns) for m in members]
        if kept.is_file() and (known := read_json(kept)).get("made_from") == digest:
            return dict(known)
        record = {
            "system": recipe.name, "kind": recipe.kind, "members": [name for name, _ in recipe.members],
            "networks": len(members), "combine": recipe.combine, "threshold": threshold, "made_from": digest,
            **self.score(folder, recipe.kind, THICK if recipe.kind == "2d" else (*THIN, REAL)),
        }  # fmt: skip
        write_json(kept, record)
        return record


def kind_of(entry: Entry) -> str:
    """Which scans an entry's network is for: thick slices as acquired, else those that are thinner."""
    return "2d" if entry.form == "2d" else "3d"


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` wrote.

    Raises:
        PVSError: it is something else.
    """
    try:
        content: dict[str, Any] = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise PVSError(f"{path}: expected a JSON file of the benchmark, found {error!r}; remove it to go on") from error
    return content


def write_json(path: Path, content: Any) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    part.replace(path)

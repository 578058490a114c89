"""Learning curves of several networks: validation scores against the seconds that their own steps took.

    python -m benchmarks.learning_curves --form 3d --anatomies MAPS --held-out MAPS --minutes 60 --output curves
    python -m benchmarks.learning_curves --form 3d ... --networks nested-16-128 plain-32-256 --rates 5e-4 3e-3
    python -m benchmarks.learning_curves --form 3d ... --patch 32 --batch 8 --validation-side 64

All networks learn side by side, from random weights, from the same samples, so that the simulation's time counts for
none of them. Each has the same budget of seconds (CPU time of one thread, or the GPU's), over which its learning rate
falls. The same command resumes. Writes ``curves.csv``, ``curves.png`` and ``curves.md`` into the output folder.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.networks.cost import gigaflop
from pvs_model.config import NETWORK_2D, NETWORK_3D, NetworkConfig
from pvs_model.datasets.label_maps import find_label_maps, load_head_model
from pvs_model.evaluation.tables import markdown
from pvs_model.files import write_text
from pvs_model.inference.device import choose_device
from pvs_model.nets.memory import keep_freed_memory
from pvs_model.nets.precision import autocast
from pvs_model.nets.text import TextEncoder, find_encoder
from pvs_model.nets.zoo import MODELS
from pvs_model.training.batch import Batch
from pvs_model.training.checkpoint import TrainingState
from pvs_model.training.config import TrainingConfig
from pvs_model.training.loop import Sampler
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.prompts import Prompts
from pvs_model.training.replay import ReplayBuffer
from pvs_model.training.run_log import read_rows
from pvs_model.training.sampling import FoldData, make_sampler, validation_batches
from pvs_model.training.segmentation import build_networks
from pvs_model.training.validation import THRESHOLDS, validate
from pvs_model.training.workers import SampleWorkers

_PLAIN = {"text": False, "graph": False, "cross_attention": False, "fusion": False, "nested_from": 0, "fluid": False}
#: Rows of the ablation (``nets.zoo``): the backbone, then one module more each; the last is the whole network.
ABLATION = ("backbone", "text", "graph", "attention")
#: Changes of the released configuration by name.
CANDIDATES: dict[str, dict[str, dict[str, object]]] = {
    "3d": {
        "nested-16-128": {},
        "grid-16-128": {"nested_from": 0},
        "grid-16-192": {"widths": (16, 48, 96, 192), "nested_from": 0},
        "nested-16-192": {"widths": (16, 48, 96, 192)},
        "nested-24-192": {"widths": (24, 48, 96, 192)},
        "guided-at-2": {"guided_level": 2},
        "residual": {"residual": True},
        "plain-16-128": {"architecture": "dynunet", **_PLAIN},
        "plain-32-256": {"architecture": "dynunet", "widths": (32, 64, 128, 256), **_PLAIN},
    },
    "2d": {
        "nested-32-256": {},
        "grid-32-256": {"nested_from": 0},
        "nested-16-128": {"widths": (16, 32, 64, 128)},
        "nested-48-384": {"widths": (48, 96, 192, 384)},
        "guided-at-2": {"guided_level": 2},
        "residual": {"residual": True},
        "plain-32-256": {"architecture": "dynunet", **_PLAIN},
    },
}
COLUMNS = (
    "network", "learning_rate", "step", "samples", "seconds", "best_dice", "best_threshold", "recall_thin",
    "recall_wide", "calibration_error",
)  # fmt: skip
WARMUP_STEPS, EMA_DECAY, GRADIENT_NORM = 100, 0.997, 5.0
#: Validations over the budget of a network.
POINTS = 12


@dataclass
class Learner:
    """A network that learns, and what its steps cost."""

    name: str
    rate: float
    state: TrainingState
    loss: DeepSupervision
    folder: Path

    @property
    def seconds(self) -> float:
        """Seconds that its steps took so far."""
        return self.state.progress.seconds


def candidate(name: str, form: str) -> NetworkConfig:
    """Returns the configuration of a candidate."""
    if name in ABLATION:
        return MODELS[f"{name}-{form}"].config
    return replace(NETWORK_3D if form == "3d" else NETWORK_2D, **CANDIDATES[form][name])  # type: ignore[arg-type]


def make_learner(name: str, rate: float, form: str, training: TrainingConfig, device: torch.device,
                 output: Path) -> Learner:  # fmt: skip
    """Builds a candidate, or resumes it from the output folder."""
    network, average = build_networks(candidate(name, form), training, device, None)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-4, betas=training.betas)
    folder = output / f"{name}_{rate:g}"
    folder.mkdir(parents=True, exist_ok=True)
    state = TrainingState(network, average, optimiser)
    state.load(folder)
    return Learner(name, rate, state, DeepSupervision(), folder)


def step(learner: Learner, batch: Batch, samples: int, budget: float, prompts: Prompts, device: torch.device) -> None:
    """Trains one step, and adds its time to the learner's seconds."""
    state = learner.state
    progress = min(1.0, learner.seconds / budget)
    rate = learner.rate * min(1.0, (state.progress.step + 1) / WARMUP_STEPS)
    for group in state.optimiser.param_groups:
        group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    tokens, mask = prompts(batch.prompts, device)
    began = clock(device)
    with autocast(device):
        logits = state.network(batch.images, tokens, mask)
    loss = learner.loss(logits, batch.target)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), GRADIENT_NORM)
    state.optimiser.step()
    value = float(loss.detach())
    state.advance(samples, value, learner.seconds + clock(device) - began, EMA_DECAY)


def clock(device: torch.device) -> float:
    """CPU time of this thread, or wall time once a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


@contextmanager
def samples_of(
    data: FoldData, config: NetworkConfig, training: TrainingConfig, device: torch.device
) -> Iterator[ReplayBuffer]:
    """Opens the samples that all networks learn from."""
    opened: AbstractContextManager[Sampler] = (
        SampleWorkers(data, config, training, device)
        if training.workers
        else nullcontext(make_sampler(data, config, training, device))
    )
    with opened as drawn:
        yield ReplayBuffer(drawn, config, training.reuse, training.replay_buffer, device, training.seed)


def run(args: argparse.Namespace) -> None:
    """Trains all candidates until each has spent its budget."""
    device, output = choose_device(args.device), args.output
    torch.set_num_threads(1)
    keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    held = {path.name for path in find_label_maps(args.held_out)}
    maps = [path for path in find_label_maps(args.anatomies) if path.name not in held]
    data = FoldData(
        [load_head_model(path, args.cache) for path in maps],
        [load_head_model(path, args.cache) for path in find_label_maps(args.held_out)],
    )
    training = TrainingConfig(
        patch=args.patch, batch=args.batch, seed=args.seed, workers=args.workers, reuse=args.reuse, region_share=0.0,
        validation_patches=args.validation, scene_buffer=args.scenes,
    )  # fmt: skip
    names = args.networks or list(CANDIDATES[args.form])
    learners = [make_learner(n, r, args.form, training, device, output) for n in names for r in args.rates]
    prompts, budget = Prompts(TextEncoder(args.encoder or find_encoder())), args.minutes * 60
    reference = NETWORK_3D if args.form == "3d" else NETWORK_2D
    checks = validation_batches(data, reference, replace(training, patch=args.validation_side or args.patch))
    path, deadline = output / "curves.csv", time.monotonic() + args.sitting * 60
    rows = [row for row in read_rows(path) if int(row["step"]) <= _resumed_step(row, learners)]
    spent = sum(learner.seconds for learner in learners)
    with (
        samples_of(data, reference, training, device) as source,
        tqdm(total=round(budget * len(learners)), initial=round(spent), mininterval=5) as bar,
    ):
        source.sample_index = max(x.state.progress.samples for x in learners)
        while any(x.seconds < budget for x in learners) and time.monotonic() < deadline:
            batch = source.batch(args.batch)
            for learner in (x for x in learners if x.seconds < budget):
                before = learner.seconds
                step(learner, batch, source.sample_index, budget, prompts, device)
                bar.update(learner.seconds - before)
                if int(before / budget * POINTS) < int(learner.seconds / budget * POINTS) or learner.seconds >= budget:
                    rows.append(_validate(learner, checks, prompts, device))
                    _write(path, rows)
                    learner.state.save(learner.folder)
    report(output, rows, args.form)


def _resumed_step(row: dict[str, str], learners: list[Learner]) -> int:
    """Step that the learner of a row was resumed at; later rows are from a killed run. Rows of others are kept."""
    same = [x for x in learners if (x.name, f"{x.rate:g}") == (row["network"], row["learning_rate"])]
    return same[0].state.progress.step if same else int(row["step"])


def _validate(learner: Learner, checks: list[Batch], prompts: Prompts, device: torch.device) -> dict[str, str]:
    network = learner.state.average
    scores = validate(network, checks, prompts, device)  # type: ignore[arg-type]
    best, progress = int(scores.dice.argmax()), learner.state.progress
    values = (
        learner.name, f"{learner.rate:g}", progress.step, progress.samples, round(progress.seconds, 1),
        round(float(scores.dice[best]), 4), round(float(THRESHOLDS[best]), 2), round(scores.recall_thin, 4),
        round(scores.recall_wide, 4), round(scores.calibration_error, 4),
    )  # fmt: skip
    return {name: str(value) for name, value in zip(COLUMNS, values, strict=True)}


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def report(output: Path, rows: list[dict[str, str]], form: str) -> None:
    """Draws the curves and writes the table of all rows, also of networks that earlier runs trained."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    lines = []
    for number, (name, rate) in enumerate(dict.fromkeys((r["network"], r["learning_rate"]) for r in rows)):
        own = [r for r in rows if (r["network"], r["learning_rate"]) == (name, rate)]
        seconds, dice = [float(r["seconds"]) for r in own], [float(r["best_dice"]) for r in own]
        style = ("-", "--", ":", "-.")[number % 4]
        minutes = [s / 60 for s in seconds]
        axes.plot(minutes, dice, style, marker="osv^dx"[number % 6], markersize=4, label=f"{name} at {rate}")
        half = max([d for s, d in zip(seconds, dice, strict=True) if s <= 0.51 * seconds[-1]], default=float("nan"))
        per_step = seconds[-1] / int(own[-1]["step"])
        lines.append([
            name, rate, f"{gigaflop(candidate(name, form)):.0f}", f"{per_step:.3f}", own[-1]["step"], f"{half:.3f}",
            f"{dice[-1]:.3f}",
        ])  # fmt: skip
    axes.set(
        xlabel="minutes of the network's own steps", ylabel="validation Dice at its best threshold", ylim=(0, None)
    )
    axes.grid(color="0.9")
    axes.legend(fontsize=8)
    figure.savefig(output / "curves.png", dpi=120)
    columns = ["network", "rate", "GFLOP per window", "s per step", "steps", "Dice at half", "Dice at the end"]
    table = markdown(columns, sorted(lines, key=lambda line: -float(line[-1])))
    write_text(output / "curves.md", table + "\n")
    print(table)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--form", choices=("3d", "2d"), default="3d")
    add("--networks", nargs="+", metavar="NAME", help="default: all candidates of the form, without the ablation")
    add("--rates", nargs="+", type=float, default=[1.5e-3], metavar="RATE", help="learning rates")
    add("--anatomies", type=Path, required=True)
    add("--held-out", type=Path, required=True)
    add("--cache", type=Path)
    add("--encoder", type=Path)
    add("--output", type=Path, required=True)
    add("--minutes", type=float, default=60, help="budget of each network")
    add("--sitting", type=float, default=math.inf, help="minutes after which this run stops, to be resumed")
    add("--patch", type=int, default=64)
    add("--batch", type=int, default=1)
    add("--workers", type=int, default=0)
    add("--reuse", type=int, default=1)
    add("--scenes", type=int, default=100, help="scenes kept")
    add("--validation", type=int, default=24, help="validation patches")
    add("--validation-side", type=int, help="side of the validation patches (default: that of --patch)")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    run(parser.parse_args())


if __name__ == "__main__":
    main()

"""Learning curves of several networks: validation scores against the seconds that their own steps took.

    python -m benchmarks.learning_curves --form 3d --anatomies MAPS --held-out MAPS --minutes 60 --output curves
    python -m benchmarks.learning_curves --form 3d ... --networks nested-16-128 plain-32-256 --rates 5e-4 3e-3
    python -m benchmarks.learning_curves --form 3d ... --patch 32 --batch 8 --validation-side 64
    python -m benchmarks.learning_curves --form 3d ... --patch 32 --batch 32 --steps 1700 --workers 8 --reuse 2   # GPU
    python -m benchmarks.learning_curves --form 3d --patch 32 --batch 32 --redraw --output curves

All networks learn side by side, from random weights, from the same samples, so that the simulation's time counts for
none of them. Each has the same budget of seconds (CPU time of one thread, or the GPU's) or of steps, over which its
learning rate falls. The same command resumes. Writes ``curves.csv``, ``curves.png`` and ``curves.md`` into the output
folder. ``--redraw`` trains nothing: it measures a step of each network on one core of this machine, and draws the
curves of a GPU against the minutes that the steps would have taken there.

A name that ends with ``+hard`` draws samples by the network's own loss on them, with importance weights.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.networks.cost import gigaflop, step_seconds
from pvs_model.config import NETWORK_2D, NETWORK_3D, NetworkConfig
from pvs_model.datasets.label_maps import find_label_maps, load_head_model
from pvs_model.evaluation.tables import markdown
from pvs_model.files import write_text
from pvs_model.inference.device import choose_device
from pvs_model.nets.memory import keep_freed_memory
from pvs_model.nets.precision import autocast
from pvs_model.nets.text import TextEncoder, find_encoder
from pvs_model.nets.zoo import MODELS
from pvs_model.training.batch import Batch, join
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
#: Ending of a name whose network draws samples by its own loss, and the share of its draws that are uniform.
HARD, UNIFORM_SHARE = "+hard", 0.5


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


@dataclass(frozen=True)
class Budget:
    """What each network may spend: seconds of its own steps or, if given, a number of steps."""

    seconds: float
    steps: int | None = None

    def fraction(self, learner: Learner) -> float:
        """Fraction that a learner has spent, 1 at the end."""
        progress = learner.state.progress
        return min(1.0, progress.step / self.steps if self.steps else progress.seconds / self.seconds)


class HardSamples:
    """Draws samples of a replay buffer, half of them in proportion to a network's last loss on each.

    The weights 1 / (n p), for n samples drawn with probabilities p, keep the expected loss that of uniform draws, and
    so the probabilities calibrated.
    """

    def __init__(self, buffer: ReplayBuffer, seed: int) -> None:
        self.buffer, self.generator = buffer, torch.Generator().manual_seed(seed)
        self.losses = torch.full((buffer.capacity,), math.nan)
        self.added, self.chosen = 0, torch.empty(0, dtype=torch.long)

    def batch(self, size: int) -> tuple[Batch, Tensor]:
        """Draws samples. Returns them and their weights (B,)."""
        capacity, count = self.buffer.capacity, min(self.buffer.added, self.buffer.capacity)
        replaced = torch.arange(max(self.added, self.buffer.added - capacity), self.buffer.added) % capacity
        self.losses[replaced], self.added = math.nan, self.buffer.added
        known = self.losses[:count]
        mean = known.nanmean().nan_to_num(1.0)
        losses = torch.where(known.isnan(), mean, known).clamp_min(1e-6)
        probability = UNIFORM_SHARE / count + (1 - UNIFORM_SHARE) * losses / losses.sum()
        self.chosen = torch.multinomial(probability, size, replacement=True, generator=self.generator)
        batch = self.buffer.take(self.chosen.tolist(), random.Random(int(self.chosen.sum()) + self.added))
        return batch, 1 / (count * probability[self.chosen])

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Keeps the cross-entropy of the samples drawn last: logits (B, 1 or 2, *spatial), target as in ``Batch``."""
        entropy = F.binary_cross_entropy_with_logits(logits[:, :1].float(), target[:, :1], reduction="none")
        self.losses[self.chosen] = (entropy * (1 - target[:, 1:2])).flatten(1).mean(1).cpu()


def candidate(name: str, form: str) -> NetworkConfig:
    """Returns the configuration of a candidate."""
    name = name.removesuffix(HARD)
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


def step(learner: Learner, batch: Batch, samples: int, fraction: float, prompts: Prompts, device: torch.device,
         hard: HardSamples | None = None) -> None:  # fmt: skip
    """Trains one step, and adds its time to the learner's seconds."""
    state, weights = learner.state, None
    if hard is not None:
        batch, weights = hard.batch(len(batch.prompts))
    rate = learner.rate * min(1.0, (state.progress.step + 1) / WARMUP_STEPS)
    for group in state.optimiser.param_groups:
        group["lr"] = rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fraction)))
    tokens, mask = prompts(batch.prompts, device)
    began = clock(device)
    with autocast(device):
        logits = state.network(batch.images, tokens, mask)
    loss = learner.loss(logits, batch.target, weights)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.network.parameters(), GRADIENT_NORM)
    state.optimiser.step()
    if hard is not None:
        hard.update(logits[0].detach(), batch.target)
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


def joined(checks: list[Batch], size: int = 8) -> list[Batch]:
    """Joins validation samples to batches."""
    parts = [checks[k : k + size] for k in range(0, len(checks), size)]
    return [join(part, part[0].images.device) for part in parts]


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
        validation_patches=args.validation, scene_buffer=args.scenes, refresh_interval=args.scene_samples,
        replay_buffer=args.replay_buffer,
    )  # fmt: skip
    names = args.networks or list(CANDIDATES[args.form])
    learners = [make_learner(n, r, args.form, training, device, output) for n in names for r in args.rates]
    prompts, budget = Prompts(TextEncoder(args.encoder or find_encoder())), Budget(args.minutes * 60, args.steps)
    reference = NETWORK_3D if args.form == "3d" else NETWORK_2D
    checks = joined(validation_batches(data, reference, replace(training, patch=args.validation_side or args.patch)))
    path, deadline = output / "curves.csv", time.monotonic() + args.sitting * 60
    rows = [row for row in read_rows(path) if int(row["step"]) <= _resumed_step(row, learners)]
    with samples_of(data, reference, training, device) as source, tqdm(total=len(learners), mininterval=5) as bar:
        source.sample_index = max(x.state.progress.samples for x in learners)
        hard = {x.name: HardSamples(source, args.seed) for x in learners if x.name.endswith(HARD)}
        while time.monotonic() < deadline:
            unfinished = [(x, spent) for x in learners if (spent := budget.fraction(x)) < 1]
            if not unfinished:
                break
            batch = source.batch(args.batch)
            for learner, before in unfinished:
                step(learner, batch, source.sample_index, before, prompts, device, hard.get(learner.name))
                after = budget.fraction(learner)
                bar.update(after - before)
                if int(before * POINTS) < int(after * POINTS):
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


def redraw(args: argparse.Namespace) -> None:
    """Draws the curves of a finished run against the minutes that its steps take on one core of this machine."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [dict(row) for row in read_rows(args.output / "curves.csv")]
    seconds = {
        name: step_seconds(candidate(name, args.form), args.patch, args.batch, torch.device("cpu"))
        for name in dict.fromkeys(row["network"] for row in rows)
    }
    for row in rows:
        row["seconds"] = str(round(int(row["step"]) * seconds[row["network"]], 1))
    report(args.output, rows, args.form)


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
    add("--anatomies", type=Path, help="label maps to train on")
    add("--held-out", type=Path, help="label maps of the validation; left out of --anatomies")
    add("--cache", type=Path)
    add("--encoder", type=Path)
    add("--output", type=Path, required=True)
    add("--minutes", type=float, default=60, help="budget of each network")
    add("--steps", type=int, help="budget of each network in steps, instead of minutes")
    add("--sitting", type=float, default=math.inf, help="minutes after which this run stops, to be resumed")
    add("--patch", type=int, default=64)
    add("--batch", type=int, default=1)
    add("--workers", type=int, default=0)
    add("--reuse", type=int, default=1)
    add("--replay-buffer", type=int, default=1000, help="samples kept for --reuse")
    add("--scenes", type=int, default=100, help="scenes kept")
    add("--scene-samples", type=int, default=3, help="samples for each new scene")
    add("--validation", type=int, default=24, help="validation patches")
    add("--validation-side", type=int, help="side of the validation patches (default: that of --patch)")
    add("--seed", type=int, default=0)
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--redraw", action="store_true", help="measure steps on one core, draw the curves against that time, and end")
    args = parser.parse_args()
    if args.redraw:
        redraw(args)
    elif args.anatomies and args.held_out:
        run(args)
    else:
        parser.error("--anatomies and --held-out are required")


if __name__ == "__main__":
    main()

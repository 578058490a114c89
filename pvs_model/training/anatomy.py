"""Train the anatomy network: ``python -m pvs_model.training.anatomy MAPS RUN``; a stopped run goes on exactly."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pvs_model.anatomy.network import AnatomyConfig, AnatomyNet, fill, load, save
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.nets.precision import cpu_has_bfloat16
from pvs_model.training.anatomy_maps import NO_SIDE, RIGHT, Head, load_head
from pvs_model.training.anatomy_scans import Scan, draw, render
from pvs_model.training.settings import TrainingConfig, learning_rate

log = logging.getLogger(__name__)

STATE = "state.safetensors"
LOG = "log.jsonl"
SIDE_WEIGHT = 0.3
#: Classes of fewer voxels weigh less in the balanced cross-entropy.
_FEW = 200
#: Label maps that are kept for validation.
HELD_OUT = 3
#: Settings of a run that does not begin from nothing: no easy scans, smaller steps, a longer average.
LATER: Mapping[str, Any] = {
    "one_contrast_until": 0.0,
    "harder_until": 0.0,
    "balance_until": 0.5,
    "learning_rate": 1e-3,
    "ema": 0.998,
}


@dataclass(frozen=True)
class AnatomyTraining:
    """How the anatomy network is trained.

    Attributes:
        steps: in all, one scan each.
        shapes: of scans, voxels of ``SPACING_MM``, one after the other: smaller ones save time.
        one_contrast_until: share of the steps in which all scans are T1w: what is where is learnt first.
        harder_until: share of the steps, after those, over which scans go from easy to all that is meant to be covered.
        balance_until: share of the steps over which the weight of a cross-entropy that counts every class alike
            falls to 0: with plain losses alone small structures stay unfound for long.
        learning_rate: at its highest, after ``warm_up`` steps; then half a cosine.
        ema: share of the averaged weights that each step keeps.
        minutes: stops early, but leaves a state to resume.
    """

    steps: int = 12000
    shapes: tuple[tuple[int, int, int], ...] = ((64, 80, 64), (80, 96, 80))
    one_contrast_until: float = 0.05
    harder_until: float = 0.6
    balance_until: float = 0.6
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-4
    warm_up: int = 100
    clip: float = 3.0
    ema: float = 0.995
    seed: int = 0
    minutes: float = float("inf")
    save_every: int = 200
    validate_every: int = 500
    validation_scans: int = 12

    def schedule(self) -> TrainingConfig:
        """What ``learning_rate`` reads."""
        return TrainingConfig(steps=self.steps, learning_rate=self.learning_rate, warm_up=self.warm_up)


def loss_of(logits: Tensor, scan: Scan, balance: float = 0.0) -> Tensor:
    """Cross-entropy and Dice over the classes, and binary cross-entropy of the side where there is one.

    Args:
        logits: (1, classes + 1, x, y, z), any precision.
        scan: what was to be found.
        balance: weight of a cross-entropy that is a mean over classes instead of voxels.
    """
    from monai.losses import DiceLoss

    classes = logits.shape[1] - 1
    target = scan.target[None]
    log_probability = F.log_softmax(logits[:, :classes].float(), 1)
    counts = torch.bincount(target.flatten(), minlength=classes)
    weight = torch.full((classes,), 1 / target.numel())
    weight += balance / (int((counts > 0).sum()) * counts.clamp_min(_FEW))
    cross_entropy = F.nll_loss(log_probability, target, weight.to(target.device), reduction="sum")
    truth = torch.zeros_like(log_probability).scatter_(1, target[:, None], 1)
    per_class = DiceLoss(reduction="none", smooth_nr=1.0, smooth_dr=1.0)(log_probability.exp(), truth).flatten()
    present = truth.flatten(2).any(-1).flatten()
    loss = cross_entropy + per_class[present].mean()
    paired = scan.side != NO_SIDE
    if paired.any():
        right = (scan.side[paired] == RIGHT).float()
        loss = loss + SIDE_WEIGHT * F.binary_cross_entropy_with_logits(logits[0, classes][paired].float(), right)
    return loss


def dice_of(logits: Tensor, scan: Scan) -> list[float]:
    """Dice of each class but the background, nan where neither side has it; then the share of right sides."""
    classes = logits.shape[1] - 1
    found = logits[0, :classes].argmax(0)
    scores = []
    for k in range(1, classes):
        a, b = found == k, scan.target == k
        both = int(a.sum() + b.sum())
        scores.append(2 * int((a & b).sum()) / both if both else float("nan"))
    paired = scan.side != NO_SIDE
    right = (logits[0, classes] > 0) == (scan.side == RIGHT)
    return [*scores, float(right[paired].float().mean())]


class Run:
    """A run in a folder: network, averaged weights, optimiser and step; ``earlier`` is what a start had behind it."""

    def __init__(self, folder: Path, config: AnatomyConfig, training: AnatomyTraining) -> None:
        self.folder, self.config, self.training = folder, config, training
        torch.manual_seed(training.seed)
        self.network, self.average = AnatomyNet(config), AnatomyNet(config).eval()
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.step, self.seconds = 0, 0.0
        self.earlier = {"steps": 0, "minutes": 0.0}

    def start_from(self, path: Path) -> None:
        """Begin with the weights of a file instead of random ones; the optimiser begins anew.

        Raises:
            WeightsError: when it is missing, damaged or of another network.
        """
        network = load(path)
        if network.config != self.config:
            raise WeightsError(f"{path}: expected a network of {self.config}, found {network.config}")
        for own in (self.network, self.average):
            fill(own, dict(network.named_parameters()))
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
        self.earlier = {"steps": int(facts.get("steps", 0)), "minutes": float(facts.get("minutes", 0))}

    def advance(self, head: Head, seed: int) -> float:
        """One step on one simulated scan; returns the loss."""
        training = self.training
        part = self.step / training.steps
        hardness = min(1.0, max(0.0, part - training.one_contrast_until) / max(1e-9, training.harder_until))
        balance = 0.5 * max(0.0, 1 - part / max(1e-9, training.balance_until))
        params = draw(seed, hardness)
        if part < training.one_contrast_until:
            params = replace(params, sequence="T1w")
        scan = render(head, params, training.shapes[self.step % len(training.shapes)])
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step, training.schedule())
        self.network.train()
        with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            logits = self.network(scan.image[None, None])
        loss = loss_of(logits, scan, balance)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), training.clip)
        self.optimiser.step()
        self.step += 1
        kept_share = min(training.ema, self.step / (10 + self.step))
        with torch.no_grad():
            for kept, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                kept.lerp_(new, 1 - kept_share)
        return float(loss.detach())

    def predict(self, image: Tensor) -> Tensor:
        """Logits of the averaged network for an image (x, y, z)."""
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bfloat16()):
            return self.average(image[None, None]).float()  # type: ignore[no-any-return]

    def save(self) -> None:
        """Write the state in place of the one that lies there."""
        tensors = {f"network.{k}": v.detach() for k, v in self.network.named_parameters()}
        tensors |= {f"average.{k}": v.detach() for k, v in self.average.named_parameters()}
        for name, parameter in self.network.named_parameters():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{moment}.{name}"] = torch.as_tensor(value, dtype=torch.float32)
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "earlier": self.earlier,
            "config": self.config.to_json(),
        }
        part = self.folder / f"{STATE}.part"
        copies = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        save_file(copies, part, metadata={"facts": json.dumps(facts)})
        part.replace(self.folder / STATE)

    def load(self) -> bool:
        """Take up the state of the folder. Returns whether there is one.

        Raises:
            WeightsError: when it is damaged or of another network.
        """
        path = self.folder / STATE
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
            tensors = load_file(path)
            for prefix, network in (("network.", self.network), ("average.", self.average)):
                fill(network, {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
            for name, parameter in self.network.named_parameters():
                for moment in ("step", "exp_avg", "exp_avg_sq"):
                    key = f"optimiser.{moment}.{name}"
                    if key in tensors:
                        self.optimiser.state[parameter][moment] = tensors[key]
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.earlier = facts.get("earlier", self.earlier)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path}: expected the state of a run of this network, found {first}") from error
        return True


def train(heads: Sequence[Head], held_out: Sequence[Head], run: Run) -> None:
    """Take a run to its end, or as far as its minutes reach.

    Writes the state, ``anatomy.safetensors`` (averaged weights) and ``log.jsonl`` into the run's folder.

    Raises:
        WeightsError: when the state that lies there is of another network.
    """
    training = run.training
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.load():
        log.info("%s: goes on from step %d", run.folder, run.step)
    began, before, mean = time.perf_counter(), run.seconds, None
    while run.step < training.steps:
        seed = training.seed * 10_000_019 + run.step
        loss = run.advance(random.Random(seed).choice(heads), seed)
        mean = loss if mean is None else 0.97 * mean + 0.03 * loss
        run.seconds = before + time.perf_counter() - began
        done = run.step == training.steps or time.perf_counter() - began > 60 * training.minutes
        record: dict[str, object] = {}
        if run.step % 20 == 0 or done:
            record = {"step": run.step, "loss": round(mean, 4), "seconds": round(run.seconds)}
        if held_out and (run.step % training.validate_every == 0 or done):
            record["dice"] = validate(run, held_out)
        if record:
            with (run.folder / LOG).open("a") as file:
                file.write(json.dumps(record) + "\n")
            log.info("%s", record)
        if run.step % training.save_every == 0 or done:
            run.save()
            keep(run)
        if done:
            break


def validate(run: Run, heads: Sequence[Head]) -> list[float]:
    """Mean scores of ``dice_of`` over scans of held-out heads, always the same ones."""
    rows = []
    for k in range(run.training.validation_scans):
        scan = render(heads[k % len(heads)], draw(900_000_001 + k), run.training.shapes[-1])
        rows.append(dice_of(run.predict(scan.image), scan))
    return [round(v, 3) for v in torch.tensor(rows).nanmean(0).tolist()]


def keep(run: Run) -> None:
    """Write the averaged weights as they would be shipped."""
    facts = {
        "steps": run.step + run.earlier["steps"],
        "minutes": round(run.seconds / 60 + run.earlier["minutes"], 1),
    }
    metadata = {"facts": json.dumps(facts), "training": json.dumps(asdict(run.training), default=str)}
    save(run.folder / "anatomy.safetensors", run.average, metadata)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pvs_model.training.anatomy", description=__doc__)
    parser.add_argument("maps", type=Path, help=f"folder of label maps; the last {HELD_OUT} by name are held out")
    parser.add_argument("run", type=Path, help="folder of the run; it goes on from a state that lies there")
    parser.add_argument("--start", type=Path, help="weights to begin with; scans are as hard as they get at once")
    parser.add_argument("--steps", type=int, default=AnatomyTraining.steps)
    parser.add_argument("--minutes", type=float, default=AnatomyTraining.minutes)
    parser.add_argument("--seed", type=int, default=AnatomyTraining.seed)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    try:
        from pvs_model.training.data import label_maps

        heads = [load_head(path) for path in label_maps(options.maps)]
        if len(heads) <= HELD_OUT:
            raise VolumeError(f"{options.maps}: expected more than {HELD_OUT} label maps, found {len(heads)}")
        training = AnatomyTraining(steps=options.steps, minutes=options.minutes, seed=options.seed)
        if options.start is not None:
            training = replace(training, **LATER)
        run = Run(options.run, AnatomyConfig(), training)
        if options.start is not None:
            run.start_from(options.start)
        train(heads[:-HELD_OUT], heads[-HELD_OUT:], run)
    except (VolumeError, WeightsError) as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

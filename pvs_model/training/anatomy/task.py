"""Trains the anatomy network: ``python -m pvs_model.training.anatomy MAPS RUN``; repeat the command to resume."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvs_model.anatomy.network import AnatomyConfig, AnatomyNet, load
from pvs_model.anatomy.regions import STRUCTURES
from pvs_model.datasets.label_maps import find_label_maps
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.nets.checkpoint import fill, read_metadata, tensors_of
from pvs_model.nets.precision import autocast
from pvs_model.training import loop
from pvs_model.training.anatomy.face import add_face
from pvs_model.training.anatomy.label_maps import NO_SIDE, RIGHT, LabelMap, load_label_map
from pvs_model.training.anatomy.scans import AnatomyScan, draw, render
from pvs_model.training.checkpoint import HeldOut, Progress
from pvs_model.training.config import LoopConfig
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext

log = logging.getLogger(__name__)

#: Weight of the loss of the side.
SIDE_WEIGHT = 0.3
#: Number of voxels below which a class gets less weight in the balanced cross-entropy.
_FEW = 200
#: Number of label maps held out for validation.
HELD_OUT = 3
#: First seed of the validation scans.
VALIDATION_SEED = 900_000_001
#: Settings of a run that begins with trained weights: full difficulty at once, smaller steps, a longer average.
FINE_TUNING: Mapping[str, Any] = {
    "one_contrast_until": 0.0,
    "difficulty_ramp": 0.0,
    "balance_until": 0.5,
    "learning_rate": 1e-3,
    "ema_decay": 0.998,
}


@dataclass(frozen=True)
class AnatomyTrainingConfig(LoopConfig):
    """How the anatomy network is trained.

    Attributes:
        shapes: Shapes of the scans, voxels of ``SPACING_MM``, which take turns: smaller ones save time.
        one_contrast_until: Fraction of the steps in which all scans are T1w, so that locations are learnt first.
        difficulty_ramp: Fraction of the steps, after those, over which the difficulty rises from 0 to 1.
        balance_until: Fraction of the steps over which the weight of a class-balanced cross-entropy falls to 0; without
            it small structures are missed for a long time.
        validation_scans: Number of scans of held-out label maps.
    """

    steps: int = 12000
    learning_rate: float = 1.5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 3.0
    ema_decay: float = 0.995
    save_every: int = 500
    shapes: tuple[tuple[int, int, int], ...] = ((64, 80, 64), (80, 96, 80))
    one_contrast_until: float = 0.05
    difficulty_ramp: float = 0.6
    balance_until: float = 0.6
    validation_scans: int = 12


class ScanSampler:
    """Endless simulated scans, each a function of its index alone; see ``loop.Sampler``."""

    def __init__(self, maps: Sequence[LabelMap], training: AnatomyTrainingConfig, context: DistributedContext) -> None:
        self.maps, self.training, self.context = maps, training, context
        self.sample_index = 0

    def batch(self, size: int) -> AnatomyScan:
        """Simulates the next scan; the network is trained on one at a time.

        Raises:
            ValueError: For another size.
        """
        if size != 1:
            raise ValueError(f"expected one scan per step, got {size}")
        training, step = self.training, self.sample_index
        part = step / training.steps
        difficulty = min(1.0, max(0.0, part - training.one_contrast_until) / max(1e-9, training.difficulty_ramp))
        seed = training.seed * 10_000_019 + self.context.global_index(step)
        params = draw(seed, difficulty)
        if part < training.one_contrast_until:
            params = replace(params, sequence="T1w")
        self.sample_index += 1
        return render(random.Random(seed).choice(self.maps), params, training.shapes[step % len(training.shapes)])


class AnatomyTask:
    """The anatomy network with its label maps, its loss and its validation; see ``loop.Task``."""

    weights_file = "anatomy.safetensors"
    scores = ("dice", *(structure.abbreviation for structure in STRUCTURES), "side")

    def __init__(
        self,
        config: AnatomyConfig,
        training: AnatomyTrainingConfig,
        maps: Sequence[LabelMap],
        held_out: Sequence[LabelMap] = (),
        start: Path | None = None,
    ) -> None:
        """
        Args:
            config: Network.
            training: How to train.
            maps: Label maps to simulate from.
            held_out: Label maps for validation.
            start: Weights to begin from when there is no state to resume; None for random ones.

        Raises:
            WeightsError: ``start`` is damaged or of another network.
        """
        self.training, self.maps, self.held_out, self.start = training, maps, held_out, start
        torch.manual_seed(training.seed)
        self.network, self.averaged_network = AnatomyNet(config), AnatomyNet(config).eval()
        if start is not None:
            loaded = load(start)
            if loaded.config != config:
                raise WeightsError(f"{start}: expected a network of {config}, got {loaded.config}")
            fill(self.network, tensors_of(loaded))
        fill(self.averaged_network, tensors_of(self.network))

    def held_out_data(self) -> HeldOut:
        """As ``loop.Task``."""
        return HeldOut(tuple(sorted(label_map.name for label_map in self.held_out)))

    def initial_progress(self) -> Progress:
        """As ``loop.Task``; the steps and minutes behind ``start`` are added to the results."""
        if self.start is None:
            return Progress()
        facts = json.loads(read_metadata(self.start).get("facts", "{}"))
        return Progress(earlier_steps=int(facts.get("steps", 0)), earlier_minutes=float(facts.get("minutes", 0)))

    @contextmanager
    def open_sampler(self, context: DistributedContext = SINGLE_PROCESS) -> Iterator[ScanSampler]:
        """As ``loop.Task``."""
        yield ScanSampler(self.maps, self.training, context)

    def loss(self, model: nn.Module, samples: AnatomyScan, step: int) -> Tensor:
        """As ``loop.Task``."""
        balance = 0.5 * max(0.0, 1 - step / self.training.steps / max(1e-9, self.training.balance_until))
        with autocast(samples.image.device, self.training.precision):
            logits = model(samples.image[None, None])
        return anatomy_loss(logits, samples, balance)

    def validate(self) -> dict[str, float]:
        """As ``loop.Task``: mean Dice over scans of held-out label maps, which are always the same."""
        rows = []
        for k in range(self.training.validation_scans if self.held_out else 0):
            scan = render(self.held_out[k % len(self.held_out)], draw(VALIDATION_SEED + k), self.training.shapes[-1])
            with torch.inference_mode(), autocast(scan.image.device, self.training.precision):
                rows.append(dice_scores(self.averaged_network(scan.image[None, None]).float(), scan))
        means = torch.tensor(rows).nanmean(0) if rows else torch.full((len(STRUCTURES) + 1,), torch.nan)
        values = [float(means[:-1].nanmean()), *means.tolist()]
        return {name: round(value, 3) for name, value in zip(self.scores, values, strict=True)}

    def result(self, progress: Progress, scores: Mapping[str, float]) -> dict[str, float]:
        """As ``loop.Task``."""
        minutes = round(progress.seconds / 60 + progress.earlier_minutes, 1)
        return {"steps": progress.step + progress.earlier_steps, "minutes": minutes, "dice": scores["dice"]}


def anatomy_loss(logits: Tensor, scan: AnatomyScan, balance: float = 0.0) -> Tensor:
    """Cross-entropy and Dice over the classes, and binary cross-entropy of the side for paired structures.

    Args:
        logits: (1, classes + 1, x, y, z), any precision.
        scan: Scan with its targets.
        balance: Weight of a cross-entropy that is averaged over classes instead of voxels.
    """
    from monai.losses import DiceLoss

    classes = logits.shape[1] - 1
    target = scan.target[None]
    log_probability = F.log_softmax(logits[:, :classes].float(), 1)
    counts = torch.bincount(target.flatten(), minlength=classes)
    weight = torch.full((classes,), 1 / target.numel())
    weight += balance / (int((counts > 0).sum()) * counts.clamp_min(_FEW))
    cross_entropy = F.nll_loss(log_probability, target, weight.to(target.device), reduction="sum")
    one_hot = torch.zeros_like(log_probability).scatter_(1, target[:, None], 1)
    per_class = DiceLoss(reduction="none", smooth_nr=1.0, smooth_dr=1.0)(log_probability.exp(), one_hot).flatten()
    present = one_hot.flatten(2).any(-1).flatten()
    loss: Tensor = cross_entropy + per_class[present].mean()
    paired = scan.side != NO_SIDE
    if paired.any():
        right = (scan.side[paired] == RIGHT).float()
        loss = loss + SIDE_WEIGHT * F.binary_cross_entropy_with_logits(logits[0, classes][paired].float(), right)
    return loss


def dice_scores(logits: Tensor, scan: AnatomyScan) -> list[float]:
    """Dice of each class except background, nan if neither has it; then the fraction of voxels with the right side."""
    classes = logits.shape[1] - 1
    predicted = logits[0, :classes].argmax(0)
    scores = []
    for k in range(1, classes):
        a, b = predicted == k, scan.target == k
        total = int(a.sum() + b.sum())
        scores.append(2 * int((a & b).sum()) / total if total else float("nan"))
    paired = scan.side != NO_SIDE
    correct = (logits[0, classes] > 0) == (scan.side == RIGHT)
    return [*scores, float(correct[paired].float().mean())]


def train(task: AnatomyTask, folder: Path, show: bool = True) -> dict[str, float]:
    """Trains the anatomy network on the CPU; see ``loop.run``."""
    return loop.run(task, task.training, folder, torch.device("cpu"), show=show)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pvs_model.training.anatomy", description=__doc__)
    parser.add_argument("maps", type=Path, help=f"folder of label maps; the last {HELD_OUT} by name are held out")
    parser.add_argument("run", type=Path, help="folder of the run; a state in it is resumed")
    parser.add_argument("--start", type=Path, help="weights to begin with; scans have full difficulty at once")
    parser.add_argument("--steps", type=int, default=AnatomyTrainingConfig.steps)
    parser.add_argument("--minutes", type=float, default=AnatomyTrainingConfig.max_minutes)
    parser.add_argument("--seed", type=int, default=AnatomyTrainingConfig.seed)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    try:
        maps = [add_face(load_label_map(path)) for path in find_label_maps(options.maps)]
        if len(maps) <= HELD_OUT:
            raise VolumeError(f"{options.maps}: expected more than {HELD_OUT} label maps, got {len(maps)}")
        training = AnatomyTrainingConfig(steps=options.steps, max_minutes=options.minutes, seed=options.seed)
        if options.start is not None:
            training = replace(training, **FINE_TUNING)
        task = AnatomyTask(AnatomyConfig(), training, maps[:-HELD_OUT], maps[-HELD_OUT:], options.start)
        log.info("%s", train(task, options.run))
    except (VolumeError, WeightsError) as error:
        log.error("%s", error)
        return 1
    return 0

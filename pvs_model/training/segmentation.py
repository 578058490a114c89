"""Trains a segmentation network on simulated patches, labelled cases and real scans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.model import build
from pvs_model.nets.precision import autocast
from pvs_model.nets.text import TextEncoder
from pvs_model.nets.widen import can_widen, widen
from pvs_model.training import loop
from pvs_model.training.batch import Batch
from pvs_model.training.checkpoint import HeldOut, Progress
from pvs_model.training.config import TrainingConfig
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.prompts import Prompts
from pvs_model.training.replay import ReplayBuffer
from pvs_model.training.sampling import FoldData, make_sampler, validation_batches
from pvs_model.training.validation import THRESHOLDS, validate
from pvs_model.training.workers import SampleWorkers

NETWORK = "network.safetensors"


def build_networks(
    config: NetworkConfig, training: TrainingConfig, device: torch.device, start: Path | None
) -> tuple[SegmentationNet, SegmentationNet]:
    """Builds a network and its averaged copy with equal weights, the same ones in every process.

    Args:
        config: Network.
        training: Its seed is that of random weights.
        device: Device of both.
        start: Weights to begin from, also those of a narrower network (``nets.widen``); None for random ones.

    Raises:
        WeightsError: ``start`` is damaged or of another network.
    """
    torch.manual_seed(training.seed)
    network, average = build(config).to(device), build(config).to(device)
    if start is not None:
        loaded = checkpoint.load(start)
        if can_widen(loaded.config, config):
            loaded = widen(loaded, config.widths)
        if loaded.config != config:
            raise WeightsError(f"{start}: expected weights of {config}, got {loaded.config}")
        network.load_state_dict(loaded.state_dict())
    average.load_state_dict(network.state_dict())
    return network, average


class SegmentationTask:
    """A segmentation network with its data, its loss and its validation; see ``loop.Task``."""

    weights_file = NETWORK
    scores = (
        "dice_at_0.5", "best_dice", "best_threshold", "recall_thin", "recall_wide", "calibration_error",
        "predicted_volume",
    )  # fmt: skip

    def __init__(
        self,
        config: NetworkConfig,
        training: TrainingConfig,
        data: FoldData,
        encoder: Path,
        device: torch.device,
        start: Path | None = None,
    ) -> None:
        """As ``train``."""
        self.config, self.training, self.data, self.device = config, training, data, device
        self.network, self.averaged_network = build_networks(config, training, device, start)
        self.prompts = Prompts(TextEncoder(encoder), training.prompts == "constant")
        self.supervision = DeepSupervision(training.loss)
        self.validation_batches: list[Batch] = []

    def held_out_data(self) -> HeldOut:
        """As ``loop.Task``."""
        data = self.data
        names = [anatomy.name for anatomy in data.held_out_anatomies] + [case.name for case in data.held_out_cases]
        return HeldOut(tuple(sorted(names)), *(data.fold or (None, None)))

    def initial_progress(self) -> Progress:
        """As ``loop.Task``."""
        return Progress()

    @contextmanager
    def open_sampler(self, context: DistributedContext) -> Iterator[loop.Sampler]:
        """As ``loop.Task``; the first process prepares the validation as well."""
        training = self.training
        if context.is_first:
            self.validation_batches = validation_batches(self.data, self.config, training)
        opened: AbstractContextManager[loop.Sampler]
        if training.workers:
            opened = SampleWorkers(self.data, self.config, training, self.device, context)
        else:
            opened = nullcontext(make_sampler(self.data, self.config, training, self.device, context))
        with opened as sampler:
            if training.reuse > 1:
                seed = training.seed * context.count + context.rank
                kept = training.replay_buffer
                yield ReplayBuffer(sampler, self.config, training.reuse, kept, self.device, seed)
            else:
                yield sampler

    def loss(self, model: nn.Module, samples: Batch, step: int) -> Tensor:
        """As ``loop.Task``."""
        tokens, mask = self.prompts(samples.prompts, self.device)
        with autocast(self.device, self.training.precision):
            logits = model(samples.images, tokens, mask)
        loss: Tensor = self.supervision(logits, samples.target)
        return loss

    def validate(self) -> dict[str, float]:
        """As ``loop.Task``: voxel-wise scores of held-out patches."""
        measured = validate(
            self.averaged_network, self.validation_batches, self.prompts, self.device, self.training.precision
        )
        best = int(measured.dice.argmax())
        return {
            "dice_at_0.5": round(float(measured.dice[(THRESHOLDS - 0.5).abs().argmin()]), 4),
            "best_dice": float(measured.dice[best]),
            "best_threshold": round(float(THRESHOLDS[best]), 2),
            "recall_thin": round(measured.recall_thin, 4),
            "recall_wide": round(measured.recall_wide, 4),
            "calibration_error": round(measured.calibration_error, 4),
            "predicted_volume": round(measured.predicted_volume, 3),
        }

    def result(self, progress: Progress, scores: Mapping[str, float]) -> dict[str, float]:
        """As ``loop.Task``."""
        return {"steps": progress.step, "dice": scores["best_dice"], "threshold": scores["best_threshold"]}


def train(
    config: NetworkConfig,
    training: TrainingConfig,
    data: FoldData,
    output: Path,
    encoder: Path,
    device: torch.device,
    start: Path | None = None,
    context: DistributedContext = SINGLE_PROCESS,
    show: bool = True,
) -> dict[str, float]:
    """Trains one segmentation network.

    Args:
        config: Network.
        training: How to train.
        data: Training and validation data.
        output: Folder of the run; a state in it is resumed.
        encoder: Folder of the BERT encoder.
        device: Device of the network.
        start: Weights to begin from when there is no state to resume.
        context: Processes that train together.
        show: Whether to show a progress bar.

    Returns:
        Steps, validation Dice, the threshold that gave it, and samples per second. Empty except in the first process.

    Raises:
        WeightsError: ``start`` or the state is of another network.
        PVSError: A worker process was killed.
    """
    task = SegmentationTask(config, training, data, encoder, device, start)
    return loop.run(task, training, output, device, context, show)

"""The training loop: draw, predict, compare, step; keep an average of the weights; resume exactly."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pvs_model.config import NetworkConfig
from pvs_model.errors import WeightsError
from pvs_model.nets import checkpoint
from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.memory import keep_freed_memory
from pvs_model.nets.model import build
from pvs_model.nets.text import TextEncoder
from pvs_model.training.distributed import ALONE, Ranks, any_rank, averaging, wait_for_all
from pvs_model.training.logbook import Pace
from pvs_model.training.losses import DeepSupervision
from pvs_model.training.material import Material, Shared, samples_of, validation_of
from pvs_model.training.precision import precision
from pvs_model.training.prompts import Prompts
from pvs_model.training.recorder import Recorder, reached
from pvs_model.training.settings import TrainingConfig, learning_rate
from pvs_model.training.state import MIB, State, pack
from pvs_model.training.validation import validate

log = logging.getLogger(__name__)


def networks_of(
    config: NetworkConfig, training: TrainingConfig, device: torch.device, start: Path | None
) -> tuple[SegmentationNet, SegmentationNet]:
    """A network and the average that is kept of it, equal at first; all processes begin with the same weights."""
    torch.manual_seed(training.seed)
    network, average = build(config).to(device), build(config).to(device)
    if start is not None:
        loaded = checkpoint.load(start)
        if loaded.config != config:
            raise WeightsError(f"{start}: expected weights of {config}, found {loaded.config}")
        network.load_state_dict(loaded.state_dict())
    average.load_state_dict(network.state_dict())
    return network, average


def train(
    config: NetworkConfig,
    training: TrainingConfig,
    material: Material,
    output: Path,
    encoder: Path,
    device: torch.device,
    start: Path | None = None,
    ranks: Ranks = ALONE,
    shared: Shared | None = None,
    show: bool = True,
) -> dict[str, float]:
    """Train one network.

    Args:
        config: the network.
        training: how to train.
        material: what to train and to validate on.
        output: folder for the state (``state.json`` and its shards), ``network.safetensors``, ``log.csv`` and
            ``log.png``; a state in it is resumed.
        encoder: folder of the BERT encoder.
        device: where to train.
        start: weights to begin from when there is no state to resume.
        ranks: which of the processes that train together this one is.
        shared: samples of other trainings in this process, to be used again.
        show: whether to draw a progress bar.

    Returns:
        what was reached: steps, validation Dice, the threshold that gave it, samples per second. Of a run that
        is finished already, what it had reached. Empty but in the first process.

    Raises:
        WeightsError: when ``start`` or the state is of another network.
        PVSError: when a worker process was killed.
    """
    output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    network, average = networks_of(config, training, device, start)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, betas=(0.9, 0.99)
    )
    state = State(network, average, optimiser)
    pack(state.tensors(), int(training.shard_mib * MIB))  # what cannot be saved is told now, not after hours
    if state.load(output) and ranks.first:
        log.info("resumed at step %d", state.progress.step)
    if state.progress.step >= training.steps:
        return reached(output) if ranks.first else {}

    prompts = Prompts(TextEncoder(encoder), training.prompts == "constant")
    loss_of, model = DeepSupervision(training.loss), averaging(network, device, ranks)
    recorder, facts = None, {}
    if ranks.first:
        checks = validation_of(material, config, training, shared)
        recorder = Recorder(
            output, training, state, lambda: validate(average, checks, prompts, device, training.precision)
        )
    bar = tqdm(total=training.steps, initial=state.progress.step, mininterval=5, disable=not (ranks.first and show))
    with bar, samples_of(material, config, training, device, ranks, shared) as samples:
        samples.visits = state.progress.visits // ranks.count
        network.train()
        pace, clock, done = Pace(), time.monotonic() - state.progress.seconds, False
        limit = state.progress.seconds + training.minutes * 60
        while not done:
            with pace.waiting(training.batch * ranks.count):
                batch = samples.batch(training.batch)
            tokens, mask = prompts(batch.prompts, device)
            rate = learning_rate(state.progress.step, training)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with precision(device, training.precision):
                logits = model(batch.images, tokens, mask)
            loss = loss_of(logits, batch.target)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimiser.step()
            state.advance(samples.visits * ranks.count, float(loss.detach()), time.monotonic() - clock, training.ema)
            bar.update()

            step = state.progress.step
            late = math.isfinite(limit) and any_rank(state.progress.seconds >= limit, device, ranks)
            done = late or step >= training.steps
            if recorder is not None and (done or step % training.save_every == 0):
                facts = recorder.save(rate, *pace.measured())
                bar.set_postfix(loss=f"{state.progress.loss:.3f}", dice=f"{facts['dice']:.3f}", at=facts["threshold"])
                pace.restart()
    wait_for_all(ranks)  # whoever goes on finds everything written
    return facts

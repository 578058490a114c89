"""Trains any network: draws samples, steps, averages the weights, validates, saves and resumes exactly."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pvs_model.nets import checkpoint
from pvs_model.nets.memory import keep_freed_memory
from pvs_model.training.checkpoint import HeldOut, Progress, TrainingState
from pvs_model.training.config import LoopConfig, learning_rate
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext, any_rank, barrier, wrap_ddp
from pvs_model.training.run_log import CsvLog, Throughput, can_plot, plot

log = logging.getLogger(__name__)


class Sampler(Protocol):
    """An endless stream of samples, continued from anywhere by setting ``sample_index``."""

    sample_index: int

    def batch(self, size: int) -> Any:
        """Draws the next ``size`` samples."""


class Task(Protocol):
    """What the loop trains."""

    @property
    def network(self) -> nn.Module:
        """Network to train."""

    @property
    def averaged_network(self) -> nn.Module:
        """Its averaged copy, equal at first."""

    @property
    def weights_file(self) -> str:
        """Name of the weights file in the folder of the run."""

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores of ``validate``."""

    def held_out_data(self) -> HeldOut:
        """What is validated on and never trained on; a resumed run must hold out the same."""

    def initial_progress(self) -> Progress:
        """Progress of a run that begins."""

    def open_sampler(self, context: DistributedContext) -> AbstractContextManager[Sampler]:
        """Opens the training samples of one process."""

    def loss(self, model: nn.Module, samples: Any, step: int) -> Tensor:
        """Loss of samples; ``model`` is the network, wrapped for several processes."""

    def validate(self) -> dict[str, float]:
        """Scores of the averaged network."""

    def result(self, progress: Progress, scores: Mapping[str, float]) -> dict[str, float]:
        """Outcome so far, kept with the weights."""


def run(
    task: Task,
    config: LoopConfig,
    output: Path,
    device: torch.device,
    context: DistributedContext = SINGLE_PROCESS,
    show: bool = True,
) -> dict[str, float]:
    """Trains until the last step or the time limit.

    Args:
        task: What to train.
        config: How to train.
        output: Folder for the state, the weights, ``log.csv`` and ``log.png``; a state in it is resumed.
        device: Device of the task's network.
        context: Processes that train together.
        show: Whether to show a progress bar.

    Returns:
        The task's result and the samples per second; for a run that is already finished, those it ended with. Empty
        except in the first process.

    Raises:
        WeightsError: The state in the folder is damaged, of another network, or of a run that holds out other data.
    """
    output.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    optimiser = torch.optim.AdamW(
        task.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=config.betas
    )
    state = TrainingState(task.network, task.averaged_network, optimiser, task.held_out_data())
    if not state.load(output):
        state.progress = task.initial_progress()
    elif context.is_first:
        log.info("resumed at step %d", state.progress.step)
    if state.progress.step >= config.steps:
        return load_results(output / task.weights_file) if context.is_first else {}

    model = wrap_ddp(task.network, device, context)
    recorder = _Recorder(task, config, state, output) if context.is_first else None
    result: dict[str, float] = {}
    bar = tqdm(total=config.steps, initial=state.progress.step, mininterval=5, disable=not (context.is_first and show))
    with bar, task.open_sampler(context) as sampler:
        sampler.sample_index = state.progress.samples // context.count
        task.network.train()
        throughput, clock, done = Throughput(), time.monotonic() - state.progress.seconds, False
        limit, saved = state.progress.seconds + config.max_minutes * 60, time.monotonic()
        while not done:
            with throughput.waiting(config.batch * context.count):
                samples = sampler.batch(config.batch)
            rate = learning_rate(state.progress.step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = task.loss(model, samples, state.progress.step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(task.network.parameters(), config.max_grad_norm)
            optimiser.step()
            drawn, seconds = sampler.sample_index * context.count, time.monotonic() - clock
            state.advance(drawn, float(loss.detach()), seconds, config.ema_decay)
            bar.update()

            step = state.progress.step
            late = math.isfinite(limit) and any_rank(state.progress.seconds >= limit, device, context)
            done = late or step >= config.steps
            overdue = time.monotonic() - saved >= config.save_minutes * 60
            if recorder is not None and (done or overdue or step % config.save_every == 0):
                result = recorder.save(rate, throughput.measured())
                saved = time.monotonic()
                bar.set_postfix({"loss": round(state.progress.loss or 0.0, 3), **result})
                throughput.restart()
    barrier(context)  # the other processes go on once everything is written
    return result


class _Recorder:
    """Validates, and writes the log, the weights and the state of a run."""

    def __init__(self, task: Task, config: LoopConfig, state: TrainingState, output: Path) -> None:
        self.task, self.config, self.state, self.output = task, config, state, output
        self.log = CsvLog(output / "log.csv", state.progress.step, task.scores)
        self.draws = can_plot()

    def save(self, rate: float, throughput: Mapping[str, float]) -> dict[str, float]:
        """Saves everything after a validation. Returns the result that is kept with the weights."""
        progress, scores = self.state.progress, self.task.validate()
        measured = {name: round(value, 3) for name, value in throughput.items()}
        result = self.task.result(progress, scores) | {"samples_per_second": measured["samples_per_second"]}
        row = {
            "step": progress.step,
            "seconds": round(progress.seconds, 1),
            "loss": round(progress.loss or 0.0, 4),
            "learning_rate": rate,
        }
        self.log.add(row | scores | measured)
        metadata = {"training": json.dumps(asdict(self.config)), "facts": json.dumps(result)}
        checkpoint.save(self.output / self.task.weights_file, self.task.averaged_network, metadata)
        self.state.save(self.output)  # last: from here on, the run resumes at this step
        if self.draws:
            plot(self.log.path, self.output / "log.png")
        return result


def load_results(weights: Path) -> dict[str, float]:
    """Reads the result that a run kept with its weights.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    result: dict[str, float] = json.loads(checkpoint.read_metadata(weights)["facts"])
    return result

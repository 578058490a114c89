"""Configures the training of a network, and the learning rate that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pvs_model.nets.precision import PRECISIONS

LOSSES = ("dice-ce", "dice-topk")
SCHEDULES = ("cosine", "polynomial")
SIMULATE_ON = ("cpu", "device")
LABELS = ("visibility", "coverage")
PROMPTS = ("varied", "constant")

#: Learning rates from random weights and from trained ones, which large steps would spoil.
LEARNING_RATE, FINE_TUNING_RATE = 1.5e-3, 3e-4
#: Default sides of patches by dimensions. Many small patches teach far more per second than few large ones.
PATCH = {3: 32, 2: 96}
#: Defaults of a training that begins from trained weights: they need no curriculum, and know what a prompt is.
FINE_TUNING: dict[str, Any] = {"learning_rate": FINE_TUNING_RATE, "clear_samples": 0, "region_warmup": 0}


@dataclass(frozen=True)
class LoopConfig:
    """What the training loop needs to know, for any network.

    Attributes:
        steps: Total number of optimisation steps.
        batch: Samples per step and process.
        learning_rate: Peak, reached after ``warmup_steps``; then it falls by ``schedule``.
        betas: Decay rates of AdamW's moments.
        max_grad_norm: Norm to which gradients are clipped.
        ema_decay: Decay of the averaged weights per step.
        max_minutes: Time limit; a run that reaches it leaves a state to resume.
        save_every: Steps between validations, each of which saves the state.
        save_minutes: Longest time between two of them.
        schedule: One of ``SCHEDULES``.
        precision: One of ``PRECISIONS``.

    Raises:
        ValueError: For an unknown choice.
    """

    steps: int = 4000
    batch: int = 1
    learning_rate: float = LEARNING_RATE
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 100
    max_grad_norm: float = 5.0
    ema_decay: float = 0.997
    seed: int = 0
    max_minutes: float = math.inf
    save_every: int = 200
    save_minutes: float = 10.0
    schedule: str = "cosine"
    precision: str = "auto"

    def __post_init__(self) -> None:
        self.check(schedule=SCHEDULES, precision=PRECISIONS)

    def check(self, **choices: tuple[str, ...]) -> None:
        """Raises a ValueError for a field whose value is not among its choices."""
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class TrainingConfig(LoopConfig):
    """How a segmentation network is trained.

    Attributes:
        patch: Side of a patch, voxels.
        scene_buffer: Number of scenes kept.
        refresh_interval: Samples between new scenes.
        region_share: Fraction of the prompts that ask for a region.
        validation_patches: Number of patches of held-out heads, and as many of held-out cases.
        loss: One of ``LOSSES``.
        workers: Worker processes that draw samples; 0 draws them in the loop.
        reuse: Mean number of times that a sample is drawn (``training.replay``).
        replay_buffer: With ``reuse`` above 1, number of samples kept.
        simulate_on: "cpu", or "device" to render and scan where the network is, in the worker processes too.
        case_share: Fraction of the samples from labelled cases when there are anatomies too.
        scan_share: Fraction of the samples from unlabelled real scans when there are any.
        prompts: One of ``PROMPTS``: "varied" name the sequences present and the region asked for; "constant" is one
            prompt for all.
        labels: One of ``LABELS``: what an annotator would see (``simulation.visibility``), or what tubes fill.
        coverage: With labels by coverage, fraction of a voxel from which it is labelled; None for the default.
        region_warmup: Samples before the first prompt that asks for a region.
        clear_samples: Number of first samples from scenes with wide and bright PVS (a curriculum).

    Raises:
        ValueError: For an unknown choice.
    """

    batch: int = 8
    patch: int = PATCH[3]
    scene_buffer: int = 300
    refresh_interval: int = 3
    region_share: float = 0.2
    validation_patches: int = 16
    loss: str = "dice-ce"
    workers: int = 0
    reuse: int = 1
    replay_buffer: int = 1000
    simulate_on: str = "cpu"
    case_share: float = 0.5
    scan_share: float = 0.15
    prompts: str = "varied"
    labels: str = "visibility"
    coverage: float | None = None
    region_warmup: int = 2000
    clear_samples: int = 1500

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(loss=LOSSES, simulate_on=SIMULATE_ON, prompts=PROMPTS, labels=LABELS)


def learning_rate(step: int, config: LoopConfig) -> float:
    """Linear warm-up, then half a cosine down to a hundredth, or nnU-Net's (1 - t)^0.9 down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    t = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    if config.schedule == "polynomial":
        return config.learning_rate * float((1 - t) ** 0.9)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * t)))

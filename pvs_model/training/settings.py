"""How a network is trained, as one record; and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOSSES = ("dice-ce", "dice-topk")
SCHEDULES = ("cosine", "polynomial")
PRECISIONS = ("auto", "bfloat16", "float32")
SIMULATE_ON = ("cpu", "device")
LABELS = ("visibility", "coverage")
PROMPTS = ("varied", "constant")

#: From fresh weights, and from trained ones, which large steps would spoil.
LEARNING_RATE, FINE_TUNING_RATE = 1.5e-3, 3e-4


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained.

    Attributes:
        steps: in all.
        batch: samples per step and process.
        patch: side in voxels.
        learning_rate: after ``warm_up`` steps, from where it falls as ``schedule`` says.
        clip: largest norm of the gradient.
        ema: share of the averaged weights that each step keeps.
        pool: scenes kept; ``refresh``: samples after which a new one joins them.
        region_share: share of the prompts that ask for a region.
        minutes: stops early, but leaves a state to resume.
        save_every: steps from one save to the next.
        validation_patches: of held-out heads, and as many of held-out cases.
        loss: one of ``LOSSES``.
        schedule: one of ``SCHEDULES``.
        precision: one of ``PRECISIONS``.
        workers: background processes that render scenes; 0 renders them in the loop.
        simulate_on: "cpu", or "device" to render and scan where the network is.
        case_share: share of the samples from labelled cases where there are anatomies, too.
        scan_share: share of the samples from unlabelled real scans where there are any.
        shard_mib: largest size of a file of the state.
        prompts: one of ``PROMPTS``: "varied" say what is there and which region is asked for; "constant": one for all.
        labels: one of ``LABELS``: what an annotator would see (``synth.visibility``), or what tubes fill.
        coverage: share of a voxel that tubes fill from which it is labelled by coverage; None for ``synth.engine``'s.
        region_warmup: samples before the first prompt that asks for a region.
        clear_samples: samples from scenes with wide and bright PVS, which come first (a curriculum).

    Raises:
        ValueError: for a choice that there is not.
    """

    steps: int = 4000
    batch: int = 1
    patch: int = 48
    learning_rate: float = LEARNING_RATE
    weight_decay: float = 1e-4
    warm_up: int = 100
    clip: float = 5.0
    ema: float = 0.997
    seed: int = 0
    pool: int = 300
    refresh: int = 3
    region_share: float = 0.2
    minutes: float = math.inf
    save_every: int = 200
    validation_patches: int = 16
    loss: str = "dice-ce"
    schedule: str = "cosine"
    precision: str = "auto"
    workers: int = 0
    simulate_on: str = "cpu"
    case_share: float = 0.5
    scan_share: float = 0.15
    shard_mib: float = 15.0
    prompts: str = "varied"
    labels: str = "visibility"
    coverage: float | None = None
    region_warmup: int = 2000
    clear_samples: int = 1500

    def __post_init__(self) -> None:
        choices = {"loss": LOSSES, "schedule": SCHEDULES, "precision": PRECISIONS, "simulate_on": SIMULATE_ON,
                   "prompts": PROMPTS, "labels": LABELS}  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.workers and self.simulate_on == "device":
            raise ValueError("workers render on the CPU: with simulate_on='device' there are none")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then half a cosine down to a hundredth, or nnU-Net's (1 - part)^0.9 down to 0."""
    if step < config.warm_up:
        return config.learning_rate * (step + 1) / config.warm_up
    part = min(1.0, (step - config.warm_up) / max(1, config.steps - config.warm_up))
    if config.schedule == "polynomial":
        return config.learning_rate * float((1 - part) ** 0.9)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))

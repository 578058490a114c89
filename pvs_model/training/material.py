"""What a fold is trained and validated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from pvs_model.config import NetworkConfig
from pvs_model.errors import VolumeError
from pvs_model.synth.anatomy import Anatomy
from pvs_model.training.ahead import RenderAhead
from pvs_model.training.data import Batch, PatchStream
from pvs_model.training.distributed import ALONE, Ranks
from pvs_model.training.labelled import LabelledCase, LabelledCases
from pvs_model.training.mixture import Mixture
from pvs_model.training.settings import TrainingConfig

#: Added to the seed for validation patches.
VALIDATION_SEED = 77

Item = TypeVar("Item")


@dataclass(frozen=True)
class Material:
    """Heads to simulate from and labelled cases; those held out are never trained on."""

    anatomies: Sequence[Anatomy] = ()
    held_out_anatomies: Sequence[Anatomy] = ()
    cases: Sequence[LabelledCase] = ()
    held_out_cases: Sequence[LabelledCase] = ()


def split(items: Sequence[Item], fold: int, folds: int, what: str) -> tuple[list[Item], list[Item]]:
    """Items to train on, and those held out: the K-th, the K + FOLDS-th, ... for fold K.

    Raises:
        VolumeError: when a fold would have nothing to train on or nothing to validate on. ``what`` names the items.
    """
    if not (0 <= fold < folds <= len(items) and folds >= 2):
        raise VolumeError(
            f"--fold {fold} --folds {folds}: expected at least 2 folds and 0 <= fold < folds <= {len(items)} {what}"
        )
    return [item for k, item in enumerate(items) if k % folds != fold], list(items[fold::folds])


@contextmanager
def samples_of(
    material: Material,
    config: NetworkConfig,
    training: TrainingConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Iterator[Mixture]:
    """Samples to train on, of one of the processes that train together; ends its background processes."""
    stream, cases, ahead = None, None, None
    if material.anatomies:
        where = device if training.simulate_on == "device" else torch.device("cpu")
        stream = PatchStream(
            [anatomy.to(where) for anatomy in material.anatomies], config, training.patch, training.seed,
            training.pool, training.refresh, training.region_share, ranks,
        )  # fmt: skip
        if training.workers:
            ahead = stream.source = RenderAhead(stream, training.workers)
    if material.cases:
        cases = LabelledCases(material.cases, config, training.patch, training.seed, training.region_share)
    try:
        yield Mixture(stream, cases, training.case_share, device, ranks)
    finally:
        if ahead is not None:
            ahead.close()


def validation_of(material: Material, config: NetworkConfig, training: TrainingConfig) -> list[Batch]:
    """Fixed patches of what is held out. Simulated on the CPU: they are the same on every machine."""
    seed, numbers = training.seed + VALIDATION_SEED, range(training.validation_patches)
    checks = []
    if material.held_out_anatomies:
        fixed = PatchStream(material.held_out_anatomies, config, training.patch, seed, region_share=0.0)
        checks += [fixed.sample(fixed.render(k), seed=k, region="brain", template=0) for k in numbers]
    if material.held_out_cases:
        real = LabelledCases(material.held_out_cases, config, training.patch, seed)
        checks += [real.fixed(k) for k in numbers]
    return checks

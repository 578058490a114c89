"""What a fold is trained and validated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch

from pvs_model.config import NetworkConfig
from pvs_model.datasets.labelled_cases import LabelledCase
from pvs_model.errors import VolumeError
from pvs_model.synth.anatomy import Anatomy
from pvs_model.synth.engine import Scene
from pvs_model.training.ahead import RenderAhead
from pvs_model.training.data import Batch, PatchStream
from pvs_model.training.distributed import ALONE, Ranks
from pvs_model.training.labelled import LabelledCases
from pvs_model.training.mixture import Mixture
from pvs_model.training.real_scans import RealScan, RealScans
from pvs_model.training.settings import TrainingConfig

#: Added to the seed for validation patches.
VALIDATION_SEED = 77

Item = TypeVar("Item")


@dataclass(frozen=True)
class Material:
    """Heads to simulate from, labelled cases and unlabelled scans; what is held out is never trained on."""

    anatomies: Sequence[Anatomy] = ()
    held_out_anatomies: Sequence[Anatomy] = ()
    cases: Sequence[LabelledCase] = ()
    held_out_cases: Sequence[LabelledCase] = ()
    scans: Sequence[RealScan] = ()


@dataclass
class Shared:
    """Scenes and samples that several trainings of one process draw alike, kept after the first.

    Attributes:
        most: samples kept of each kind, and scenes.
        limit_mib: of scenes and samples together; those of the kinds that were asked for longest ago go first.
        checks: what is validated on, all of it.
    """

    most: int = 1000
    limit_mib: float = 3072.0
    scenes: dict[object, dict[int, Scene]] = field(default_factory=dict)
    samples: dict[object, dict[int, Batch]] = field(default_factory=dict)
    checks: dict[object, list[Batch]] = field(default_factory=dict)

    def serve(self, stream: PatchStream, mixture: Mixture) -> None:
        """Have a stream and the mixture that draws from it take what is here, and leave here what is new."""
        config = stream.config
        names = tuple(anatomy.name for anatomy in stream.anatomies)
        kind = (config.dimensions, config.view, stream.patch, stream.seed, stream.clear_scenes, names)
        scenes = self.scenes[kind] = self.scenes.pop(kind, {})  # the last of the dictionary

        def source(number: int) -> Scene:
            if number not in scenes:
                scene = stream.render(number)
                if len(scenes) >= self.most:
                    return scene
                scenes[number] = scene
            return scenes[number]

        stream.source = source
        drawn = (*kind, config.neighbour_slices, config.regions, stream.region_share, stream.region_warmup,
                 stream.clear_scenes, stream.labels, stream.coverage)  # fmt: skip
        mixture.memory = self.samples[drawn] = self.samples.pop(drawn, {})
        mixture.most = self.most
        while self.mib() > self.limit_mib and len(self.scenes) + len(self.samples) > 2:
            older = self.scenes if len(self.scenes) > 1 else self.samples  # scenes are the larger
            older.pop(next(iter(older)))

    def mib(self) -> float:
        """What scenes and samples take."""
        scenes = [getattr(s, f.name) for kept in self.scenes.values() for s in kept.values() for f in fields(s)]
        samples = [t for kept in self.samples.values() for b in kept.values() for t in (b.images, b.target)]
        return sum(t.nbytes for t in (*scenes, *samples) if isinstance(t, torch.Tensor)) / 2**20


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
    shared: Shared | None = None,
) -> Iterator[Mixture]:
    """Samples to train on, of one of the processes that train together; ends its background processes.

    A network that reads no prompt is asked for the whole brain alone: it could not know which region is meant.
    """
    asks = config.text and training.prompts == "varied"
    region_share = training.region_share if asks else 0.0
    stream, cases, ahead = None, None, None
    if material.anatomies:
        where = device if training.simulate_on == "device" else torch.device("cpu")
        stream = PatchStream(
            [anatomy.to(where) for anatomy in material.anatomies], config, training.patch, training.seed,
            training.pool, training.refresh, region_share, ranks, training.labels, training.coverage,
            training.region_warmup, training.clear_samples,
        )  # fmt: skip
        if training.workers:
            ahead = stream.source = RenderAhead(stream, training.workers)
    if material.cases:
        cases = LabelledCases(material.cases, config, training.patch, training.seed, region_share)
    scans = RealScans(material.scans, config, training.patch, training.seed) if material.scans else None
    mixture = Mixture(stream, cases, training.case_share, device, ranks, scans, training.scan_share)
    if shared is not None and stream is not None and ahead is None:
        shared.serve(stream, mixture)
    try:
        yield mixture
    finally:
        if ahead is not None:
            ahead.close()


def validation_of(
    material: Material, config: NetworkConfig, training: TrainingConfig, shared: Shared | None = None
) -> list[Batch]:
    """Fixed patches of what is held out. Simulated on the CPU: they are the same on every machine."""
    kind = (
        config.dimensions, config.view, config.neighbour_slices, config.regions, training.patch, training.seed,
        training.validation_patches, training.labels, training.coverage,
    )  # fmt: skip
    if shared is not None and kind in shared.checks:
        return shared.checks[kind]
    seed, numbers = training.seed + VALIDATION_SEED, range(training.validation_patches)
    checks = []
    if material.held_out_anatomies:
        fixed = PatchStream(
            material.held_out_anatomies, config, training.patch, seed, region_share=0.0, labels=training.labels,
            coverage=training.coverage,
        )  # fmt: skip
        checks += [fixed.sample(fixed.render(k), seed=k, region="brain", template=0) for k in numbers]
    if material.held_out_cases:
        real = LabelledCases(material.held_out_cases, config, training.patch, seed)
        checks += [real.fixed(k) for k in numbers]
    if shared is not None:
        shared.checks[kind] = checks
    return checks

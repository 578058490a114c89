"""Draws training and validation samples of one cross-validation fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from pvs_model.config import NetworkConfig
from pvs_model.datasets.labelled_cases import LabelledCase
from pvs_model.errors import VolumeError
from pvs_model.simulation.head import HeadModel
from pvs_model.training.batch import Batch, join
from pvs_model.training.config import TrainingConfig
from pvs_model.training.distributed import SINGLE_PROCESS, DistributedContext
from pvs_model.training.labelled_patches import LabelledPatches
from pvs_model.training.real_scan_patches import RealScanPatches, UnlabelledScan
from pvs_model.training.simulated_patches import SimulatedPatches

#: Added to the seed for validation patches.
VALIDATION_SEED = 77

Item = TypeVar("Item")


@dataclass(frozen=True)
class FoldData:
    """Training and validation data of one fold; what is held out is never trained on.

    ``fold`` is its number and that of all folds, where the data were split so.
    """

    anatomies: Sequence[HeadModel] = ()
    held_out_anatomies: Sequence[HeadModel] = ()
    cases: Sequence[LabelledCase] = ()
    held_out_cases: Sequence[LabelledCase] = ()
    scans: Sequence[UnlabelledScan] = ()
    fold: tuple[int, int] | None = None


def split(items: Sequence[Item], fold: int, folds: int, name: str) -> tuple[list[Item], list[Item]]:
    """Splits items into training and held-out ones: fold K holds out the K-th, the K + FOLDS-th, ...

    Args:
        items: Items to split.
        fold: Number of the fold, from 0.
        folds: Number of folds.
        name: Plural noun for the items, for the error message.

    Raises:
        VolumeError: A fold would have no training or no validation data.
    """
    if not (0 <= fold < folds <= len(items) and folds >= 2):
        raise VolumeError(
            f"--fold {fold} --folds {folds}: expected at least 2 folds and 0 <= fold < folds <= {len(items)} {name}"
        )
    return [item for k, item in enumerate(items) if k % folds != fold], list(items[fold::folds])


class MixedSampler:
    """Interleaves simulated patches, patches of labelled cases and patches of real scans evenly, in fixed shares.

    The source of a sample follows from its index alone: set ``sample_index`` to continue from anywhere.
    """

    def __init__(
        self,
        stream: SimulatedPatches | None,
        cases: LabelledPatches | None,
        case_share: float,
        device: torch.device,
        context: DistributedContext = SINGLE_PROCESS,
        scans: RealScanPatches | None = None,
        scan_share: float = 0.0,
    ) -> None:
        """
        Args:
            stream: Simulated patches. Of ``stream`` and ``cases`` at least one is needed.
            cases: Patches of labelled cases.
            case_share: Fraction of the samples from cases when there are both.
            device: Device of the batches.
            context: Processes that share the indices of samples.
            scans: Patches of unlabelled real scans with inserted PVS.
            scan_share: Fraction of the samples from scans, unless a labelled case is due.
        """
        self.stream, self.cases, self.scans = stream, cases, scans
        self.scan_share = scan_share if scans is not None else 0.0
        self.case_share = 0.0 if cases is None else 1.0 if stream is None else case_share
        self.device = device
        self.context = context
        self.sample_index = 0

    def batch(self, size: int) -> Batch:
        """Draws the next ``size`` samples."""
        parts = []
        for _ in range(size):
            parts.append(self._draw(self.sample_index))
            self.sample_index += 1
        return join(parts, self.device)

    def _draw(self, index: int) -> Batch:
        cases_before, scans_before = _count(index, self.case_share), _count(index, self.scan_share)
        if self.cases is not None and _count(index + 1, self.case_share) > cases_before:
            return self.cases.sample(self.context.global_index(cases_before))
        if self.scans is not None and _count(index + 1, self.scan_share) > scans_before:
            return self.scans.sample(self.context.global_index(scans_before))
        if self.stream is None:
            raise ValueError("expected simulated patches, labelled cases, or both, got none")
        self.stream.sample_index = index - cases_before
        return self.stream.batch(1)


def _count(samples: int, share: float) -> int:
    """Number of the first ``samples`` samples that come from a source with this share."""
    return int(samples * share + 1e-6)


def make_sampler(
    data: FoldData,
    config: NetworkConfig,
    training: TrainingConfig,
    device: torch.device,
    context: DistributedContext = SINGLE_PROCESS,
) -> MixedSampler:
    """Makes the sampler of one process, which draws its samples itself.

    A network that reads no prompt is only asked for the whole brain, since it could not know the region.
    """
    asks_region = config.text and training.prompts == "varied"
    region_share = training.region_share if asks_region else 0.0
    stream, cases = None, None
    if data.anatomies:
        where = device if training.simulate_on == "device" else torch.device("cpu")
        stream = SimulatedPatches(
            [anatomy.to(where) for anatomy in data.anatomies], config, training.patch, training.seed,
            training.scene_buffer, training.refresh_interval, region_share, context, training.labels, training.coverage,
            training.region_warmup, training.clear_samples,
        )  # fmt: skip
    if data.cases:
        cases = LabelledPatches(data.cases, config, training.patch, training.seed, region_share)
    scans = RealScanPatches(data.scans, config, training.patch, training.seed) if data.scans else None
    return MixedSampler(stream, cases, training.case_share, device, context, scans, training.scan_share)


def validation_batches(data: FoldData, config: NetworkConfig, training: TrainingConfig) -> list[Batch]:
    """Draws fixed patches of what is held out. Simulation runs on the CPU, so they are the same on every machine."""
    seed, numbers = training.seed + VALIDATION_SEED, range(training.validation_patches)
    batches = []
    if data.held_out_anatomies:
        simulated = SimulatedPatches(
            data.held_out_anatomies, config, training.patch, seed, region_share=0.0, labels=training.labels,
            coverage=training.coverage,
        )  # fmt: skip
        batches += [
            simulated.sample(simulated.render(k), seed=k, region="brain", template=0, with_diameter=True)
            for k in numbers
        ]
    if data.held_out_cases:
        labelled = LabelledPatches(data.held_out_cases, config, training.patch, seed)
        batches += [labelled.fixed(k) for k in numbers]
    return batches

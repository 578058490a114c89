"""Scores a network on fixed held-out patches: Dice by threshold, recall by diameter, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pvs_model.nets.base import SegmentationNet
from pvs_model.nets.precision import autocast
from pvs_model.training.batch import Batch
from pvs_model.training.prompts import Prompts

THRESHOLDS = torch.arange(0.1, 0.95, 0.05)
#: Diameter from which a PVS counts as wide, mm.
WIDE_MM = 0.9
#: Channel of a validation target with the diameter of the widest tube in a voxel, mm; absent in labelled cases.
DIAMETER_CHANNEL = 3
#: Bins of the probability, and the probability from which voxels enter the calibration error.
BINS, MIN_PROBABILITY = 10, 0.05


def dice_counts(probability: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    """Counts voxels for Dice over many patches at once.

    Args:
        probability: (B, 1, *spatial).
        target: (B, 1 or more, *spatial), as in ``Batch``: label, then ignored voxels.
        thresholds: (thresholds,).

    Returns:
        (thresholds, 3): true positives, predicted and labelled voxels.
    """
    keep = target[:, 1] < 0.5 if target.shape[1] > 1 else torch.ones_like(target[:, 0], dtype=torch.bool)
    hit = probability[:, 0][keep][None] >= thresholds[:, None]
    label = target[:, 0][keep][None] > 0.5
    return torch.stack([(hit & label).sum(1), hit.sum(1), label.sum(1).expand(len(thresholds))], 1).double()


@dataclass(frozen=True)
class ValidationScores:
    """Scores over the voxels of all patches that are not ignored.

    Attributes:
        dice: One value per entry of ``THRESHOLDS``.
        recall_thin, recall_wide: Fraction of the labelled voxels of PVS below and from ``WIDE_MM`` with a probability
            of 0.5 or more; NaN without any.
        calibration_error: Mean distance of the probability from the labelled fraction, over ``BINS`` bins of voxels
            with a probability of ``MIN_PROBABILITY`` or more (expected calibration error); NaN without any.
        predicted_volume: Sum of the probabilities relative to the number of labelled voxels: 1 if calibrated.
    """

    dice: Tensor
    recall_thin: float
    recall_wide: float
    calibration_error: float
    predicted_volume: float


@torch.no_grad()
def validate(
    network: SegmentationNet, batches: list[Batch], prompts: Prompts, device: torch.device, precision: str = "auto"
) -> ValidationScores:
    """Scores a network over all patches."""
    network.eval()
    probabilities = []
    for batch in batches:
        tokens, mask = prompts(batch.prompts, device)
        with autocast(device, precision):
            logits = network(batch.images.to(device), tokens, mask)
        probabilities.append(logits.float().sigmoid())
    network.train()
    return score(probabilities, [batch.target.to(device) for batch in batches])


def score(probabilities: Sequence[Tensor], targets: Sequence[Tensor]) -> ValidationScores:
    """Scores probabilities (B, 1 or 2, *spatial) of targets (B, channels, *spatial), one of each per batch.

    Runs on the device of the probabilities.
    """
    double = {"dtype": torch.float64, "device": probabilities[0].device}
    thresholds = THRESHOLDS.to(probabilities[0].device)
    counts = torch.zeros(len(THRESHOLDS), 3, **double)  # type: ignore[call-overload]
    hits, bins = torch.zeros(2, 2, **double), torch.zeros(3, BINS, **double)  # type: ignore[call-overload]
    volume = torch.zeros(2, **double)  # type: ignore[call-overload]
    for probability, target in zip(probabilities, targets, strict=True):
        counts += dice_counts(probability, target, thresholds)
        keep = target[:, 1] < 0.5
        p, label = probability[:, 0][keep].double(), target[:, 0][keep] > 0.5
        volume += torch.stack([p.sum(), label.sum()])
        if target.shape[1] > DIAMETER_CHANNEL:
            wide = (target[:, DIAMETER_CHANNEL][keep] >= WIDE_MM)[label].long()
            hits += torch.stack([torch.bincount(wide[p[label] >= 0.5], minlength=2), torch.bincount(wide, minlength=2)])
        likely = p >= MIN_PROBABILITY
        place = (p[likely] * BINS).long().clamp(max=BINS - 1)
        for row, values in enumerate((torch.ones_like(p[likely]), p[likely], label[likely].double())):
            bins[row] += torch.bincount(place, values, minlength=BINS)
    thin, wide_recall = (hits[0] / hits[1]).tolist()
    error = (bins[1] - bins[2]).abs().sum() / bins[0].sum()
    dice = (2 * counts[:, 0] / (counts[:, 1] + counts[:, 2]).clamp_min(1)).cpu()
    return ValidationScores(dice, thin, wide_recall, float(error), float(volume[0] / volume[1].clamp_min(1)))

"""Computes voxel-wise Dice on fixed held-out patches at every threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.nets.base import SegmentationNet
from pvs_model.training.batch import Batch
from pvs_model.training.config import autocast
from pvs_model.training.prompts import Prompts

THRESHOLDS = torch.arange(0.1, 0.95, 0.05)


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


@torch.no_grad()
def validate(
    network: SegmentationNet, batches: list[Batch], prompts: Prompts, device: torch.device, precision: str = "auto"
) -> Tensor:
    """Computes Dice over all patches, one value per entry of ``THRESHOLDS``."""
    network.eval()
    counts = torch.zeros(len(THRESHOLDS), 3, dtype=torch.float64)
    for batch in batches:
        tokens, mask = prompts(batch.prompts, device)
        with autocast(device, precision):
            logits = network(batch.images.to(device), tokens, mask)
        counts += dice_counts(logits.float().sigmoid().cpu(), batch.target.cpu(), THRESHOLDS)
    network.train()
    return 2 * counts[:, 0] / (counts[:, 1] + counts[:, 2]).clamp_min(1)

"""Voxel-wise Dice on fixed patches that are never trained on, at every threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.nets.model import SegmentationNet
from pvs_model.training.data import Batch
from pvs_model.training.precision import precision
from pvs_model.training.prompts import Prompts

THRESHOLDS = torch.arange(0.1, 0.95, 0.05)


def dice_counts(probability: Tensor, label: Tensor, thresholds: Tensor) -> Tensor:
    """(thresholds, 3): true positives, predicted and true voxels, for Dice over many patches at once."""
    hit = probability.flatten()[None] >= thresholds[:, None]
    truth = label.flatten()[None] > 0.5
    return torch.stack([(hit & truth).sum(1), hit.sum(1), truth.sum(1).expand(len(thresholds))], 1).double()


@torch.no_grad()
def validate(
    network: SegmentationNet, batches: list[Batch], prompts: Prompts, device: torch.device, wanted: str = "auto"
) -> Tensor:
    """Dice over all patches, one value per entry of ``THRESHOLDS``; ``wanted`` is a precision."""
    network.eval()
    counts = torch.zeros(len(THRESHOLDS), 3, dtype=torch.float64)
    for batch in batches:
        tokens, mask = prompts(batch.prompts, device)
        with precision(device, wanted):
            logits = network(batch.images.to(device), tokens, mask)
        counts += dice_counts(logits.float().sigmoid().cpu(), batch.label.cpu(), THRESHOLDS)
    network.train()
    return 2 * counts[:, 0] / (counts[:, 1] + counts[:, 2]).clamp_min(1)

"""Dice and cross-entropy with deep supervision on max-pooled labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from pvs_model.training.settings import LOSSES

#: Share of the voxels, those with the largest cross-entropy, that ``dice-topk`` takes the mean of.
TOP_SHARE = 0.1


class DiceTopK(nn.Module):
    """Dice + the mean cross-entropy of the tenth of the voxels where it is largest.

    The loss of the challenge's winner (nnU-Net's ``DiceTopK10``). It looks only at what the network finds
    hard, so its probabilities are less calibrated than those of plain cross-entropy: the threshold is to
    be chosen again (docs/method.md).
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)

    def forward(self, logit: Tensor, target: Tensor) -> Tensor:
        """Logit and target (B, 1, *spatial); returns a scalar. Voxels are ranked over the batch."""
        entropy = F.binary_cross_entropy_with_logits(logit, target, reduction="none").flatten()
        hardest = entropy.topk(max(1, int(TOP_SHARE * len(entropy))), sorted=False).values
        total: Tensor = self.dice(logit, target) + hardest.mean()
        return total


class DeepSupervision(nn.Module):
    """Mean of one loss over scales, finer scales weighing more (1, 1/2, 1/4, ...).

    Labels are reduced by max-pooling, so that a tube one voxel wide survives at every scale: the
    multi-scale highlighted foreground of MfNS-De (Cai et al. 2024, section 2.4). The cross-entropy of
    ``dice-ce`` is not weighted, which keeps probabilities calibrated for one fixed threshold.
    """

    def __init__(self, loss: str = "dice-ce") -> None:
        """
        Args:
            loss: one of ``settings.LOSSES``.

        Raises:
            ValueError: for another loss.
        """
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
        plain = DiceCELoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)
        self.loss = plain if loss == "dice-ce" else DiceTopK()

    def forward(self, logits: Sequence[Tensor], label: Tensor) -> Tensor:
        """Logits: list of (B, 1, *spatial / 2^s); label (B, 1, *spatial), float 0 or 1. Returns a scalar."""
        total = logits[0].new_zeros((), dtype=torch.float32)
        weights = [0.5**s for s in range(len(logits))]
        for scale, (logit, weight) in enumerate(zip(logits, weights, strict=True)):
            target = label
            if scale:
                pool = F.max_pool3d if label.ndim == 5 else F.max_pool2d
                target = pool(label, 2**scale)
            total = total + weight * self.loss(logit.float(), target)
        return total / sum(weights)

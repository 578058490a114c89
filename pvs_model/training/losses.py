"""Dice + cross-entropy with deep supervision on max-pooled labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn


class DeepSupervision(nn.Module):
    """Mean of Dice + cross-entropy over scales, finer scales weighing more (1, 1/2, 1/4, ...).

    Labels are reduced by max-pooling, so that a tube one voxel wide survives at every scale: the
    multi-scale highlighted foreground of MfNS-De (Cai et al. 2024, section 2.4). Cross-entropy is not
    weighted, which keeps probabilities calibrated for one fixed threshold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(sigmoid=True, batch=True, smooth_nr=1.0, smooth_dr=1.0)

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

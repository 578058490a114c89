"""Dice and cross-entropy with deep supervision on max-pooled labels, and the loss of the fluid fraction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvs_model.training.settings import LOSSES

#: Share of the voxels, those with the largest cross-entropy, that ``dice-topk`` takes the mean of.
TOP_SHARE = 0.1
#: Weight of the fluid fraction's loss: nearly all voxels hold none, so its mean is small.
FLUID_WEIGHT = 5.0


def soft_dice_loss(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """1 - Dice of probabilities and labels over a whole batch, smoothed by 1 for batches without PVS.

    Args:
        logit, label: (B, 1, *spatial).
        keep: (B, 1, *spatial), 0 where voxels are ignored, else 1.
    """
    probability = logit.sigmoid() * keep
    overlap = (probability * label).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + (label * keep).sum() + 1)


def cross_entropy(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Mean cross-entropy over the voxels that are kept; shapes as for ``soft_dice_loss``. Labels may be soft."""
    entropy = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    return (entropy * keep).sum() / keep.sum().clamp_min(1)


def top_cross_entropy(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Mean cross-entropy of the tenth of the voxels where it is largest.

    Part of the loss of the challenge's winner (nnU-Net's ``DiceTopK10``). It looks only at what the network finds
    hard, so its probabilities are less calibrated than those of plain cross-entropy: the threshold has to be
    chosen again (docs/method.md).
    """
    entropy = (F.binary_cross_entropy_with_logits(logit, label, reduction="none") * keep).flatten()
    return entropy.topk(max(1, int(TOP_SHARE * len(entropy))), sorted=False).values.mean()


class DeepSupervision(nn.Module):
    """Mean of Dice + cross-entropy over scales, finer scales weighing more (1, 1/2, 1/4, ...).

    Labels are reduced by max-pooling, so that a tube one voxel wide survives at every scale: the
    multi-scale highlighted foreground of MfNS-De (Cai et al. 2024, section 2.4). Voxels to ignore are, too, but where
    a label is among them. The cross-entropy of ``dice-ce`` is not weighted, which keeps probabilities calibrated for
    one fixed threshold. Where the first logits have a second channel, its cross-entropy with the fluid fraction is
    added: a proper scoring rule, so that its sigmoid estimates the expected fraction.
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
        self.entropy = cross_entropy if loss == "dice-ce" else top_cross_entropy

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Logits: list of (B, 1 or 2, *spatial / 2^s); target (B, 3, *spatial) as ``data.Batch``. Returns a scalar.

        A target (B, 1, *spatial) is a label alone: nothing is ignored.
        """
        label = target[:, :1]
        ignore = target[:, 1:2] if target.shape[1] > 1 else torch.zeros_like(label)
        pool = F.max_pool3d if target.ndim == 5 else F.max_pool2d
        total = logits[0].new_zeros((), dtype=torch.float32)
        weights = [0.5**s for s in range(len(logits))]
        for scale, (logit, weight) in enumerate(zip(logits, weights, strict=True)):
            wanted, out = (pool(x, 2**scale) if scale else x for x in (label, ignore))
            keep = 1 - out * (1 - wanted)
            seen = logit[:, :1].float()
            total = total + weight * (soft_dice_loss(seen, wanted, keep) + self.entropy(seen, wanted, keep))
        total = total / sum(weights)
        if logits[0].shape[1] > 1 and target.shape[1] > 2:
            fluid = target[:, 2:]
            known = (fluid >= 0).float()
            total = total + FLUID_WEIGHT * cross_entropy(logits[0][:, 1:].float(), fluid.clamp_min(0), known)
        return total

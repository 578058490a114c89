"""Computes Dice and cross-entropy with deep supervision on max-pooled labels, and the loss of the PVS fraction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvs_model.training.config import LOSSES

#: Fraction of the voxels, those with the largest cross-entropy, that ``dice-topk`` averages.
TOP_SHARE = 0.1
#: Weight of the loss of the PVS fraction, whose mean is small because nearly all voxels hold no fluid.
PVS_FRACTION_WEIGHT = 5.0


def soft_dice_loss(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """1 - Dice of probabilities and labels over a whole batch, smoothed by 1 for batches without PVS.

    Args:
        logit, label: (B, 1, *spatial).
        keep: (B, 1, *spatial), 0 for ignored voxels, else 1.
    """
    probability = logit.sigmoid() * keep
    overlap = (probability * label).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + (label * keep).sum() + 1)


def cross_entropy(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Mean cross-entropy over voxels that are not ignored; shapes as for ``soft_dice_loss``. Labels may be soft."""
    entropy = F.binary_cross_entropy_with_logits(logit, label, reduction="none")
    return (entropy * keep).sum() / keep.sum().clamp_min(1)


def top_cross_entropy(logit: Tensor, label: Tensor, keep: Tensor) -> Tensor:
    """Mean cross-entropy of the tenth of the voxels where it is largest.

    Part of the loss of the challenge's winner (nnU-Net's ``DiceTopK10``). It uses hard voxels only, so probabilities
    are less calibrated than those of plain cross-entropy and the threshold has to be chosen again (docs/method.md).
    """
    entropy = (F.binary_cross_entropy_with_logits(logit, label, reduction="none") * keep).flatten()
    return entropy.topk(max(1, int(TOP_SHARE * len(entropy))), sorted=False).values.mean()


#: The term beside Dice of each loss in ``config.LOSSES``.
ENTROPIES = {"dice-ce": cross_entropy, "dice-topk": top_cross_entropy}


class DeepSupervision(nn.Module):
    """Mean of Dice + cross-entropy over scales, finer scales weighing more (1, 1/2, 1/4, ...).

    Labels are max-pooled, so that a tube one voxel wide survives at every scale: the multi-scale highlighted foreground
    of MfNS-De (Cai et al. 2024, section 2.4). Ignored voxels are max-pooled too, except where a label is among them.
    The cross-entropy of ``dice-ce`` is unweighted, which keeps probabilities calibrated for one fixed threshold. If the
    first logits have a second channel, its cross-entropy with the PVS fraction is added: a proper scoring rule, so
    that its sigmoid estimates the expected fraction.
    """

    def __init__(self, loss: str = "dice-ce") -> None:
        """
        Args:
            loss: One of ``config.LOSSES``.

        Raises:
            ValueError: For another loss.
        """
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
        self.entropy = ENTROPIES[loss]

    def forward(self, logits: Sequence[Tensor], target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Computes the loss.

        Args:
            logits: One (B, 1 or 2, *spatial / 2^s) per scale s.
            target: (B, 3, *spatial) as in ``Batch``, or (B, 1, *spatial) for a label alone.
            weights: Weight of each sample (B,), by default 1.

        Returns:
            Scalar float32.
        """
        label = target[:, :1]
        ignore = target[:, 1:2] if target.shape[1] > 1 else torch.zeros_like(label)
        pool = F.max_pool3d if target.ndim == 5 else F.max_pool2d
        total = logits[0].new_zeros((), dtype=torch.float32)
        weight = torch.ones(len(target)) if weights is None else weights
        weight = weight.to(label).reshape(-1, *[1] * (target.ndim - 1))
        scale_weights = [0.5**s for s in range(len(logits))]
        for scale, (logit, scale_weight) in enumerate(zip(logits, scale_weights, strict=True)):
            pooled, ignored = (pool(x, 2**scale) if scale else x for x in (label, ignore))
            keep = (1 - ignored * (1 - pooled)) * weight
            mask_logit = logit[:, :1].float()
            dice = soft_dice_loss(mask_logit, pooled, keep)
            total = total + scale_weight * (dice + self.entropy(mask_logit, pooled, keep))
        total = total / sum(scale_weights)
        if logits[0].shape[1] > 1 and target.shape[1] > 2:
            pvs_fraction = target[:, 2:]
            known = (pvs_fraction >= 0).float() * weight
            total = total + PVS_FRACTION_WEIGHT * cross_entropy(
                logits[0][:, 1:].float(), pvs_fraction.clamp_min(0), known
            )
        return total

"""Defines a batch of training samples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: PVS fraction of voxels for which it is not known.
UNKNOWN = -1.0


@dataclass(frozen=True)
class Batch:
    """Samples of one step.

    Attributes:
        images: float32 (B, C, *spatial).
        target: float32 (B, 3, *spatial): label (0 or 1), voxels ignored by losses and scores (1; never labelled), and
            PVS fraction (0 to 1, or ``UNKNOWN``).
        prompts: One per sample.
    """

    images: Tensor
    target: Tensor
    prompts: list[str]

    @property
    def label(self) -> Tensor:
        """(B, 1, *spatial), 0 or 1."""
        return self.target[:, :1]

    @property
    def ignore(self) -> Tensor:
        """(B, 1, *spatial), 1 where losses and scores ignore the voxel."""
        return self.target[:, 1:2]


def join(batches: Sequence[Batch], device: torch.device) -> Batch:
    """Concatenates batches on a device."""
    return Batch(
        torch.cat([batch.images.to(device) for batch in batches]),
        torch.cat([batch.target.to(device) for batch in batches]),
        [prompt for batch in batches for prompt in batch.prompts],
    )


def flip(image: Tensor, target: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Flips an image (C, *spatial) and its target alike.

    The left-right axis with probability 0.5; the others with 0.1, for scans in unusual orientations.
    """
    axes = [a for a in range(1, image.ndim) if rng.random() < (0.5 if a == 1 else 0.1)]
    return (image.flip(axes), target.flip(axes)) if axes else (image, target)

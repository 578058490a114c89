"""Batches of slices of a volume for the 2D network, with neighbouring slices as additional channels."""

from __future__ import annotations

import torch
from torch import Tensor


def stack_slices(volume: Tensor, neighbours: int) -> Tensor:
    """Stacks each slice along the last axis with its neighbours: (C, X, Y, Z) -> (Z, C * neighbours, X, Y).

    Border slices are repeated. Channels are ordered by sequence, then by slice from below to above, as
    ``SegmentationNet`` expects.

    Args:
        volume: (C, X, Y, Z).
        neighbours: Odd number of slices per sequence: 3 = the slice itself and one on each side.
    """
    count = volume.shape[-1]
    middle = torch.arange(count, device=volume.device)[:, None]
    offsets = torch.arange(neighbours, device=volume.device) - neighbours // 2
    index = (middle + offsets).clamp(0, count - 1)  # (Z, k)
    stacked = volume[..., index]  # (C, X, Y, Z, k)
    return stacked.permute(3, 0, 4, 1, 2).flatten(1, 2)

"""Windows over an image: where they lie, and how their maps are joined."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Window = tuple[slice, slice, slice]

#: Deviation of the Gaussian weights as a fraction of the side, and their minimum, as in nnU-Net.
_SIGMA, _MIN_WEIGHT = 1 / 8, 1e-3


def starts(length: int, side: int, overlap: float) -> list[int]:
    """Lists the first voxels of the fewest windows that cover an axis, evenly spaced.

    Args:
        length: Voxels of the axis.
        side: Voxels of a window.
        overlap: Smallest overlap of neighbours as a fraction of the side, 0 to 1 (exclusive).

    Example:
        >>> starts(150, 64, overlap=0.25), starts(40, 64, overlap=0.25)
        ([0, 43, 86], [0])
    """
    if length <= side:
        return [0]
    count = 1 + math.ceil((length - side) / max(1, int(side * (1 - overlap))))
    return [k * (length - side) // (count - 1) for k in range(count)]


def windows(shape: Sequence[int], sides: Sequence[int], overlap: float, searched: Tensor | None = None) -> list[Window]:
    """Lists the windows that cover an image, without those that contain nothing to search.

    Args:
        shape: Voxels of the image (X, Y, Z).
        sides: Voxels of a window, per axis; 1 for no overlap along an axis.
        overlap: As in ``starts``.
        searched: bool (X, Y, Z), the voxels whose maps are needed; None or nowhere for all.

    Returns:
        Slices of the image; beyond its end where the image is smaller than a window.
    """
    per_axis = [starts(length, side, overlap) for length, side in zip(shape, sides, strict=True)]
    x, y, z = ([slice(a, a + side) for a in first] for first, side in zip(per_axis, sides, strict=True))
    boxes = list(itertools.product(x, y, z))
    return [box for box in boxes if searched is None or searched[box].any()] or boxes


def join_windows(
    image: Tensor,
    sides: Sequence[int],
    boxes: Iterable[Window],
    predict: Callable[[Tensor], Tensor],
    batch_size: int = 1,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Computes the maps of all windows and averages them with Gaussian weights.

    Args:
        image: float32 (channels, X, Y, Z).
        sides: Voxels of a window, per axis.
        boxes: Windows from ``windows``.
        predict: Function from windows (B, channels, *sides) on ``device`` to maps (B, outputs, *sides).
        batch_size: Windows per call.
        device: Where ``predict`` runs; maps are joined where the image is.

    Returns:
        float32 (outputs, X, Y, Z), 0 where there is no window.
    """
    shape = image.shape[1:]
    short = [max(0, side - length) for side, length in zip(sides, shape, strict=True)]
    if any(short):  # on both sides
        padding = [n for extra in reversed(short) for n in (extra // 2, extra - extra // 2)]
        image = torch.nn.functional.pad(image, padding)
    weights = _weights(sides).to(image.device)
    norm = torch.zeros(image.shape[1:], device=image.device)
    total: Tensor | None = None
    remaining = iter(boxes)
    while batch := list(itertools.islice(remaining, batch_size)):
        maps = predict(torch.stack([image[(slice(None), *box)] for box in batch]).to(device)).to(image.device)
        total = maps.new_zeros(maps.shape[1], *norm.shape) if total is None else total
        for box, values in zip(batch, maps, strict=True):
            total[(slice(None), *box)] += weights * values
            norm[box] += weights
    assert total is not None, "expected at least one window"
    total /= norm.clamp_min_(_MIN_WEIGHT)
    return total[(slice(None), *(slice(e // 2, e // 2 + n) for e, n in zip(short, shape, strict=True)))]


def _weights(sides: Sequence[int]) -> Tensor:
    """Gaussian weights (*sides), 1 in the centre."""
    axes = [torch.arange(side) - (side - 1) / 2 for side in sides]
    x, y, z = (torch.exp(-0.5 * (a / (_SIGMA * side)) ** 2) for a, side in zip(axes, sides, strict=True))
    return (x[:, None, None] * y[:, None] * z).clamp_min(_MIN_WEIGHT)

"""One scale of intensities for every scan: 0 to 1, whatever the contrast, with the skull or without."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: The most common value of an image is its background from this share of its voxels on; else the lowest is.
_COMMON = 0.05
#: Voxels looked at for the background and the percentiles.
_SAMPLE = 300_000
_PERCENT = (0.005, 0.995)
#: The darkest tissue stands this far above the background, so that the rim of a stripped brain shows.
FLOOR = 0.05


def background_of(image: npt.NDArray[np.float32] | Tensor) -> float:
    """The value around the head: the most common one where it is common, else the lowest.

    Args:
        image: any shape, finite.
    """
    flat = torch.as_tensor(image).reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    values, counts = torch.unique(sample, return_counts=True)
    most = int(counts.argmax())
    common = float(counts[most]) >= _COMMON * len(sample)
    return float(values[most]) if common else float(values[0])


def normalise(image: Tensor) -> Tensor:
    """Values to 0 (exactly 0, the background) and ``FLOOR`` to 1 (between two percentiles of the rest).

    A gain and an offset of the scanner leave the result as it is, as long as the background is 0. Whether the
    skull is there does not matter here: the network has seen both.

    Args:
        image: float32 (x, y, z), its background at 0.

    Returns:
        float32 (x, y, z); all 0 where the image is.
    """
    flat = image.reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    sample = sample[sample != 0]
    if len(sample) == 0:
        sample = flat[flat != 0]
    if len(sample) == 0:
        return torch.zeros_like(image)
    low, high = torch.quantile(sample, torch.tensor(_PERCENT, device=sample.device)).tolist()
    scaled = FLOOR + (1 - FLOOR) * ((image - low) / max(high - low, 1e-6 * abs(high), 1e-12)).clamp(0, 1)
    return torch.where(image == 0, 0.0, scaled)

"""Normalises the intensities of any scan to 0 to 1, with or without the skull."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

#: Fraction of voxels from which the most common value is the background; else the lowest value is.
_COMMON = 0.05
#: Number of voxels from which background and percentiles are computed.
_SAMPLE = 300_000
_PERCENT = (0.005, 0.995)
#: Value of the darkest tissue, above the background, so that the edge of a stripped brain is visible.
FLOOR = 0.05


def background_of(image: npt.NDArray[np.float32] | Tensor) -> float:
    """Background value of a scan: the most common value if it is common enough, else the lowest.

    Args:
        image: Finite values, any shape.
    """
    flat = torch.as_tensor(image).reshape(-1)
    sample = flat[:: max(1, len(flat) // _SAMPLE)]
    values, counts = torch.unique(sample, return_counts=True)
    most = int(counts.argmax())
    common = float(counts[most]) >= _COMMON * len(sample)
    return float(values[most]) if common else float(values[0])


def normalise(image: Tensor) -> Tensor:
    """Scales an image to ``FLOOR`` to 1 between two percentiles; the background stays exactly 0.

    Gain and offset of the scanner do not change the result as long as the background is 0.

    Args:
        image: float32 (x, y, z), background 0.

    Returns:
        float32 (x, y, z), 0 where the image is 0.
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

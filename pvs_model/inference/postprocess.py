"""From probabilities to a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pvs_model.types import FloatArray, Mask


def to_mask(probability: FloatArray, threshold: float, inside: npt.NDArray[np.bool_]) -> Mask:
    """Voxels within the head or brain whose probability reaches the threshold.

    Args:
        probability: (x, y, z), 0 to 1.
        threshold: 0 to 1.
        inside: (x, y, z), the foreground.

    Returns:
        uint8 (x, y, z), 0 and 1.
    """
    return ((probability >= threshold) & inside).astype(np.uint8)

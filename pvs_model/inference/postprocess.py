"""From probabilities to a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pvs_model.types import FloatArray, Mask

#: PVS of 1 mm width and less than that in length: chosen on two held-out simulated heads at 0.5 mm (docs/results.md).
LEAST_MM3 = 0.5


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


def without_specks(mask: Mask, voxel_mm3: float) -> Mask:
    """Without the clusters of less than ``LEAST_MM3``: no vessel can be told from noise in them.

    One voxel of 0.8 mm is enough; so this is about finer scans alone, where noise is marked in ones, twos and threes.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        voxel_mm3: volume of a voxel.
    """
    from scipy import ndimage

    if voxel_mm3 >= LEAST_MM3:
        return mask
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    keep = np.bincount(labels.ravel()) * voxel_mm3 >= LEAST_MM3 * (1 - 1e-4)  # affines pass through float32
    keep[0] = False
    return keep[labels].astype(np.uint8)


def keep_within(mask: Mask, region: npt.NDArray[np.bool_]) -> tuple[Mask, int]:
    """Without the clusters of which less than half lies in a region.

    A cluster is kept or dropped whole: regions come from a coarse grid, and would nibble at those on their border.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        region: bool (x, y, z).

    Returns:
        the mask that is left, and the number of 26-connected clusters that were dropped.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        return mask, 0
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    within = np.bincount(labels[region], minlength=count + 1)
    keep = 2 * within >= sizes
    keep[0] = False
    return keep[labels].astype(np.uint8), int(count - keep.sum())

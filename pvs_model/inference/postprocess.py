"""From probabilities to a mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pvs_model.types import BoolArray, FloatArray, Mask
from pvs_model.volume.components import filter_components, label_components

#: A PVS of 1 mm width and a shorter length: chosen on two held-out simulated heads at 0.5 mm.
MIN_COMPONENT_MM3 = 0.5


def threshold_and_filter(
    probability: FloatArray,
    threshold: float,
    foreground: BoolArray,
    voxel_mm3: float,
    limits: Sequence[BoolArray] = (),
    low_threshold: float | None = None,
) -> tuple[Mask, int]:
    """Derives the mask of a case: what reaches the thresholds, is large enough, and lies within the limits.

    Args:
        probability: (x, y, z), 0 to 1.
        threshold: 0 to 1, what a component must reach.
        foreground: bool (x, y, z), head or brain.
        voxel_mm3: Volume of a voxel.
        limits: Regions, bool (x, y, z), that at least half of each component must lie in.
        low_threshold: What each of its voxels must reach, as in ``to_mask``.

    Returns:
        uint8 (x, y, z), 0 and 1, and the number of components removed because they lie outside.
    """
    mask = remove_small_components(to_mask(probability, threshold, foreground, low_threshold), voxel_mm3)
    removed = 0
    for region in limits:
        mask, count = remove_components_outside(mask, region)
        removed += count
    return mask, removed


def to_mask(
    probability: FloatArray, threshold: float, foreground: BoolArray, low_threshold: float | None = None
) -> Mask:
    """Marks the components of the foreground whose probability reaches the threshold somewhere (hysteresis).

    A component consists of 26-connected voxels that reach the lower threshold, so that detection and outline can be
    tuned apart.

    Args:
        probability: (x, y, z), 0 to 1.
        threshold: 0 to 1, what a component must reach.
        foreground: bool (x, y, z), head or brain.
        low_threshold: 0 to ``threshold``, what each of its voxels must reach; by default the threshold itself.

    Returns:
        uint8 (x, y, z), 0 and 1.

    Example:
        >>> probability = np.array([0.4, 0.7, 0.2, 0.4]).reshape(4, 1, 1)
        >>> to_mask(probability, 0.6, np.ones((4, 1, 1), bool), low_threshold=0.3).ravel().tolist()
        [1, 1, 0, 0]
    """
    high = (probability >= threshold) & foreground
    if low_threshold is None or low_threshold == threshold:
        return high.astype(np.uint8)
    from scipy import ndimage

    low = (probability >= low_threshold) & foreground
    return ndimage.binary_propagation(high, np.ones((3, 3, 3), bool), mask=low).astype(np.uint8)


def remove_small_components(mask: Mask, voxel_mm3: float) -> Mask:
    """Removes connected components smaller than ``MIN_COMPONENT_MM3``, which cannot be distinguished from noise.

    A single voxel of 0.8 mm is large enough, so that this only concerns finer scans.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        voxel_mm3: Volume of a voxel.

    Example:
        >>> mask = np.zeros((5, 5, 5), np.uint8)
        >>> mask[0, 0, 0] = mask[2:4, 2:4, 2] = 1
        >>> int(remove_small_components(mask, voxel_mm3=0.125).sum())
        4
    """
    if voxel_mm3 >= MIN_COMPONENT_MM3:
        return mask
    min_mm3 = MIN_COMPONENT_MM3 * (1 - 1e-4)  # affines are stored as float32
    return filter_components(mask, lambda sizes: sizes * voxel_mm3 >= min_mm3).astype(np.uint8)


def remove_components_outside(mask: Mask, region: BoolArray) -> tuple[Mask, int]:
    """Removes connected components of which less than half lies in a region.

    Components are kept or removed whole: regions come from a coarse grid and would erode those on their border.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        region: bool (x, y, z).

    Returns:
        The remaining mask, and the number of 26-connected components that were removed.
    """
    labels, sizes = label_components(mask)
    keep = np.bincount(labels[region], minlength=len(sizes)) >= sizes / 2
    keep[0] = False
    return keep[labels].astype(np.uint8), int(len(sizes) - 1 - keep.sum())

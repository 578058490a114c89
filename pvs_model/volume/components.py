"""Labels and selects connected components of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.types import BoolArray

#: Connectivity in 3D: voxels that share a face (6 neighbours), or at least a corner (26 neighbours).
FACES, CORNERS = 1, 3

Labels = npt.NDArray[np.int32]


def label_components(mask: npt.NDArray[Any], connectivity: int = CORNERS) -> tuple[Labels, npt.NDArray[np.intp]]:
    """Numbers the connected components of a mask.

    Args:
        mask: Array of any dimension; foreground where not 0.
        connectivity: ``FACES`` or ``CORNERS``; in 2D, 1 or 2.

    Returns:
        The labels, 0 in the background and 1, 2, ... in the components; and the number of voxels by label, with 0 for
        the background.

    Example:
        >>> labels, sizes = label_components(np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0]]), FACES)
        >>> labels.max(), sizes.tolist()
        (np.int32(2), [0, 2, 1])
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def filter_components(
    mask: npt.NDArray[Any], keep: Callable[[npt.NDArray[np.intp]], BoolArray], connectivity: int = CORNERS
) -> BoolArray:
    """Keeps the connected components whose numbers of voxels satisfy a condition.

    Args:
        mask: Array of any dimension; foreground where not 0.
        keep: Maps numbers of voxels (n,) to bool (n,).
        connectivity: As in ``label_components``.
    """
    labels, sizes = label_components(mask, connectivity)
    selected = np.asarray(keep(sizes)) & (sizes > 0)
    return np.asarray(selected[labels])


def largest_component(mask: npt.NDArray[Any], connectivity: int = FACES) -> BoolArray:
    """Keeps the largest connected component, the first of equally large ones; an empty mask stays empty."""
    labels, sizes = label_components(mask, connectivity)
    largest = int(sizes.argmax())
    return np.asarray(labels == largest) if largest else np.zeros(mask.shape, bool)

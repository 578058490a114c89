"""Labels PVS that an annotator would mark, by their contrast-to-noise ratio in the acquired images.

Most PVS are 0.6 to 0.9 mm wide and fill less than half of a 1 mm voxel, but annotators see and mark them. So labels
follow visibility, not the partial-volume fraction. With the noise-free contribution of PVS to a channel, Delta_c (the
image with PVS minus the image without, after point spread, slices, interpolation and shift):

    CNR_c = |Delta_c| / noise_c,    v = max over the channels present of CNR_c

A voxel belongs to the extent of a PVS if v is at least half of its maximum in the neighbourhood (about 3 mm, at least
3 voxels; full width at half maximum). It is labelled if v reaches ``VISIBLE`` within that extent; voxels beyond a gap
belong to another PVS. Where the maximum lies between ``HIDDEN`` and ``VISIBLE``, annotators disagree, and losses and
scores ignore the voxels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pvs_model.config import is_thick

#: Contrast-to-noise ratios: from ``VISIBLE`` all annotators mark a PVS, up to ``HIDDEN`` none does.
VISIBLE, HIDDEN = 2.5, 1.0
#: Partial-volume fraction from which a voxel is mostly PVS.
FILLED = 0.5
#: Side of the neighbourhood of the local maximum.
NEIGHBOURHOOD_MM = 3.0


def neighbourhood(voxel_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Computes the sides of the neighbourhood in voxels: odd, about 3 mm, at least 3, and 1 across thick slices.

    >>> neighbourhood((0.5, 0.5, 6.0))
    (7, 7, 1)
    """
    x, y, z = (1 if is_thick(v) else 2 * max(1, int(NEIGHBOURHOOD_MM / 2 / v + 1e-6)) + 1 for v in voxel_mm)
    return x, y, z


def local_maximum(cnr: Tensor, voxel_mm: tuple[float, float, float]) -> Tensor:
    """Computes the maximum over the neighbourhood of each voxel of a map (X, Y, Z)."""
    return _maximum(cnr, neighbourhood(voxel_mm))


def _maximum(values: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Computes the maximum of a map (X, Y, Z) over boxes with odd sides."""
    highest = values
    for axis, side in enumerate(sides):
        n = values.shape[axis]
        before, highest = highest, highest.clone()
        for step in range(1, min(side // 2, n - 1) + 1):  # shifted copies: several times faster than pooling
            for to, source in ((0, step), (step, 0)):
                part = highest.narrow(axis, to, n - step)
                torch.maximum(part, before.narrow(axis, source, n - step), out=part)
    return highest


def label_visible(
    cnr: Tensor, voxel_mm: tuple[float, float, float], pvs_fraction: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels visible PVS and selects barely visible ones, which losses and scores ignore.

    Args:
        cnr: (X, Y, Z), largest contrast-to-noise ratio of PVS over the channels present, 0 without PVS.
        voxel_mm: Voxel spacing.
        pvs_fraction: (X, Y, Z), partial-volume fraction of PVS. If given, visible voxels outside the extent that are
            mostly PVS (faint segments beside bright ones) are ignored instead of being background.

    Returns:
        Two bool maps (X, Y, Z): the label, and the voxels to ignore, which are never labelled.

    Example:
        >>> import torch
        >>> cnr = torch.zeros(9, 1, 1)
        >>> cnr[:, 0, 0] = torch.tensor([0, 0, 1.0, 4.0, 2.0, 0, 0, 1.5, 0])
        >>> label, ignore = label_visible(cnr, (1.0, 1.0, 1.0))
        >>> label[:, 0, 0].nonzero().flatten().tolist(), ignore[:, 0, 0].nonzero().flatten().tolist()
        ([3, 4], [7])
    """
    extent = (cnr >= local_maximum(cnr, voxel_mm) / 2) & (cnr > 0)
    # Spreads maxima within the extent, up to the radius of the neighbourhood.
    own = cnr * extent
    sides = neighbourhood(voxel_mm)
    for _ in range(max(sides) // 2):
        own = _maximum(own, tuple(min(3, side) for side in sides)) * extent
    label, ignore = own >= VISIBLE, (own > HIDDEN) & (own < VISIBLE)
    if pvs_fraction is not None:
        ignore = ignore | (~label & (pvs_fraction >= FILLED) & (cnr >= VISIBLE))
    return label, ignore

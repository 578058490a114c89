"""Which voxels an annotator would mark: labels by the contrast-to-noise ratio of PVS in the acquired images.

Most PVS are 0.6 to 0.9 mm wide, fill less than half of a 1 mm voxel, and are marked all the same, since they are
seen. So the label follows what is seen, not what is filled. With the noise-free contribution of PVS to a channel,
Delta_c (the image with PVS minus the image without, through the same point spread, slices, interpolation and shift):

    CNR_c = |Delta_c| / noise_c,    v = max over the channels present of CNR_c

A voxel belongs to the extent of a PVS where v is at least half of its maximum in the neighbourhood (about 3 mm, at
least 3 voxels; full width at half maximum). It is labelled where v reaches ``VISIBLE`` in that extent, no further away:
what is bright beyond a gap is another PVS. Where the maximum lies between ``HIDDEN`` and ``VISIBLE``, annotators
disagree: these voxels are ignored by losses and scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Contrast-to-noise ratio from which every annotator sees a PVS, and up to which none does.
VISIBLE, HIDDEN = 2.5, 1.0
#: Share from which a voxel is mostly filled.
FILLED = 0.5
#: Side of the neighbourhood whose maximum a voxel is compared with.
NEIGHBOURHOOD_MM = 3.0
#: Slices of this thickness and above are read one at a time: the neighbourhood does not reach across them.
THICK_SLICE_MM = 2.5


def neighbourhood(voxel_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Sides in voxels (odd) of the neighbourhood: about 3 mm and at least 3 voxels; 1 across thick slices.

    >>> neighbourhood((0.5, 0.5, 6.0))
    (7, 7, 1)
    """
    x, y, z = (1 if v >= THICK_SLICE_MM else 2 * max(1, int(NEIGHBOURHOOD_MM / 2 / v + 1e-6)) + 1 for v in voxel_mm)
    return x, y, z


def local_maximum(cnr: Tensor, voxel_mm: tuple[float, float, float]) -> Tensor:
    """Maximum of a map (X, Y, Z) over the neighbourhood of each voxel."""
    return _maximum(cnr, neighbourhood(voxel_mm))


def _maximum(values: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Maximum of a map (X, Y, Z) over boxes of odd sides."""
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
    cnr: Tensor, voxel_mm: tuple[float, float, float], fluid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels visible PVS, and marks what is barely visible.

    Args:
        cnr: (X, Y, Z), v: the largest contrast-to-noise ratio of PVS over the channels present; 0 where there is none.
        voxel_mm: spacing of the grid.
        fluid: (X, Y, Z), share of each voxel that PVS fill. Where given, voxels that are visible and mostly filled, but
            outside the extent (dim stretches beside bright ones), are ignored, too, rather than called background.

    Returns:
        bool (X, Y, Z): the label; and the voxels to ignore, which are never labelled.

    Example:
        >>> import torch
        >>> cnr = torch.zeros(9, 1, 1)
        >>> cnr[:, 0, 0] = torch.tensor([0, 0, 1.0, 4.0, 2.0, 0, 0, 1.5, 0])
        >>> label, ignore = label_visible(cnr, (1.0, 1.0, 1.0))
        >>> label[:, 0, 0].nonzero().flatten().tolist(), ignore[:, 0, 0].nonzero().flatten().tolist()
        ([3, 4], [7])
    """
    extent = (cnr >= local_maximum(cnr, voxel_mm) / 2) & (cnr > 0)
    # From voxel to voxel within the extent, as far as the neighbourhood reaches.
    own = cnr * extent
    sides = neighbourhood(voxel_mm)
    for _ in range(max(sides) // 2):
        own = _maximum(own, tuple(min(3, side) for side in sides)) * extent
    label, ignore = own >= VISIBLE, (own > HIDDEN) & (own < VISIBLE)
    if fluid is not None:
        ignore = ignore | (~label & (fluid >= FILLED) & (cnr >= VISIBLE))
    return label, ignore

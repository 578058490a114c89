"""Assigns PVS to regions and sides, and sums them up by region.

A PVS is a 26-connected cluster of the whole mask. It is counted once: in the region that has most of its voxels, on
the side that has most of them. Volumes go by voxels, so a PVS that crosses a border adds to the volumes on both sides
of it, and the volumes of regions add up. A voxel of several regions belongs to the one named first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pvs_model.burden.records import ALL, BOTH, LEFT, OTHER, RIGHT, Pvs, RegionBurden
from pvs_model.types import BoolArray, Mask

#: Values of a map of hemispheres; 0 is neither.
SIDES = {LEFT: 1, RIGHT: 2}


def region_map(regions: Mapping[str, BoolArray], shape: tuple[int, ...]) -> Mask:
    """Returns the regions as one map: 1, 2, ... in the order of names, 0 outside all; ``ALL`` is left out."""
    values = np.zeros(shape, np.uint8)
    names = [name for name in regions if name != ALL]
    for value, name in reversed(list(enumerate(names, 1))):
        values[regions[name] != 0] = value
    return values


def region_of(values: Mask, names: Sequence[str]) -> str:
    """Returns the region of a PVS.

    Args:
        values: Region map at its voxels.
        names: Names of the regions 1, 2, ...

    Returns:
        The region with most of its voxels, among equals the one named first; ``OTHER`` where more of its voxels lie
        outside all regions than in any.
    """
    votes = np.bincount(values, minlength=len(names) + 1)
    best = int(votes[1:].argmax()) + 1 if len(names) else 0
    return names[best - 1] if best and votes[best] >= votes[0] else OTHER


def side_of(values: Mask) -> str | None:
    """Returns the side of most of a PVS's voxels, left among equals; None where none of them has a side.

    Args:
        values: Map of hemispheres at its voxels.
    """
    left, right = (int((values == SIDES[side]).sum()) for side in (LEFT, RIGHT))
    return None if left == right == 0 else LEFT if left >= right else RIGHT


def region_burden(
    pvs: Sequence[Pvs],
    region: str,
    hemisphere: str,
    volume_mm3: float,
    region_mm3: float | None,
    intracranial_mm3: float | None,
    expected_fluid_mm3: float | None = None,
    fluid_known: bool = False,
) -> RegionBurden:
    """Returns one row: the PVS of this region and side, and the volumes given."""
    counted = [p for p in pvs if p.is_in(region) and hemisphere in (BOTH, p.hemisphere)]
    here = [p.shape for p in counted]
    lengths, widths = [shape.length_mm for shape in here], [shape.width_mm for shape in here]
    return RegionBurden(
        region,
        hemisphere,
        count=len(here),
        volume_mm3=volume_mm3,
        region_mm3=region_mm3,
        intracranial_mm3=intracranial_mm3,
        mean_length_mm=float(np.mean(lengths)) if here else None,
        median_length_mm=float(np.median(lengths)) if here else None,
        mean_width_mm=float(np.mean(widths)) if here else None,
        median_width_mm=float(np.median(widths)) if here else None,
        fluid_mm3=float(sum(p.fluid_mm3 or 0 for p in counted)) if fluid_known else None,
        expected_fluid_mm3=expected_fluid_mm3,
    )


def voxels_by_region(values: Mask, hemispheres: Mask | None, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Counts the voxels of each region and side.

    Args:
        values: Region map, any shape.
        hemispheres: Map of hemispheres of the same shape, or None.
        names: Names of the regions 1, 2, ...

    Returns:
        (regions + 1, 3): by region, 0 for outside; by side: neither, left, right.
    """
    # Repeated comparisons of bytes are faster than a conversion to 64-bit integers, as np.bincount needs.
    code = values if hemispheres is None else values * np.uint8(3) + hemispheres
    wide = 1 if hemispheres is None else 3
    counts = [np.count_nonzero(code == value) for value in range(wide * (len(names) + 1))]
    return np.pad(np.array(counts, np.int64).reshape(-1, wide), ((0, 0), (0, 3 - wide)))

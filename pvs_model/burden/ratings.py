"""Visual rating scales, ESTIMATED from counts of a mask's clusters: no rater has seen the scan.

Potter (Doubal 2010, Potter 2015; as worded in mcpvs_net_2024, 2.9)
    0 = none, 1 = 1 to 10, 2 = 11 to 20, 3 = 21 to 40, 4 = more than 40, for the basal ganglia and the centrum
    semiovale each; midbrain 0 = none, 1 = any. What is counted here: PVS of one region on one side that reach an axial
    slab of about 5 mm; the highest count, of the worse side. A PVS counts once on a slab, however often it dips in
    and out.
mcPVS-Net (mcpvs_net_2024, 2.7), both sides together
    basal ganglia, in total: 1 = fewer than 5, 2 = 5 to 10, 3 = more than 10. Score 4, "uncountable", is never given:
    a mask can always be counted, and there is no published limit for confluent PVS.
    White matter: 1 = fewer than 10 in total, 2 = more than 10 in total but 10 at most on any section, 3 = 10 to 20
    on the fullest section, 4 = more than 20 on it. A section is a slab as above. The wording leaves out a total of
    exactly 10 and has a section of exactly 10 twice: both get the lower score, 1 and 2.

Where slabs begin is arbitrary. With n slices to a slab there are n ways to cut; the fullest slab of each is taken, and
the median of the n (the lower of the two middle ones) is the count. So neither an empty slice more at the image's edge
nor a flip changes a score, and thin slices, which could be cut in more ways, do not score higher than thick ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pvs_model.burden.records import BOTH, LEFT, MCPVS, POTTER, RIGHT, EstimatedScore, Pvs

#: Thickness of a clinical slice with its gap: the slabs are as near to it as whole slices allow.
SLAB_MM = 5.0


def slices_per_slab(slice_mm: float) -> int:
    """Returns the number of axial slices of this thickness in a slab: 1 or more."""
    return max(1, math.floor(SLAB_MM / slice_mm + 0.5))


def potter_score(count: int) -> int:
    """Returns the estimated score 0 to 4 of a count of PVS in the basal ganglia or the centrum semiovale.

    Raises:
        ValueError: a count below 0; so do the other scores.
    """
    _check(count)
    return sum(count > most for most in (0, 10, 20, 40))


def midbrain_score(count: int) -> int:
    """Returns the estimated score 0 or 1 of a count of PVS in the midbrain."""
    _check(count)
    return int(count > 0)


def mcpvs_bg_score(total: int) -> int:
    """Returns the estimated score 1 to 3 of the number of PVS in the basal ganglia."""
    _check(total)
    return 1 + (total >= 5) + (total > 10)


def mcpvs_wm_score(total: int, fullest: int) -> int:
    """Returns the estimated score 1 to 4 of the PVS in the white matter, in total and on the fullest section."""
    _check(fullest)
    if fullest > total:
        raise ValueError(f"expected no more PVS on a section than in all, got {fullest} of {total}")
    if total <= 10:
        return 1
    return 2 + (fullest > 10) + (fullest > 20)


def _check(count: int) -> None:
    if count < 0:
        raise ValueError(f"expected a count of 0 or more, got {count}")


def fullest_slab(spans: Sequence[tuple[int, int]], slices: int) -> tuple[int, tuple[int, int] | None]:
    """Returns the highest count of PVS on one slab, the median over the ways to cut.

    Args:
        spans: First and last slice of each PVS.
        slices: Slices per slab, 1 or more.

    Returns:
        The count, and the first and last slice of a slab that has it, as far as there are PVS; 0 and None without any.
    """
    if not spans:
        return 0, None
    low, high = np.array(spans).T
    origin = int(low.min()) - slices
    fullest_slabs = []
    for start in range(origin + 1, origin + slices + 1):
        first, last = (low - start) // slices, (high - start) // slices
        change = np.zeros(int(last.max()) + 2, np.int64)
        np.add.at(change, first, 1)
        np.add.at(change, last + 1, -1)
        counts = change.cumsum()
        slab = int(counts.argmax())
        fullest_slabs.append((int(counts[slab]), start + slab * slices))
    count, start = sorted(fullest_slabs, key=lambda item: item[0])[(slices - 1) // 2]
    return count, (max(int(low.min()), start), min(int(high.max()), start + slices - 1))


def estimate(pvs: Sequence[Pvs], regions: Sequence[str], slices: int, sides: bool) -> tuple[EstimatedScore, ...]:
    """Estimates the scores of all regions that have a scale.

    Args:
        pvs: All PVS with the regions and sides they are counted in.
        regions: Names of the measured regions; "BG", "CSO" and "midbrain" have scales.
        slices: Slices per slab.
        sides: Whether left and right are known; without them there is no Potter score of BG and CSO.
    """
    scores = []
    for region in ("BG", "CSO"):
        if region not in regions:
            continue
        here = [p for p in pvs if p.region == region]
        if sides:
            (count, slab), side = max(
                ((fullest_slab([p.slices for p in here if p.hemisphere == side], slices), side)
                 for side in (LEFT, RIGHT)),
                key=lambda item: item[0][0],
            )  # fmt: skip
            scores.append(EstimatedScore(POTTER, region, potter_score(count), count, side, slab))
        if region == "BG":
            scores.append(EstimatedScore(MCPVS, region, mcpvs_bg_score(len(here)), len(here), BOTH, None))
        else:
            count, slab = fullest_slab([p.slices for p in here], slices)
            score = mcpvs_wm_score(len(here), count)
            by_total = len(here) <= 10
            scores.append(
                EstimatedScore(MCPVS, region, score, len(here) if by_total else count, BOTH, None if by_total else slab)
            )
    if "midbrain" in regions:
        count = sum(p.region == "midbrain" for p in pvs)
        scores.append(EstimatedScore(POTTER, "midbrain", midbrain_score(count), count, BOTH, None))
    return tuple(scores)

"""Visual rating scales, ESTIMATED from counts of a mask's clusters: no rater has seen the scan.

Potter (Doubal 2010, Potter 2015; as worded in mcpvs_net_2024, 2.9)
    0 = none, 1 = 1 to 10, 2 = 11 to 20, 3 = 21 to 40, 4 = more than 40, for the basal ganglia and the centrum
    semiovale each; midbrain 0 = none, 1 = any. What is counted here: PVS of one region on one side, of the worse
    side. In the basal ganglia those that reach an axial slab of about 5 mm, on the slab with most of them. In the
    centrum semiovale those that reach the prescribed section, 1 cm above the roof of the lateral ventricle (Adams 2013;
    mfns_de_t2_2024, 2.3); the fullest slab where that section is unknown. A PVS counts once on a slab, however often
    it dips in and out.
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


def estimate(
    pvs: Sequence[Pvs], regions: Sequence[str], slices: int, sides: bool, potter_sections: Sequence[str] = ()
) -> tuple[EstimatedScore, ...]:
    """Estimates the scores of all regions that have a scale.

    Args:
        pvs: All PVS with the regions and sides they are counted in.
        regions: Names of the measured regions and parts; "BG", "CSO", "WM" and "midbrain" have scales.
        slices: Slices per slab.
        sides: Whether left and right are known; without them there is no Potter score of BG and CSO.
        potter_sections: Regions with a known rated section, on which the Potter score counts.
    """
    scores = []
    if "BG" in regions:
        if sides:
            scores.append(_potter(pvs, "BG", slices, "BG" in potter_sections))
        total = sum(p.is_in("BG") for p in pvs)
        scores.append(EstimatedScore(MCPVS, "BG", mcpvs_bg_score(total), total, BOTH, None))
    if "CSO" in regions and sides:
        scores.append(_potter(pvs, "CSO", slices, "CSO" in potter_sections))
    if "WM" in regions:
        here = [p for p in pvs if p.is_in("WM")]
        count, slab = fullest_slab([p.slices for p in here], slices)
        score, by_total = mcpvs_wm_score(len(here), count), len(here) <= 10
        counted = len(here) if by_total else count
        scores.append(EstimatedScore(MCPVS, "WM", score, counted, BOTH, None if by_total else slab))
    if "midbrain" in regions:
        count = sum(p.is_in("midbrain") for p in pvs)
        scores.append(EstimatedScore(POTTER, "midbrain", midbrain_score(count), count, BOTH, None))
    return tuple(scores)


def _potter(pvs: Sequence[Pvs], region: str, slices: int, on_rated_section: bool) -> EstimatedScore:
    """Estimates the Potter score of the PVS of one region: that of the side with more of them, left among equals."""
    counts: dict[str, tuple[int, tuple[int, int] | None]] = {}
    for side in (LEFT, RIGHT):
        here = [p for p in pvs if p.is_in(region) and p.hemisphere == side]
        if on_rated_section:
            counts[side] = sum(region in p.potter_sections for p in here), None
        else:
            counts[side] = fullest_slab([p.slices for p in here], slices)
    side = max(counts, key=lambda name: counts[name][0])
    count, slab = counts[side]
    return EstimatedScore(POTTER, region, potter_score(count), count, side, slab, on_rated_section)

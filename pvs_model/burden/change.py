"""Change between two visits of a subject: PVS matched between them, and differences of counts and volumes by region.

Masks stay on the grid of their own visit: resampling would change every volume. Only positions of voxels are moved,
into the space in the middle of all visits, so that no visit is treated differently from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pvs_model.burden.records import BOTH, Burden, Pvs, RegionBurden, Value
from pvs_model.types import Affine, BoolArray, Float64Array, spacing_of
from pvs_model.volume.components import label_components

#: Status of a PVS: in both visits, only in the earlier, only in the later, or outside the other visit's image.
STABLE, GONE, NEW, OUTSIDE = "stable", "gone", "new", "outside"
#: Largest distance of the nearest voxels of two PVS that are taken for the same: the error of a rigid registration and
#: of a border. At least half of the largest voxel spacing.
MATCH_MM = 2.0

#: Columns of ``longitudinal.csv``: a row per pair of visits and region.
CHANGE_COLUMNS = (
    "from", "to", "region", "count_from", "count_to", "count_change", "stable_from", "stable_to", "gone", "new",
    "outside_from", "outside_to", "volume_from_mm3", "volume_to_mm3", "volume_change_mm3", "volume_change_percent",
    "fluid_from_mm3", "fluid_to_mm3", "fluid_change_mm3",
    "expected_fluid_from_mm3", "expected_fluid_to_mm3", "expected_fluid_change_mm3",
    "region_volume_from_mm3", "region_volume_to_mm3",
)  # fmt: skip
#: Columns of ``pvs_changes.csv``: a row per PVS of either visit.
MATCH_COLUMNS = (
    "from", "to", "visit", "pvs", "status", "pvs_of_other_visit", "region", "hemisphere", "volume_mm3",
    "fluid_volume_mm3", "middle_right_mm", "middle_anterior_mm", "middle_superior_mm",
)  # fmt: skip


@dataclass(frozen=True)
class Visit:
    """One visit of a subject.

    Attributes:
        name: Name of the visit.
        mask: bool (x, y, z), the PVS, in RAS+ order.
        affine: (4, 4), voxel index to RAS mm of this visit's scanner.
        burden: Measurement of the mask.
        to_middle: (4, 4), maps points of this visit to the space in the middle of the visits, mm RAS+.
    """

    name: str
    mask: BoolArray
    affine: Affine
    burden: Burden
    to_middle: Affine

    def points(self) -> list[Float64Array]:
        """Returns the voxel centres (n, 3) of each PVS in the middle space, mm, by number."""
        labels, _ = label_components(self.mask)
        voxels = np.argwhere(labels)
        owner = labels[tuple(voxels.T)]
        index = self.to_middle @ self.affine
        placed = voxels @ index[:3, :3].T + index[:3, 3]
        order = np.argsort(owner, kind="stable")
        return np.split(placed[order], np.flatnonzero(np.diff(owner[order])) + 1) if len(voxels) else []

    def images(self, points: Float64Array) -> BoolArray:
        """Whether the image of this visit holds points (n, 3) of the middle space."""
        index = np.linalg.inv(self.to_middle @ self.affine)
        voxels = points @ index[:3, :3].T + index[:3, 3]
        return np.asarray(((voxels >= -0.5) & (voxels <= np.array(self.mask.shape) - 0.5)).all(1))


@dataclass(frozen=True)
class Match:
    """Status of one PVS: ``STABLE``, ``GONE``, ``NEW`` or ``OUTSIDE``; the PVS of the other visit; its middle, mm."""

    pvs: Pvs
    status: str
    others: tuple[int, ...]
    middle_mm: tuple[float, float, float]


@dataclass(frozen=True)
class Change:
    """The change from one visit to another.

    Attributes:
        earlier, later: The visits.
        earlier_pvs, later_pvs: Matches of their PVS by number.
    """

    earlier: Visit
    later: Visit
    earlier_pvs: tuple[Match, ...]
    later_pvs: tuple[Match, ...]

    def rows(self) -> list[dict[str, Value]]:
        """Returns the rows of ``longitudinal.csv``: regions and parts that both visits have, both sides together."""
        rows_after = {row.region: row for row in self.later.burden.regions if row.hemisphere == BOTH}
        return [
            self._row(before, rows_after[before.region])
            for before in self.earlier.burden.regions
            if before.hemisphere == BOTH and before.region in rows_after
        ]

    def _row(self, before: RegionBurden, after: RegionBurden) -> dict[str, Value]:
        """Returns the row of a region."""

        def count(matches: Sequence[Match], status: str) -> int:
            return sum(m.status == status and m.pvs.is_in(before.region) for m in matches)

        return {
            "from": self.earlier.name,
            "to": self.later.name,
            "region": before.region,
            "count_from": before.count,
            "count_to": after.count,
            "count_change": after.count - before.count,
            "stable_from": count(self.earlier_pvs, STABLE),
            "stable_to": count(self.later_pvs, STABLE),
            "gone": count(self.earlier_pvs, GONE),
            "new": count(self.later_pvs, NEW),
            "outside_from": count(self.earlier_pvs, OUTSIDE),
            "outside_to": count(self.later_pvs, OUTSIDE),
            "volume_from_mm3": before.volume_mm3,
            "volume_to_mm3": after.volume_mm3,
            "volume_change_mm3": after.volume_mm3 - before.volume_mm3,
            "volume_change_percent": 100 * (after.volume_mm3 / before.volume_mm3 - 1) if before.volume_mm3 else None,
            "fluid_from_mm3": before.fluid_mm3,
            "fluid_to_mm3": after.fluid_mm3,
            "fluid_change_mm3": _difference(before.fluid_mm3, after.fluid_mm3),
            "expected_fluid_from_mm3": before.expected_fluid_mm3,
            "expected_fluid_to_mm3": after.expected_fluid_mm3,
            "expected_fluid_change_mm3": _difference(before.expected_fluid_mm3, after.expected_fluid_mm3),
            "region_volume_from_mm3": before.region_mm3,
            "region_volume_to_mm3": after.region_mm3,
        }

    def pvs_rows(self) -> list[dict[str, Value]]:
        """Returns the rows of ``pvs_changes.csv``."""
        return [
            self._pvs_row(visit, match)
            for visit, matches in ((self.earlier, self.earlier_pvs), (self.later, self.later_pvs))
            for match in matches
        ]

    def _pvs_row(self, visit: Visit, match: Match) -> dict[str, Value]:
        """Returns the row of a PVS of a visit."""
        right, anterior, superior = match.middle_mm
        return {
            "from": self.earlier.name,
            "to": self.later.name,
            "visit": visit.name,
            "pvs": match.pvs.number,
            "status": match.status,
            "pvs_of_other_visit": "; ".join(map(str, match.others)) or None,
            "region": match.pvs.region,
            "hemisphere": match.pvs.hemisphere,
            "volume_mm3": match.pvs.shape.volume_mm3,
            "fluid_volume_mm3": match.pvs.fluid_mm3,
            "middle_right_mm": right,
            "middle_anterior_mm": anterior,
            "middle_superior_mm": superior,
        }


def change_between(earlier: Visit, later: Visit) -> Change:
    """Matches the PVS of two visits.

    Two PVS are the same if a voxel of one is near a voxel of the other (``MATCH_MM``). So a PVS that breaks into two is
    stable, and so are both pieces.
    """
    from scipy.spatial import cKDTree

    points = earlier.points(), later.points()
    reach = max(MATCH_MM, *(max(spacing_of(visit.affine)) / 2 for visit in (earlier, later)))
    partners: list[dict[int, set[int]]] = [{}, {}]
    if points[0] and points[1]:
        trees = [cKDTree(np.concatenate(p)) for p in points]
        owners = [np.repeat(np.arange(1, len(p) + 1), [len(q) for q in p]) for p in points]
        near = trees[0].query_ball_tree(trees[1], reach)
        for k, neighbours in enumerate(near):
            for j in neighbours:
                pair = int(owners[0][k]), int(owners[1][j])
                partners[0].setdefault(pair[0], set()).add(pair[1])
                partners[1].setdefault(pair[1], set()).add(pair[0])
    matches = [
        _matches(visit, other, own, partner, lonely)
        for visit, other, own, partner, lonely in (
            (earlier, later, points[0], partners[0], GONE),
            (later, earlier, points[1], partners[1], NEW),
        )
    ]
    return Change(earlier, later, matches[0], matches[1])


def middle_space(to_first: Sequence[Affine]) -> list[Affine]:
    """Returns the transforms of all visits to the space in their middle.

    Args:
        to_first: (4, 4) rigid transforms, map points of each visit to the first; the first is the identity.

    Example:
        >>> shift = np.eye(4)
        >>> shift[0, 3] = 4.0
        >>> [transform[0, 3].item() for transform in middle_space([np.eye(4), shift])]
        [-2.0, 2.0]
    """
    from scipy.linalg import expm, logm

    mean = np.mean([np.real(logm(transform)) for transform in to_first], axis=0)
    to_middle = np.real(expm(-mean))
    return [np.asarray(to_middle @ transform, np.float64) for transform in to_first]


def _matches(
    visit: Visit, other: Visit, points: Sequence[Float64Array], partners: Mapping[int, set[int]], lonely: str
) -> tuple[Match, ...]:
    matches = []
    for pvs, own in zip(visit.burden.pvs, points, strict=True):
        others = tuple(sorted(partners.get(pvs.number, ())))
        alone = lonely if other.images(own).any() else OUTSIDE
        right, anterior, superior = (float(mm) for mm in own.mean(0))
        matches.append(Match(pvs, STABLE if others else alone, others, (right, anterior, superior)))
    return tuple(matches)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before

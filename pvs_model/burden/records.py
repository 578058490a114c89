"""What a measurement of burden gives: every PVS, every region, and estimated scores of rating scales."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pvs_model.burden.morphology import Shape

#: The region of the whole mask, and that of a PVS that lies in none of the regions given.
ALL, OTHER = "all", "other"
#: Sides of a row: both together, then each.
BOTH, LEFT, RIGHT = "both", "left", "right"

#: The scales: Doubal 2010 and Potter 2015 (BG, CSO 0 to 4; midbrain 0 or 1), and mcpvs_net_2024, 2.7 (1 to 4).
POTTER, MCPVS = "Potter", "mcPVS-Net"


@dataclass(frozen=True)
class Pvs:
    """One perivascular space: a 26-connected cluster of the mask.

    Attributes:
        number: 1, 2, ... in the order in which the clusters lie from left to right.
        region: name of the region it is counted in, or ``OTHER``.
        hemisphere: ``LEFT``, ``RIGHT``, or None where no side is known.
        shape: size and direction.
        slices: first and last axial slice it reaches, counted from the lowest, 0.
        fluid_mm3: estimated volume of its fluid, which does not depend on how large the voxels are; None where the
            networks do not predict it.
    """

    number: int
    region: str
    hemisphere: str | None
    shape: Shape
    slices: tuple[int, int]
    fluid_mm3: float | None = None


@dataclass(frozen=True)
class RegionBurden:
    """PVS of one region, on both sides or on one.

    Attributes:
        region, hemisphere: name of the region; ``BOTH``, ``LEFT`` or ``RIGHT``.
        count: PVS counted here.
        volume_mm3: of the mask's voxels here, whichever PVS they belong to.
        region_mm3: volume of the region; None where it is unknown.
        intracranial_mm3: volume within the skull, of both sides; None where it is unknown.
        fluid_mm3: estimated volume of the fluid of the PVS counted here; None where the networks do not predict it.
        mean_length_mm, median_length_mm, mean_width_mm, median_width_mm: of the PVS counted here; None without any.
    """

    region: str
    hemisphere: str
    count: int
    volume_mm3: float
    region_mm3: float | None
    intracranial_mm3: float | None
    mean_length_mm: float | None
    median_length_mm: float | None
    mean_width_mm: float | None
    median_width_mm: float | None
    fluid_mm3: float | None = None

    @property
    def count_per_cm3(self) -> float | None:
        """PVS per cm3 of the region; None where its volume is 0 or unknown."""
        return 1000 * self.count / self.region_mm3 if self.region_mm3 else None

    @property
    def volume_percent(self) -> float | None:
        """Share of the region that PVS fill, 0 to 100; None where its volume is 0 or unknown."""
        return 100 * self.volume_mm3 / self.region_mm3 if self.region_mm3 else None

    @property
    def pvsnm(self) -> float | None:
        """Volume per million mm3 of intracranial volume (PVSnm, mcpvs_net_2024, 2.7); None where that is unknown."""
        return 1e6 * self.volume_mm3 / self.intracranial_mm3 if self.intracranial_mm3 else None


@dataclass(frozen=True)
class EstimatedScore:
    """What a rater might have scored: an estimate from a mask, never a rating.

    Attributes:
        scale: ``POTTER`` or ``MCPVS``.
        region: "BG", "CSO" or "midbrain".
        score: 0 to 4, 0 or 1, or 1 to 4, as the scale has it.
        counted: the number of PVS that the score comes from.
        hemisphere: the side they were counted on, or ``BOTH``.
        slices: first and last axial slice of the slab they were counted on, from the lowest, 0; None for the whole
            region.
    """

    scale: str
    region: str
    score: int
    counted: int
    hemisphere: str
    slices: tuple[int, int] | None


@dataclass(frozen=True)
class Burden:
    """All of a measurement.

    Attributes:
        pvs: every PVS of the mask, by number.
        regions: a row per region and side: the regions in the order given, ``ALL`` last.
        scores: estimated scores of the regions that have a scale and were given.
        spacing_mm: of the voxels to the right, to anterior and to superior.
        slices_per_slab: axial slices counted together for a score.
        warnings: sentences that whoever reads the numbers should know.
    """

    pvs: tuple[Pvs, ...]
    regions: tuple[RegionBurden, ...]
    scores: tuple[EstimatedScore, ...]
    spacing_mm: tuple[float, float, float]
    slices_per_slab: int
    warnings: tuple[str, ...] = ()

    @property
    def slab_mm(self) -> float:
        """Thickness of the slabs on which PVS are counted for a score."""
        return self.slices_per_slab * self.spacing_mm[2]

    def row(self, region: str, hemisphere: str = BOTH) -> RegionBurden:
        """The row of a region.

        Raises:
            KeyError: there is none.
        """
        for row in self.regions:
            if (row.region, row.hemisphere) == (region, hemisphere):
                return row
        raise KeyError(f"expected a region that was measured, found {region!r}, {hemisphere!r}")

    def estimated_score(self, scale: str, region: str) -> EstimatedScore | None:
        """The estimated score of a region; None where there is none."""
        return next((s for s in self.scores if (s.scale, s.region) == (scale, region)), None)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values, with the columns' names of ``table``; None where there is no value, never NaN."""
        from pvs_model.burden.table import pvs_values, region_values

        content = {
            "spacing_mm": list(self.spacing_mm),
            "slab_mm": self.slab_mm,
            "slices_per_slab": self.slices_per_slab,
            "warnings": list(self.warnings),
            "regions": [region_values(self, row) for row in self.regions],
            "estimated_scores": [_estimated(score) for score in self.scores],
            "pvs": [pvs_values(pvs) for pvs in self.pvs],
        }
        json.dumps(content, allow_nan=False)  # a NaN would be a bug of ours, and no JSON
        return content


def _estimated(score: EstimatedScore) -> dict[str, Any]:
    values = asdict(score)
    return {"scale": values.pop("scale"), "region": values.pop("region"), "estimated_score": values.pop("score")} | {
        **values,
        "slices": None if score.slices is None else list(score.slices),
    }

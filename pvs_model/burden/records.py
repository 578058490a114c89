"""Results of a measurement of burden: every PVS, every region, estimated scores of rating scales, and their tables."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pvs_model.burden.morphology import Shape

Value = str | int | float | None

#: Names for the whole image, and for PVS outside all given regions.
ALL, OTHER = "all", "other"
#: Sides of a row: both together, then each.
BOTH, LEFT, RIGHT = "both", "left", "right"

#: The scales: Doubal 2010 and Potter 2015 (BG, CSO 0 to 4; midbrain 0 or 1), and mcpvs_net_2024, 2.7 (BG, WM 1 to 4).
POTTER, MCPVS = "Potter", "mcPVS-Net"

#: Columns of ``burden.csv``: a row per case, region and side.
REGION_COLUMNS = (
    "region",
    "hemisphere",
    "pvs_count",
    "pvs_volume_mm3",
    "fluid_volume_mm3",
    "expected_fluid_volume_mm3",
    "region_volume_mm3",
    "intracranial_volume_mm3",
    "pvs_count_per_cm3",
    "pvs_volume_percent",
    "pvsnm_mm3_per_million_mm3",
    "mean_length_mm",
    "median_length_mm",
    "mean_width_mm",
    "median_width_mm",
    "estimated_potter_score_0_to_4",
    "estimated_potter_midbrain_score_0_to_1",
    "estimated_mcpvs_score_1_to_4",
)
#: Columns of ``pvs.csv``: a row per PVS.
PVS_COLUMNS = (
    "pvs",
    "region",
    "parts",
    "hemisphere",
    "voxels",
    "volume_mm3",
    "fluid_volume_mm3",
    "length_mm",
    "width_mm",
    "elongation",
    "linearity",
    "direction_right",
    "direction_anterior",
    "direction_superior",
    "angle_to_superior_degrees",
    "centre_right_mm",
    "centre_anterior_mm",
    "centre_superior_mm",
)


@dataclass(frozen=True)
class Pvs:
    """One perivascular space: a 26-connected cluster of the mask.

    Attributes:
        number: 1, 2, ... from left to right.
        region: Name of the region it is counted in, or ``OTHER``.
        hemisphere: ``LEFT``, ``RIGHT``, or None where no side is known.
        shape: Size and direction.
        slices: First and last axial slice, counted from the lowest, 0.
        fluid_mm3: Estimated volume of its fluid, which does not depend on the voxel size; None where the networks do
            not predict it.
        parts: Parts of regions that have at least half of its voxels.
        potter_sections: Regions or parts on whose rated section it has a voxel.
    """

    number: int
    region: str
    hemisphere: str | None
    shape: Shape
    slices: tuple[int, int]
    fluid_mm3: float | None = None
    parts: tuple[str, ...] = ()
    potter_sections: tuple[str, ...] = ()

    def is_in(self, region: str) -> bool:
        """Whether it is counted in a region or part; in ``ALL`` every PVS is."""
        return region in (ALL, self.region, *self.parts)


@dataclass(frozen=True)
class RegionBurden:
    """PVS of one region, on both sides or on one.

    Attributes:
        region, hemisphere: Name of the region; ``BOTH``, ``LEFT`` or ``RIGHT``.
        count: PVS counted here.
        volume_mm3: Volume of the mask's voxels here, of any PVS.
        region_mm3: Volume of the region; None where it is unknown.
        intracranial_mm3: Volume within the skull, of both sides; None where it is unknown.
        fluid_mm3: Estimated volume of the fluid of the PVS counted here; None where the networks do not predict it.
        expected_fluid_mm3: Expected volume of the fluid of all PVS here, marked or not; None as for ``fluid_mm3``, and
            without regions.
        mean_length_mm, median_length_mm, mean_width_mm, median_width_mm: Mean and median of the PVS counted
            here; None without any.
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
    expected_fluid_mm3: float | None = None

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
    """A visual score estimated from a mask, never a rating.

    Attributes:
        scale: ``POTTER`` or ``MCPVS``.
        region: "BG", "CSO", "WM" or "midbrain".
        score: 0 to 4, 0 or 1, or 1 to 4, as the scale has it.
        counted: Number of PVS that the score is based on.
        hemisphere: Side they were counted on, or ``BOTH``.
        slices: First and last axial slice of the slab they were counted on, from the lowest, 0; None for the whole
            region or its rated section.
        on_rated_section: Whether they were counted on the section that the scale prescribes.
    """

    scale: str
    region: str
    score: int
    counted: int
    hemisphere: str
    slices: tuple[int, int] | None
    on_rated_section: bool = False


@dataclass(frozen=True)
class Burden:
    """All results of a measurement.

    Attributes:
        pvs: Every PVS of the mask, by number.
        regions: A row per region and side: the regions in the order given, then their parts, ``ALL`` last.
        scores: Estimated scores of the measured regions that have a scale.
        spacing_mm: Voxel size to the right, to anterior and to superior.
        slices_per_slab: Axial slices counted together for a score.
        warnings: Sentences that qualify the numbers.
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
        """Returns the row of a region.

        Raises:
            KeyError: the region was not measured.
        """
        for row in self.regions:
            if (row.region, row.hemisphere) == (region, hemisphere):
                return row
        raise KeyError(f"expected a measured region, got {region!r}, {hemisphere!r}")

    def estimated_score(self, scale: str, region: str) -> EstimatedScore | None:
        """Returns the estimated score of a region, or None."""
        return next((s for s in self.scores if (s.scale, s.region) == (scale, region)), None)

    def as_json(self) -> dict[str, Any]:
        """Returns all of it as JSON values, keyed by the tables' columns; None where there is no value, never NaN."""
        content = {
            "spacing_mm": list(self.spacing_mm),
            "slab_mm": self.slab_mm,
            "slices_per_slab": self.slices_per_slab,
            "warnings": list(self.warnings),
            "regions": [region_values(self, row) for row in self.regions],
            "estimated_scores": [_estimated(score) for score in self.scores],
            "pvs": [pvs_values(pvs) for pvs in self.pvs],
        }
        json.dumps(content, allow_nan=False)  # a NaN would be a bug, and no JSON
        return content


def _estimated(score: EstimatedScore) -> dict[str, Any]:
    values = asdict(score)
    return {"scale": values.pop("scale"), "region": values.pop("region"), "estimated_score": values.pop("score")} | {
        **values,
        "slices": None if score.slices is None else list(score.slices),
    }


def region_values(burden: Burden, row: RegionBurden) -> dict[str, Value]:
    """Returns the cells of a row of ``burden.csv`` by column; scores are in the rows of both sides."""
    potter, mcpvs = (
        burden.estimated_score(scale, row.region) if row.hemisphere == BOTH else None for scale in (POTTER, MCPVS)
    )
    potter_score = None if potter is None else potter.score
    return {
        "region": row.region,
        "hemisphere": row.hemisphere,
        "pvs_count": row.count,
        "pvs_volume_mm3": row.volume_mm3,
        "fluid_volume_mm3": row.fluid_mm3,
        "expected_fluid_volume_mm3": row.expected_fluid_mm3,
        "region_volume_mm3": row.region_mm3,
        "intracranial_volume_mm3": row.intracranial_mm3,
        "pvs_count_per_cm3": row.count_per_cm3,
        "pvs_volume_percent": row.volume_percent,
        "pvsnm_mm3_per_million_mm3": row.pvsnm,
        "mean_length_mm": row.mean_length_mm,
        "median_length_mm": row.median_length_mm,
        "mean_width_mm": row.mean_width_mm,
        "median_width_mm": row.median_width_mm,
        "estimated_potter_score_0_to_4": None if row.region == "midbrain" else potter_score,
        "estimated_potter_midbrain_score_0_to_1": potter_score if row.region == "midbrain" else None,
        "estimated_mcpvs_score_1_to_4": None if mcpvs is None else mcpvs.score,
    }


def pvs_values(pvs: Pvs) -> dict[str, Value]:
    """Returns the cells of a row of ``pvs.csv`` by column."""
    shape = pvs.shape
    right, anterior, superior = shape.direction or (None, None, None)
    return {
        "pvs": pvs.number,
        "region": pvs.region,
        "parts": "; ".join(pvs.parts) or None,
        "hemisphere": pvs.hemisphere,
        "voxels": shape.voxels,
        "volume_mm3": shape.volume_mm3,
        "fluid_volume_mm3": pvs.fluid_mm3,
        "length_mm": shape.length_mm,
        "width_mm": shape.width_mm,
        "elongation": shape.elongation,
        "linearity": shape.linearity,
        "direction_right": right,
        "direction_anterior": anterior,
        "direction_superior": superior,
        "angle_to_superior_degrees": shape.angle_to_superior_degrees,
        "centre_right_mm": shape.centre_mm[0],
        "centre_anterior_mm": shape.centre_mm[1],
        "centre_superior_mm": shape.centre_mm[2],
    }

"""Burden as tables: ``burden.csv``, a row per case, region and side, and ``pvs.csv``, a row per PVS."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping

from pvs_model.burden.records import BOTH, MCPVS, POTTER, Burden, Pvs, RegionBurden

Value = str | int | float | None

REGION_COLUMNS = (
    "region",
    "hemisphere",
    "pvs_count",
    "pvs_volume_mm3",
    "fluid_volume_mm3",
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
PVS_COLUMNS = (
    "pvs",
    "region",
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


def region_values(burden: Burden, row: RegionBurden) -> dict[str, Value]:
    """The cells of a row of ``burden.csv`` by column; scores stand in the rows of both sides."""
    potter, mcpvs = (
        burden.estimated_score(scale, row.region) if row.hemisphere == BOTH else None for scale in (POTTER, MCPVS)
    )
    potter_score = None if potter is None else potter.score
    values = (
        row.region,
        row.hemisphere,
        row.count,
        row.volume_mm3,
        row.fluid_mm3,
        row.region_mm3,
        row.intracranial_mm3,
        row.count_per_cm3,
        row.volume_percent,
        row.pvsnm,
        row.mean_length_mm,
        row.median_length_mm,
        row.mean_width_mm,
        row.median_width_mm,
        None if row.region == "midbrain" else potter_score,
        potter_score if row.region == "midbrain" else None,
        None if mcpvs is None else mcpvs.score,
    )
    return dict(zip(REGION_COLUMNS, values, strict=True))


def pvs_values(pvs: Pvs) -> dict[str, Value]:
    """The cells of a row of ``pvs.csv`` by column."""
    shape = pvs.shape
    values = (
        pvs.number,
        pvs.region,
        pvs.hemisphere,
        shape.voxels,
        shape.volume_mm3,
        pvs.fluid_mm3,
        shape.length_mm,
        shape.width_mm,
        shape.elongation,
        shape.linearity,
        *(shape.direction or (None, None, None)),
        shape.angle_to_superior_degrees,
        *shape.centre_mm,
    )
    return dict(zip(PVS_COLUMNS, values, strict=True))


def burden_csv(cases: Iterable[tuple[str, Burden]]) -> str:
    """The text of ``burden.csv``.

    A name that a spreadsheet would take for a formula gets a space in front; a cell without a value is empty.

    Args:
        cases: names and burdens.
    """
    return _csv(REGION_COLUMNS, ((name, region_values(case, row)) for name, case in cases for row in case.regions))


def pvs_csv(cases: Iterable[tuple[str, Burden]]) -> str:
    """The text of ``pvs.csv``, written as ``burden_csv`` is."""
    return _csv(PVS_COLUMNS, ((name, pvs_values(pvs)) for name, case in cases for pvs in case.pvs))


def _csv(columns: tuple[str, ...], rows: Iterable[tuple[str, Mapping[str, Value]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *columns])
    for name, values in rows:
        writer.writerow([plain(name), *(plain(values[column]) for column in columns)])
    return text.getvalue()


def plain(value: Value) -> Value:
    """A cell that no spreadsheet takes for a formula: a name that looks like one gets a space in front."""
    return f" {value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value

"""The burden of a case as rows of its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pvs_model.burden.records import BOTH, MCPVS, OTHER, POTTER, Burden, EstimatedScore, RegionBurden
from pvs_model.burden.subregions import CSO, DEEP_WM, RATED_MM
from pvs_model.reports.html import number
from pvs_model.reports.regions import OTHER_WM, name_of

SCALES: Mapping[str, str] = {POTTER: "Potter, 0 to 4", MCPVS: "mcPVS-Net, 1 to 4"}
MIDBRAIN_SCALE = "Potter, 0 or 1"


def burden_rows(burden: Burden | None) -> list[list[dict[str, Any]]]:
    """Returns the rows of each region in the order of the burden, the white matter and its parts first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in () if burden is None else burden.regions:
        side = "both sides" if row.hemisphere == BOTH else row.hemisphere
        rows.setdefault(row.region, []).append({"region": name_of(row.region), "side": side, "cells": _cells(row)})
    white = ("WM", CSO, DEEP_WM)
    return [rows[name] for name in sorted(rows, key=lambda name: white.index(name) if name in white else len(white))]


def _cells(row: RegionBurden) -> list[tuple[str, str]]:
    """Returns each cell as text, and the reason of a missing value."""
    no_region, no_head, no_pvs = "the region's volume is unknown or 0", "the intracranial volume is unknown", "no PVS"
    cells = (
        (row.volume_mm3, 1, ""),
        (row.fluid_mm3, 1, "these networks do not predict the fluid fraction"),
        (row.expected_fluid_mm3, 1, "these networks do not predict the fluid fraction"),
        (None if row.region_mm3 is None else row.region_mm3 / 1000, 1, no_region),
        (row.count_per_cm3, 3, no_region),
        (row.volume_percent, 3, no_region),
        (row.pvsnm, 1, no_head),
        (row.median_length_mm, 1, no_pvs),
        (row.median_width_mm, 1, no_pvs),
    )
    return [(str(row.count), ""), *((number(v, digits), why if v is None else "") for v, digits, why in cells)]


def outside_of(burden: Burden | None) -> str:
    """Returns a sentence on PVS that are in no region's row."""
    if burden is None or len({row.region for row in burden.regions}) < 2:
        return ""
    count = sum(pvs.region == OTHER for pvs in burden.pvs)
    return f"{count} PVS of the whole image in none of the regions." if count else ""


def score_of(score: EstimatedScore) -> dict[str, Any]:
    """Returns the row of an estimated score."""
    source = f"{score.counted} PVS " + ("on both sides" if score.hemisphere == BOTH else f"on the {score.hemisphere}")
    if score.slices is not None:
        first, last = score.slices
        source += f", on axial slice {first}" if first == last else f", on axial slices {first} to {last}"
    if score.on_rated_section:
        source += f", on the section {RATED_MM / 10:g} cm above the roof of the lateral ventricle"
    scale = MIDBRAIN_SCALE if score.region == "midbrain" else SCALES.get(score.scale, score.scale)
    return {"region": name_of(score.region), "scale": scale, "score": score.score, "source": source}


def count_of(burden: Burden | None, region: str) -> str:
    """Returns the number of PVS of a region as the legend shows it, "" where it is unknown."""
    if burden is None:
        return ""
    if region == OTHER:
        return f"{sum(pvs.region == OTHER for pvs in burden.pvs)} PVS"
    counts = {row.region: row.count for row in burden.regions if row.hemisphere == BOTH}
    if {"WM", CSO} <= counts.keys():
        counts[OTHER_WM] = counts["WM"] - counts[CSO]
    return f"{counts[region]} PVS" if region in counts else ""

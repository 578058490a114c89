"""The page of a subject with several visits: change of counts and volumes by region, PVS that are new or gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pvs_model import __version__, files
from pvs_model.burden.change import GONE, NEW, OUTSIDE, STABLE, Change, Visit
from pvs_model.config import is_thick
from pvs_model.reports.cohort_index import relative_link
from pvs_model.reports.html import NO_VALUE, number, plural, render
from pvs_model.reports.regions import name_of, short_name_of
from pvs_model.types import spacing_of

#: Disagreement of the two registrations from which the page warns, mm.
LARGE_DISAGREEMENT_MM = 2.0
#: Relative difference of a voxel spacing from which the page warns.
OTHER_SPACING = 0.05


def write_longitudinal_report(
    path: Path, visits: Sequence[Visit], changes: Sequence[Change], errors_mm: Mapping[str, float]
) -> None:
    """Writes the page: everything is in the file, nothing is fetched; it links to ``reports/cases`` beside it.

    Args:
        path: File to write.
        visits: All visits in order.
        changes: The pairs to show.
        errors_mm: Disagreement of the registration of each visit but the first, mm.
    """
    parts = {
        "visits": [_visit(visit, errors_mm.get(visit.name)) for visit in visits],
        "warnings": warnings_of(visits, errors_mm),
        "changes": [_change(change) for change in changes],
        "version": __version__,
    }
    files.write_text(path, render("longitudinal.html", parts))


def warnings_of(visits: Sequence[Visit], errors_mm: Mapping[str, float]) -> list[str]:
    """Returns sentences on what makes visits hard to compare."""
    first, *others = visits
    sentences = []
    thickest = max(max(spacing_of(visit.affine)) for visit in visits)
    if is_thick(thickest):
        sentences.append(f"Slices of {thickest:.3g} mm: counts vary, and most PVS called new or gone are neither.")
    for visit in others:
        pairs = list(zip(spacing_of(first.affine), spacing_of(visit.affine), strict=True))
        if any(abs(a - b) > OTHER_SPACING * min(a, b) for a, b in pairs):
            own, other = (" x ".join(f"{mm:.3g}" for mm in spacing_of(v.affine)) for v in (first, visit))
            sentences.append(
                f"The voxels of {first.name} and {visit.name} differ ({own} and {other} mm): counts and volumes depend "
                "on them, so a change may be one of the protocol."
            )
        if errors_mm.get(visit.name, 0.0) > LARGE_DISAGREEMENT_MM:
            sentences.append(
                f"The registration of {visit.name} is uncertain by {errors_mm[visit.name]:.1f} mm: PVS may be taken "
                "for new or gone that are not."
            )
    return sentences


def _visit(visit: Visit, error_mm: float | None) -> dict[str, Any]:
    return {
        "name": visit.name,
        "href": relative_link(f"reports/cases/{visit.name}.html"),
        "grid": " x ".join(f"{mm:.3g}" for mm in spacing_of(visit.affine)),
        "pvs": len(visit.burden.pvs),
        "registration": NO_VALUE if error_mm is None else f"{error_mm:.1f}",
    }


def _change(change: Change) -> dict[str, Any]:
    rows = []
    for row in change.rows():
        percent = number(row["volume_change_percent"])  # type: ignore[arg-type]
        rows.append(
            {
                "region": name_of(str(row["region"])),
                "counts": [row[f"{name}"] for name in ("count_from", "count_to", "stable_from", "gone", "new")],
                "numbers": [
                    *(number(row[name]) for name in ("volume_from_mm3", "volume_to_mm3", "volume_change_mm3")),  # type: ignore[arg-type]
                    percent,
                    *(
                        number(row[f"{quantity}_{value}_mm3"])  # type: ignore[arg-type]
                        for quantity in ("fluid", "expected_fluid")
                        for value in ("from", "to", "change")
                    ),
                ],
            }
        )
    changed = [
        {
            "visit": visit.name,
            "number": match.pvs.number,
            "status": match.status,
            "region": ", ".join(short_name_of(name) for name in (match.pvs.region, *match.pvs.parts)),
            "side": match.pvs.hemisphere or NO_VALUE,
            "volume": number(match.pvs.shape.volume_mm3),
            "centre": ", ".join(number(mm) for mm in match.pvs.shape.centre_mm),
        }
        for visit, matches in ((change.earlier, change.earlier_pvs), (change.later, change.later_pvs))
        for match in matches
        if match.status in (GONE, NEW)
    ]
    outside = sum(m.status == OUTSIDE for m in (*change.earlier_pvs, *change.later_pvs))
    stable = sum(m.status == STABLE for m in change.earlier_pvs)
    return {
        "earlier": change.earlier.name,
        "later": change.later.name,
        "rows": rows,
        "changed": changed,
        "words": f"{plural(stable, 'stable cluster')} of {change.earlier.name}"
        + (f"; {plural(outside, 'cluster')} outside the other visit's image" if outside else ""),
    }

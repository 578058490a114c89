"""The index of a cohort as one HTML file: volumes by region over all cases, and a table that links to their reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pvs_model import __version__, files
from pvs_model.burden.records import ALL, BOTH
from pvs_model.errors import PVSError
from pvs_model.reports.burden_tables import SCALES
from pvs_model.reports.case_report import sentences
from pvs_model.reports.figures import BOX_FROM, BoxRow, Dot, Scale, distribution
from pvs_model.reports.html import MM3, NO_VALUE, evenly_spaced, number, plural, render
from pvs_model.reports.regions import name_of, short_name_of, style_of

#: Largest numbers of failures listed, dots drawn in a figure, and outliers named.
LISTED = 100
DOTS_PER_FIGURE = 400
OUTLIERS_NAMED = 8
#: Length of the whiskers in box lengths: volumes are skewed, and 1.5 would name one case in twenty.
WHISKER = 3.0


@dataclass(frozen=True)
class CaseSummary:
    """A case in the index.

    Attributes:
        case: Name of the case.
        page: Path of its report from the index, "/" between folders; "" if there is none.
        sequences, network: Facts of the pipeline; empty where they are missing.
        counts, volumes_mm3: Number and volume of PVS by region, both sides together.
        scores: Estimated scores, by scale and region.
        warnings: Sentences.
        problem: Reason why the case failed, or None.
    """

    case: str
    page: str = ""
    sequences: tuple[str, ...] = ()
    network: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    volumes_mm3: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[tuple[str, str], int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problem: str | None = None


def summary_of(case_json: Mapping[str, Any]) -> CaseSummary:
    """Returns the summary of a case from its JSON.

    Args:
        case_json: "case"; "metadata" (the pipeline's, or null); "burden" (``Burden.as_json()``, or null); "page" (path
            of the case's report relative to the index, or null); "problem" (a sentence, or null).

    Raises:
        PVSError: the values are not of this form.
    """
    try:
        metadata, burden = case_json.get("metadata") or {}, case_json.get("burden") or {}
        rows = {row["region"]: row for row in burden.get("regions", ()) if row["hemisphere"] == BOTH}
        problem = case_json.get("problem")
        return CaseSummary(
            case=str(case_json["case"]),
            page=str(case_json.get("page") or ""),
            sequences=sentences(metadata.get("sequences")),
            network=str(metadata.get("network") or "").upper(),
            counts={str(region): int(row["pvs_count"]) for region, row in rows.items()},
            volumes_mm3={str(region): _finite(row["pvs_volume_mm3"]) for region, row in rows.items()},
            scores={
                (str(score["scale"]), str(score["region"])): int(score["estimated_score"])
                for score in burden.get("estimated_scores", ())
            },
            warnings=tuple(dict.fromkeys((*sentences(metadata.get("warnings")), *sentences(burden.get("warnings"))))),
            problem=None if problem is None else str(problem),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise PVSError(f"expected the JSON of a case as `--report` writes it, got another form ({detail})") from error


def _finite(value: float) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"a volume of {value}")
    return float(value)


def write_index(path: Path, summaries: Iterable[CaseSummary]) -> None:
    """Writes the page of a cohort in the order of names: everything is in the file, nothing is fetched.

    Args:
        path: File to write; reports of cases are linked relative to it.
        summaries: All cases, as of ``summary_of``.
    """
    files.write_text(path, index_page(summaries))


def index_page(summaries: Iterable[CaseSummary]) -> str:
    """Returns the text of the index; see ``write_index``."""
    cases = sorted(summaries, key=lambda one: (files.natural_sort_key(one.case), one.case))
    regions = list(dict.fromkeys(region for case in cases for region in case.volumes_mm3))
    regions.sort(key=lambda region: (region == ALL, style_of(region)))
    scores = list(dict.fromkeys(key for case in cases for key in case.scores))
    scores.sort(key=lambda key: (list(SCALES).index(key[0]) if key[0] in SCALES else len(SCALES), style_of(key[1])))
    failed = [(case.case, case.problem or "") for case in cases if case.problem is not None]
    parts = {
        "cases": len(cases),
        "failed": failed[:LISTED],
        "more_failed": len(failed[LISTED:]),
        "warned": sum(bool(case.warnings) for case in cases),
        "version": __version__,
        "regions": [short_name_of(region) for region in regions],
        "scores": [(scale, short_name_of(region)) for scale, region in scores],
        "lines": (_line(case, regions, scores) for case in cases),
        "figures": [_figure(f"f{k}", cases, region) for k, region in enumerate(regions)],
        "box_from": BOX_FROM,
        "usual": f"{WHISKER:g}",
    }
    return render("cohort_index.html", parts)


def _line(case: CaseSummary, regions: Sequence[str], scores: Sequence[tuple[str, str]]) -> dict[str, Any]:
    numbers = []
    for region in regions:
        numbers.append(str(case.counts[region]) if region in case.counts else NO_VALUE)
        numbers.append(number(case.volumes_mm3.get(region)))
    numbers += [str(case.scores[key]) if key in case.scores else NO_VALUE for key in scores]
    failed = case.problem is not None
    return {
        "case": case.case,
        "href": relative_link(case.page),
        "sequences": ", ".join(case.sequences) or NO_VALUE,
        "network": case.network or NO_VALUE,
        "numbers": numbers,
        "warnings": len(case.warnings),
        "remarks": [*([case.problem or "failed"] if failed else []), *case.warnings],
        "failed": failed,
    }


def relative_link(page: str) -> str:
    """Returns a relative address of a file, "" for none: never one of another scheme, host or root."""
    if not page:
        return ""
    try:
        raw = page.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = page.encode("utf-8", "replace")
    return "./" + quote(raw.lstrip(b"/"))


def _figure(name: str, cases: Sequence[CaseSummary], region: str) -> dict[str, Any]:
    """Returns the distribution of one region's volumes, its caption, and the outliers by name."""
    measured = sorted((c for c in cases if region in c.volumes_mm3), key=lambda c: c.volumes_mm3[region])
    values = [case.volumes_mm3[region] for case in measured]
    low, median, high = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    boxed = len(values) >= BOX_FROM
    fences = (low - WHISKER * (high - low), high + WHISKER * (high - low))
    outliers = [c for c, value in zip(measured, values, strict=True) if boxed and not fences[0] <= value <= fences[1]]
    outliers.sort(key=lambda c: (-max(fences[0] - c.volumes_mm3[region], c.volumes_mm3[region] - fences[1]), c.case))
    # A few extreme values must not squeeze all others into a line.
    scale = Scale.up_to(min(values[-1], 1.5 * fences[1]) if boxed and fences[1] > 0 else values[-1])
    outside = {id(case) for case in outliers}
    usual = [case for case in measured if id(case) not in outside]
    drawn = [*evenly_spaced(usual, DOTS_PER_FIGURE), *outliers[:DOTS_PER_FIGURE]]
    caption = f"{name_of(region)}: {plural(len(values), 'case')}, median {number(median)} {MM3}"
    if boxed:
        caption += f", quartiles {number(low)} and {number(high)}"
    notes = []
    if beyond := scale.beyond(values):
        notes.append(f"{plural(beyond, 'value')} beyond the axis, up to {number(values[-1])}: drawn at its end.")
    if len(drawn) < len(measured):
        notes.append(
            f"{len(drawn)} of {len(measured)} cases are drawn, evenly from lowest to highest; the box counts all."
        )
    if len(outliers) > OUTLIERS_NAMED:
        notes.append(f"Of {len(outliers)} cases outside, the {OUTLIERS_NAMED} furthest are named.")
    dots = [
        Dot(c.volumes_mm3[region], f"{c.case}: {number(c.volumes_mm3[region])} {MM3}", id(c) in outside) for c in drawn
    ]
    return {
        "region": name_of(region),
        "words": caption,
        "svg": distribution(name, caption, scale, BoxRow("", style_of(region), values, dots), WHISKER),
        "outliers": [(c.case, relative_link(c.page), number(c.volumes_mm3[region])) for c in outliers[:OUTLIERS_NAMED]],
        "notes": notes,
    }

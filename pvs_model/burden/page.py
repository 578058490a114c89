"""What was found in one case as one HTML file, and one file for a cohort: to look at, print and keep.

``pages`` makes it safe to show names of cases, warnings and prompts, which come from others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pvs_model import __version__, files, pages
from pvs_model.burden.pictures import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    Bool,
    Chosen,
    Labels,
    Plane,
    box_of,
    choose_slices,
    clusters,
    frame,
    grey,
    head_of,
    path,
    plane_of,
    png_uri,
    silhouette,
    window,
)
from pvs_model.burden.records import ALL, BOTH, MCPVS, OTHER, POTTER, Burden, EstimatedScore, RegionBurden
from pvs_model.config import THICK_SLICE_MM
from pvs_model.errors import PVSError
from pvs_model.types import SEQUENCES, Affine, FloatArray

#: Pixels of all pictures together, a byte or so each; where there would be more, fewer are shown, and the page says so.
MOST_PIXELS = 2_500_000
SLICES_PER_REGION = 3
#: Pixels of the screen to one of the picture, where there is room; between these, pictures are this wide.
MAGNIFIED = (4.0, 7.0)
PICTURE_WIDTH = 600
#: Pixels of the screen to a mm in the projections, where there is room.
PROJECTED = 2.2
#: What is listed or drawn at most in the index.
LISTED = 100
DOTS_PER_FIGURE = 400
OUTLIERS_NAMED = 8
#: With fewer values there is no box, and nothing lies outside it.
BOX_FROM = 5
#: Box lengths from the box within which cases are usual: volumes are skewed, and 1.5 would name one in twenty.
USUAL = 3.0

NONE = "\N{EN DASH}"
CUBIC = "mm\N{SUPERSCRIPT THREE}"
WHOLE = "whole image"

REGION_NAMES: Mapping[str, str] = {
    "CSO": "centrum semiovale (CSO)",
    "BG": "basal ganglia (BG)",
    "MID": "midbrain",
    "midbrain": "midbrain",
    "HIP": "hippocampus",
    ALL: WHOLE,
    OTHER: "outside the regions",
}
SHORT_NAMES: Mapping[str, str] = {"MID": "midbrain", "HIP": "hippocampus", ALL: "all", OTHER: "outside"}
#: Order and looks: the numbers stand in the style sheet, too.
STYLES: Mapping[str, int] = {"CSO": 0, "BG": 1, "MID": 2, "midbrain": 2, "HIP": 3, "hippocampus": 3, OTHER: 5, ALL: 5}
ANOTHER_STYLE = 4
#: PVS are seen best in the first.
SHOWN_FIRST = ("T2w", "T1w", "FLAIR")
SCALES: Mapping[str, str] = {POTTER: "Potter, 0 to 4", MCPVS: "mcPVS-Net, 1 to 4"}
MIDBRAIN_SCALE = "Potter, 0 or 1"


@dataclass(frozen=True)
class CaseView:
    """What there is to show of a case. All arrays lie on one grid, (x, y, z) in RAS+ order.

    Attributes:
        name: of the case; nothing else on the page says whose scan it is.
        images: float32 by sequence, standardised within the head, 0 outside; those that are 0 throughout are left out.
        mask: bool, the PVS.
        regions: bool by name ("CSO", "BG", "MID", "HIP", or any other); may be empty.
        spacing_mm: of the voxels.
        burden: the measurement; None where there is none.
        facts: how the mask was made, as the pipeline tells it; whatever is missing is not told.
        warnings: sentences, besides those of the facts and of the burden.
        affine: (4, 4), voxel index to RAS mm, for positions in the scanner; None where it is unknown.

    Raises:
        ValueError: no image with a value other than 0, a sequence that there is not, or arrays of unequal shape.
    """

    name: str
    images: Mapping[str, FloatArray]
    mask: Bool
    regions: Mapping[str, Bool]
    spacing_mm: tuple[float, float, float]
    burden: Burden | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    affine: Affine | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.images if name not in SEQUENCES]
        if unknown:
            raise ValueError(f"expected images of {', '.join(SEQUENCES)}, found {unknown[0]!r}")
        for name, array in {**self.images, **self.regions}.items():
            if array.shape != self.mask.shape:
                raise ValueError(f"{name}: expected the shape of the mask, {self.mask.shape}, found {array.shape}")
        if self.mask.ndim != 3 or not any(image.any() for image in self.images.values()):
            raise ValueError("expected an image (x, y, z) with a value other than 0, found none")


@dataclass(frozen=True)
class Entry:
    """A case in the index.

    Attributes:
        case: its name.
        page: path of its page from the index, "/" between folders; "" where there is none.
        sequences, network: as the pipeline tells them; empty where it does not.
        counts, volumes_mm3: by region, both sides together.
        scores: estimated ones, by scale and region.
        warnings: sentences.
        problem: why the case failed, or None.
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


def write_case_page(path: Path, view: CaseView) -> None:
    """Write the page of one case: everything is in the file, nothing is fetched.

    The same view gives the same bytes. An older file is replaced only by a whole new one.

    Args:
        path: the file.
        view: what to show.
    """
    files.write_text(path, case_page(view))


def write_index(path: Path, entries: Iterable[Entry]) -> None:
    """Write the page of a cohort, in the order of names; else as ``write_case_page``.

    Args:
        path: the file; pages of cases are linked relative to it.
        entries: of all cases, of ``entry_of``.
    """
    files.write_text(path, index_page(entries))


def case_page(view: CaseView) -> str:
    """The text of the page; see ``write_case_page``."""
    head = head_of(view.images)
    labels = clusters(view.mask)
    named, outside = _apart(view.regions, labels > 0)
    shown = {**named, **({OTHER: outside} if outside.any() else {})} if named else {ALL: head}
    plane = plane_of(view.spacing_mm)
    sequences = [name for name in SHOWN_FIRST if name in view.images and view.images[name].any()]
    groups, sequences, left_out = _groups(view, shown, labels, head, plane, sequences)
    by_region = {name: labels > 0 if name == ALL else (labels > 0) & region for name, region in shown.items()}
    parts = {
        "case": view.name,
        "warnings": _warnings(view),
        "assumed": _assumed(view, sequences, named),
        "burden": view.burden is not None,
        "rows": _rows(view.burden),
        "outside": _outside(view.burden),
        "scores": _scores(view.burden),
        "slab": "" if view.burden is None else f"{view.burden.slab_mm:.3g}",
        "clusters": int(labels.max(initial=0)),
        "plane": plane.name,
        "edges_of_slices": plane.edges,
        "sequences": sequences,
        "left_out": left_out,
        "groups": groups,
        "legend": [_Sign(_style(name), _region(name), _count(view.burden, name)) for name in by_region],
        "projections": [_projection(p, view, head, named, by_region) for p in (AXIAL, CORONAL, SAGITTAL)],
    }
    return pages.render(Path(__file__).parent, "page.html", parts, "img-src data:; ")


# --- words ----------------------------------------------------------------------------------------------


def _apart(regions: Mapping[str, Bool], mask: Bool) -> tuple[dict[str, Bool], Bool]:
    """The regions in the order shown, and what of the mask lies in none of them.

    A voxel that several claim belongs to the one named first, as in the burden.
    """
    free = np.ones(mask.shape, bool)
    found = {}
    for name, region in regions.items():
        if name not in (ALL, OTHER):
            found[name] = region & free
            free &= ~region
    return dict(sorted(found.items(), key=lambda item: _style(item[0]))), mask & free


def _style(region: str) -> int:
    return STYLES.get(region, ANOTHER_STYLE)


def _region(region: str) -> str:
    return REGION_NAMES.get(region, region)


def _number(value: float | None, digits: int = 1) -> str:
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{digits}f}"
    return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip("0.") else text


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _texts(values: object) -> tuple[str, ...]:
    """Sentences out of what should be a list of them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return () if values is None else (str(values),)
    return tuple(str(value) for value in values)


def _warnings(view: CaseView) -> list[str]:
    """Every warning once."""
    own = () if view.burden is None else view.burden.warnings
    return list(dict.fromkeys((*_texts(view.facts.get("warnings")), *view.warnings, *own)))


def _assumed(view: CaseView, sequences: Sequence[str], named: Mapping[str, Bool]) -> list[tuple[str, list[str]]]:
    """What the mask rests on, as terms and sentences."""
    facts = view.facts
    used = list(_texts(facts.get("sequences"))) or list(sequences)
    reference = str(facts.get("reference") or "")
    others = [name for name in used if name != reference]
    missing = [name for name in SEQUENCES if name not in used]
    found: list[tuple[str, list[str]]] = [("Sequences", [f"{', '.join(used)}."])]
    if missing:
        found[0][1].append(f"Not given, or not usable: {', '.join(missing)}.")
    if reference:
        words = [f"{reference}: the mask lies on its grid."]
        if others:
            were = "was" if len(others) == 1 else "were"
            words.append(f"{' and '.join(others)} {were} resampled onto it.")
        found.append(("Reference", words))
    by = " \N{MULTIPLICATION SIGN} "
    spacing = by.join(f"{mm:.3g}" for mm in view.spacing_mm)
    shape = by.join(map(str, view.mask.shape))
    found.append(("Grid", [f"{shape} voxels of {spacing} mm (x, y, z).", *_respaced(view)]))
    kind = str(facts.get("network") or "")
    if kind:
        found.append(("Network", _network(kind, facts.get("members"), max(view.spacing_mm))))
    threshold = facts.get("threshold")
    if isinstance(threshold, int | float):
        found.append(("Threshold", [f"A voxel is marked from a probability of {threshold:.3g} on."]))
    if facts.get("prompt"):
        found.append(("Prompt", [f"\N{LEFT DOUBLE QUOTATION MARK}{facts['prompt']}\N{RIGHT DOUBLE QUOTATION MARK}"]))
    regions = ", ".join(_region(name) for name in named) or "None: the whole image is shown as one."
    found.append(("Regions", [regions]))
    found.append(("Made by", [f"pvs_model {facts.get('version') or __version__}{_seconds(facts.get('seconds'))}"]))
    return found


def _respaced(view: CaseView) -> list[str]:
    """What the network saw in place of the grid, if anything."""
    seen = view.facts.get("network_spacing_mm")
    if not isinstance(seen, list | tuple) or len(seen) != 3 or not all(isinstance(mm, int | float) for mm in seen):
        return []
    if all(abs(mm - own) <= 0.001 * own for mm, own in zip(seen, view.spacing_mm, strict=True)):
        return []
    by = " \N{MULTIPLICATION SIGN} "
    return [f"The network saw it at {by.join(f'{mm:.3g}' for mm in seen)} mm; its probabilities were brought back."]


def _network(kind: str, members: object, thickest_mm: float) -> list[str]:
    name = {"3d": "3D", "2d": "2D"}.get(kind, kind)
    words = [name]
    if isinstance(members, int) and members > 1:
        words[0] += f", the mean of {members} networks"
    thick = thickest_mm >= THICK_SLICE_MM - 1e-4
    if name == ("2D" if thick else "3D"):
        than = "is not below" if thick else "is below"
        words[0] += f": the largest voxel spacing, {thickest_mm:.3g} mm, {than} {THICK_SLICE_MM:g} mm"
    return [f"{words[0]}."]


def _seconds(seconds: object) -> str:
    if not isinstance(seconds, Mapping):
        return ""
    values = [value for value in seconds.values() if isinstance(value, int | float) and math.isfinite(value)]
    return f", in {sum(values):.0f} s" if values else ""


# --- the burden -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A region and side of the burden: its style, names, and cells as (text, why there is none)."""

    style: int
    region: str
    side: str
    cells: tuple[tuple[str, str], ...]


def _rows(burden: Burden | None) -> list[list[_Row]]:
    """Rows by region, in the order of the burden."""
    found: dict[str, list[_Row]] = {}
    for row in () if burden is None else burden.regions:
        side = "both sides" if row.hemisphere == BOTH else row.hemisphere
        found.setdefault(row.region, []).append(_Row(_style(row.region), _region(row.region), side, _cells(row)))
    return list(found.values())


def _cells(row: RegionBurden) -> tuple[tuple[str, str], ...]:
    no_region, no_head, no_pvs = "the region's volume is unknown or 0", "the intracranial volume is unknown", "no PVS"
    return (
        (str(row.count), ""),
        (_number(row.volume_mm3), ""),
        *(
            (_number(value, digits), why if value is None else "")
            for value, digits, why in (
                (row.fluid_mm3, 1, "these networks do not predict the fluid fraction"),
                (None if row.region_mm3 is None else row.region_mm3 / 1000, 1, no_region),
                (row.count_per_cm3, 3, no_region),
                (row.volume_percent, 3, no_region),
                (row.pvsnm, 1, no_head),
                (row.median_length_mm, 1, no_pvs),
                (row.median_width_mm, 1, no_pvs),
            )
        ),
    )


def _outside(burden: Burden | None) -> str:
    """A sentence on PVS that are in no region's row."""
    if burden is None or len({row.region for row in burden.regions}) < 2:
        return ""
    count = sum(pvs.region == OTHER for pvs in burden.pvs)
    return f"{count} PVS of the whole image in none of the regions." if count else ""


@dataclass(frozen=True)
class _Score:
    scale: str
    region: str
    score: int
    source: str


def _scores(burden: Burden | None) -> list[_Score]:
    return [] if burden is None else [_Score(_scale(s), _region(s.region), s.score, _source(s)) for s in burden.scores]


def _scale(score: EstimatedScore) -> str:
    return MIDBRAIN_SCALE if score.region in ("midbrain", "MID") else SCALES.get(score.scale, score.scale)


def _source(score: EstimatedScore) -> str:
    where = "on both sides" if score.hemisphere == BOTH else f"on the {score.hemisphere}"
    words = f"{score.counted} PVS {where}"
    if score.slices is not None:
        first, last = score.slices
        words += f", on axial slice {first}" if first == last else f", on axial slices {first} to {last}"
    return words


def _count(burden: Burden | None, region: str) -> str:
    if burden is None:
        return ""
    if region == OTHER:
        return f"{sum(pvs.region == OTHER for pvs in burden.pvs)} PVS"
    count = next((row.count for row in burden.regions if (row.region, row.hemisphere) == (region, BOTH)), None)
    return "" if count is None else f"{count} PVS"


# --- pictures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    """One slice, in the units of its SVG: mm for the view box, pixels within ``scale``.

    Attributes:
        columns, rows: pixels.
        scale: of a pixel, as "width height" in mm.
        size_mm: width and height of the view box.
        width, height: on the screen where there is room.
        images: data URIs by sequence.
        outline: path of the mask, "" where nothing is marked.
        bar: path of a bar of 10 mm.
    """

    columns: int
    rows: int
    scale: str
    size_mm: tuple[str, str]
    width: int
    height: int
    images: tuple[str, ...]
    outline: str
    bar: str


@dataclass(frozen=True)
class _Slice:
    key: str
    title: str
    where: str
    found: str
    picture: _Picture


@dataclass(frozen=True)
class _Group:
    """The slices of a region, or a sentence on why there are none."""

    style: int
    name: str
    note: str
    slices: tuple[_Slice, ...]


def _groups(
    view: CaseView, shown: Mapping[str, Bool], labels: Labels, head: Bool, plane: Plane, sequences: list[str]
) -> tuple[list[_Group], list[str], str]:
    """The slices of every region, the sequences shown, and what had to be left out."""
    frames = {name: frame(region, head, view.spacing_mm) for name, region in shown.items() if region.any()}
    area = {name: _pixels(box, plane) for name, box in frames.items()}
    ways = ((SLICES_PER_REGION, sequences), (SLICES_PER_REGION, sequences[:1]), (1, sequences[:1]))
    for most, names in ways:
        chosen = {name: choose_slices(labels, shown[name], plane, view.spacing_mm, most) for name in frames}
        if len(names) * sum(area[name] * len(slices) for name, slices in chosen.items()) <= MOST_PIXELS:
            break
    windows = {name: window(view.images[name], name) for name in names}
    groups = []
    for name in shown:
        if name not in frames:
            groups.append(_Group(_style(name), _region(name), "The region is empty in this image.", ()))
            continue
        slices = tuple(
            _slice(view, f"p{len(groups)}-{number}", name, one, plane, frames[name], windows)
            for number, one in enumerate(chosen[name])
        )
        groups.append(_Group(_style(name), _region(name), _note(name, chosen[name]), slices))
    left_out = ""
    if len(names) < len(sequences):
        left_out = f"To keep this file small, only {names[0]} is shown"
        left_out += f", and {'one slice' if most == 1 else f'{most} slices'} per region at most."
    return groups, list(names), left_out


def _pixels(box: tuple[slice, slice, slice], plane: Plane) -> int:
    across, down = box[plane.columns], box[plane.rows]
    return (across.stop - across.start) * (down.stop - down.start)


def _note(region: str, chosen: Sequence[Chosen]) -> str:
    if chosen and chosen[0].pvs == 0:
        where = "No PVS was marked" if region == ALL else "No PVS was marked in this region"
        return f"{where}. A slice without any is shown as a control."
    return ""


def _slice(
    view: CaseView,
    key: str,
    region: str,
    chosen: Chosen,
    plane: Plane,
    box: tuple[slice, slice, slice],
    windows: Mapping[str, tuple[float, float]],
) -> _Slice:
    flat = list(box)
    flat[plane.across] = slice(chosen.index, chosen.index + 1)
    part = (flat[0], flat[1], flat[2])
    images = tuple(png_uri(grey(plane.slice_of(view.images[name][part], 0), windows[name])) for name in windows)
    mask = plane.slice_of(view.mask[part], 0)
    rows, columns = mask.shape
    wide, high = plane.spacing(view.spacing_mm)
    magnified = min(max(PICTURE_WIDTH * min(wide, high) / (columns * wide), MAGNIFIED[0]), MAGNIFIED[1]) / min(
        wide, high
    )
    picture = _Picture(
        columns,
        rows,
        f"{wide:.6g} {high:.6g}",
        (f"{columns * wide:.6g}", f"{rows * high:.6g}"),
        round(columns * wide * magnified),
        round(rows * high * magnified),
        images,
        path(mask),
        f"M3 {rows * high - 3:.6g}h10",
    )
    number = view.mask.shape[plane.across]
    found = f"{chosen.pvs or 'no'} PVS"
    return _Slice(
        key,
        f"{plane.name} slice {chosen.index} (of 0 to {number - 1})",
        _position(view, plane, chosen.index),
        f"{found} here" if region == ALL else f"{found} of this region here",
        picture,
    )


def _position(view: CaseView, plane: Plane, index: int) -> str:
    words = f"{_number(index * view.spacing_mm[plane.across])} mm {plane.from_end}"
    if view.affine is not None:
        middle = (np.array(view.mask.shape) - 1) / 2
        middle[plane.across] = index
        mm = float((view.affine[:3, :3] @ middle + view.affine[:3, 3])[plane.across])
        words += f"; {'xyz'[plane.across]} = {_number(mm)} mm in the scanner"
    return words


@dataclass(frozen=True)
class _Sign:
    """A line of the legend."""

    style: int
    name: str
    count: str


@dataclass(frozen=True)
class _Projection:
    """The mask seen through the head along one axis; units as in ``_Picture``."""

    plane: str
    edges: str
    scale: str
    size_mm: tuple[str, str]
    width: int
    height: int
    head: str
    regions: tuple[tuple[int, str], ...]
    layers: tuple[tuple[int, str], ...]


def _projection(
    plane: Plane, view: CaseView, head: Bool, named: Mapping[str, Bool], by_region: Mapping[str, Bool]
) -> _Projection:
    box = box_of(head)
    assert box is not None  # an image has a value other than 0
    wide, high = plane.spacing(view.spacing_mm)
    outline = np.pad(silhouette(head[box], plane), 1)
    rows, columns = outline.shape
    seen = {name: np.pad(plane.projected(mask[box]), 1) for name, mask in by_region.items()}
    nuclei = {name: np.pad(plane.projected(region[box]), 1) for name, region in named.items() if name != "CSO"}
    return _Projection(
        plane.name,
        plane.edges,
        f"{wide:.6g} {high:.6g}",
        (f"{columns * wide:.6g}", f"{rows * high:.6g}"),
        round(columns * wide * PROJECTED),
        round(rows * high * PROJECTED),
        path(outline),
        tuple((_style(name), path(flat)) for name, flat in nuclei.items() if flat.any()),
        tuple((_style(name), path(flat)) for name, flat in seen.items() if flat.any()),
    )


# --- the index ------------------------------------------------------------------------------------------


def entry_of(case_json: Mapping[str, Any]) -> Entry:
    """What the index shows of a case's JSON.

    Args:
        case_json: "case"; "facts" (the pipeline's, or null); "burden" (``Burden.as_json()``, or null); "page" (path of
            the case's page relative to the index, or null); "problem" (a sentence, or null).

    Raises:
        PVSError: the values are not of this form.
    """
    try:
        facts, burden = case_json.get("facts") or {}, case_json.get("burden") or {}
        rows = {row["region"]: row for row in burden.get("regions", ()) if row["hemisphere"] == BOTH}
        problem = case_json.get("problem")
        return Entry(
            case=str(case_json["case"]),
            page=str(case_json.get("page") or ""),
            sequences=_texts(facts.get("sequences")),
            network=str(facts.get("network") or "").upper(),
            counts={str(region): int(row["pvs_count"]) for region, row in rows.items()},
            volumes_mm3={str(region): _finite(row["pvs_volume_mm3"]) for region, row in rows.items()},
            scores={
                (str(score["scale"]), str(score["region"])): int(score["estimated_score"])
                for score in burden.get("estimated_scores", ())
            },
            warnings=tuple(dict.fromkeys((*_texts(facts.get("warnings")), *_texts(burden.get("warnings"))))),
            problem=None if problem is None else str(problem),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {error}"
        raise PVSError(f"expected the JSON of a case as `--report` writes it, found another form ({told})") from error


def _finite(value: float) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"a volume of {value}")
    return float(value)


def index_page(entries: Iterable[Entry]) -> str:
    """The text of the index; see ``write_index``."""
    cases = sorted(entries, key=lambda entry: (pages.natural(entry.case), entry.case))
    regions = _in_order(region for entry in cases for region in entry.volumes_mm3)
    scores = _in_order_of_scores(key for entry in cases for key in entry.scores)
    failed = [entry for entry in cases if entry.problem is not None]
    warned = sum(bool(entry.warnings) for entry in cases)
    parts = {
        "cases": len(cases),
        "failed": [(entry.case, entry.problem or "") for entry in failed[:LISTED]],
        "more_failed": len(failed[LISTED:]),
        "warned": warned,
        "version": __version__,
        "regions": [_short(region) for region in regions],
        "scores": [(scale, _short(region)) for scale, region in scores],
        "lines": (_line(entry, regions, scores) for entry in cases),
        "figures": [_strip(cases, region) for region in regions],
        "box_from": BOX_FROM,
        "usual": f"{USUAL:g}",
    }
    return pages.render(Path(__file__).parent, "index.html", parts)


def _short(region: str) -> str:
    return SHORT_NAMES.get(region, region)


def _in_order(names: Iterable[str]) -> list[str]:
    """Each once: regions by style, others as they come, all of the image last."""
    found = list(dict.fromkeys(names))
    return sorted(found, key=lambda name: (name == ALL, _style(name)))


def _in_order_of_scores(keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    found = list(dict.fromkeys(keys))
    return sorted(found, key=lambda key: (list(SCALES).index(key[0]) if key[0] in SCALES else 9, _style(key[1])))


@dataclass(frozen=True)
class _Line:
    case: str
    href: str
    sequences: str
    network: str
    numbers: tuple[str, ...]
    warnings: int
    words: tuple[str, ...]
    failed: bool


def _line(entry: Entry, regions: Sequence[str], scores: Sequence[tuple[str, str]]) -> _Line:
    numbers = []
    for region in regions:
        numbers.append(str(entry.counts[region]) if region in entry.counts else NONE)
        numbers.append(_number(entry.volumes_mm3.get(region)))
    numbers += [str(entry.scores[key]) if key in entry.scores else NONE for key in scores]
    failed = entry.problem is not None
    words = (entry.problem or "failed",) if failed else ()
    return _Line(
        entry.case,
        _href(entry.page),
        ", ".join(entry.sequences) or NONE,
        entry.network or NONE,
        tuple(numbers),
        len(entry.warnings),
        (*words, *entry.warnings),
        failed,
    )


def _href(page: str) -> str:
    """A relative address of a file, "" for none: never one of another scheme, host or root."""
    if not page:
        return ""
    try:
        raw = page.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = page.encode("utf-8", "replace")
    return "./" + quote(raw.lstrip(b"/"))


@dataclass(frozen=True)
class _Dot:
    x: str
    y: str
    title: str
    outlier: bool


@dataclass(frozen=True)
class _Strip:
    """The volumes of one region over the cases, along one axis.

    Attributes:
        style, region: of the region.
        words: all of it in words.
        ticks: (position, label).
        whiskers, quartiles, median: positions; None where there are too few values.
        dots: the cases.
        outliers: (name, address, volume) of those furthest outside.
        notes: sentences.
    """

    style: int
    region: str
    words: str
    ticks: tuple[tuple[str, str], ...]
    whiskers: tuple[str, str] | None
    quartiles: tuple[str, str] | None
    median: str | None
    dots: tuple[_Dot, ...]
    outliers: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]
    width: int = 460
    left: int = 14
    right: int = 446
    middle: int = 34
    bottom: int = 68


def _strip(cases: Sequence[Entry], region: str) -> _Strip:
    found = [(entry.volumes_mm3[region], entry) for entry in cases if region in entry.volumes_mm3]
    found.sort(key=lambda item: item[0])
    values = [value for value, _ in found]
    low, half, high = (float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75))
    boxed = len(values) >= BOX_FROM
    fences = (low - USUAL * (high - low), high + USUAL * (high - low))
    out = [item for item in found if boxed and not fences[0] <= item[0] <= fences[1]]
    out.sort(key=lambda item: (-max(fences[0] - item[0], item[0] - fences[1]), item[1].case))
    left, right = _Strip.left, _Strip.right
    # A few wild values must not squeeze all others into a line.
    reach = min(values[-1], 1.5 * fences[1]) if boxed and fences[1] > 0 else values[-1]
    step = _step(reach)
    top = step * max(1, math.ceil(reach / step - 1e-9))

    def at(value: float) -> str:
        return f"{left + (right - left) * min(max(value / top, 0.0), 1.0):.1f}"

    outside = {id(entry) for _, entry in out}
    beyond = sum(value > top * (1 + 1e-9) for value in values)
    inner = [item for item in found if id(item[1]) not in outside]
    drawn = [*_spread(inner, DOTS_PER_FIGURE), *out[:DOTS_PER_FIGURE]]
    dots = [
        # Steps of the golden ratio: neighbours in value lie far apart, and the same cases at the same places.
        _Dot(
            at(value),
            f"{_Strip.middle + ((n * 0.618034 + 0.5) % 1 - 0.5) * 40:.1f}",
            f"{entry.case}: {_number(value)} {CUBIC}",
            id(entry) in outside,
        )
        for n, (value, entry) in enumerate(drawn)
    ]
    notes = []
    if beyond:
        notes.append(f"{_some(beyond, 'value')} beyond the axis, up to {_number(values[-1])}: drawn at its end.")
    if len(drawn) < len(found):
        notes.append(
            f"{len(drawn)} of {len(found)} cases are drawn, evenly from lowest to highest; the box counts all."
        )
    if len(out) > OUTLIERS_NAMED:
        notes.append(f"Of {len(out)} cases outside, the {OUTLIERS_NAMED} furthest are named.")
    inside = [value for value in values if fences[0] <= value <= fences[1]]
    words = f"{_region(region)}: {_some(len(values), 'case')}, median {_number(half)} {CUBIC}"
    if boxed:
        words += f", quartiles {_number(low)} and {_number(high)}"
    return _Strip(
        _style(region),
        _region(region),
        words,
        tuple((at(n * step), f"{n * step:.6g}") for n in range(round(top / step) + 1)),
        (at(min(inside)), at(max(inside))) if boxed else None,
        (at(low), at(high)) if boxed else None,
        at(half) if len(values) > 1 else None,
        tuple(dots),
        tuple((entry.case, _href(entry.page), _number(value)) for value, entry in out[:OUTLIERS_NAMED]),
        tuple(notes),
    )


def _step(top: float, most: int = 5) -> float:
    """A round step of which ``most`` or fewer reach ``top``."""
    top = top if top > 0 else 1.0
    size = 10.0 ** math.floor(math.log10(top / most))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10, 20) if size * factor * most >= top * (1 - 1e-9))


def _spread(values: Sequence[tuple[float, Entry]], most: int) -> Iterator[tuple[float, Entry]]:
    """At most ``most`` of them, first and last included, evenly."""
    if len(values) <= most:
        yield from values
        return
    for index in range(most):
        yield values[round(index * (len(values) - 1) / (most - 1))]

"""The report of one case as one HTML file: how its mask was made, its burden, slices and projections.

Slices are PNG images with outlines along voxel edges, which a plotting library would interpolate; sequences, outlines
and regions are switched by the page's style sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model import __version__, files
from pvs_model.burden.records import ALL, OTHER, Burden
from pvs_model.burden.subregions import CSO
from pvs_model.config import THICK_SLICE_MM, is_thick
from pvs_model.reports.burden_tables import burden_rows, count_of, outside_of, score_of
from pvs_model.reports.html import SCRIPT, VIEWER_SCRIPT, number, render
from pvs_model.reports.regions import OTHER_WM, name_of, style_of
from pvs_model.reports.slices import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    BoolArray,
    Labels,
    Plane,
    ShownSlice,
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
from pvs_model.reports.viewer import pvs_rows, viewer_of
from pvs_model.types import SEQUENCES, Affine, FloatArray

#: Largest number of pixels of all pictures together, about a byte each; with more, fewer pictures are shown.
MAX_PIXELS = 2_500_000
SLICES_PER_REGION = 3
#: Smallest and largest magnification of a picture's pixels on the screen, and the width that is aimed at.
MAGNIFICATION = (4.0, 7.0)
PICTURE_WIDTH = 600
#: Pixels of the screen per mm in projections.
PROJECTION_SCALE = 2.2
#: Sequences in the order shown: PVS have the best contrast in the first.
SHOWN_FIRST = ("T2w", "T1w", "FLAIR")

_BY = " \N{MULTIPLICATION SIGN} "


@dataclass(frozen=True)
class CaseView:
    """The data of a case report. All arrays lie on one grid, (x, y, z) in RAS+ order.

    Attributes:
        name: Name of the case; nothing else on the page identifies the patient.
        images: float32 by sequence, standardised within the head, 0 outside; those that are 0 throughout are left out.
        mask: bool, the PVS.
        regions: bool by name ("CSO", "BG", "midbrain", or any other); may be empty.
        spacing_mm: Voxel size.
        burden: Measurement, or None.
        metadata: Provenance of the mask from the pipeline; anything missing is left out.
        warnings: Sentences, besides those of the metadata and of the burden.
        affine: (4, 4), voxel index to RAS mm, for positions in the scanner; None where it is unknown.
        embed_volume: Whether the page holds the volume for its viewer, about 1.4 MB per sequence at 1 mm.

    Raises:
        ValueError: no image with a value other than 0, an unknown sequence, or arrays of unequal shape.
    """

    name: str
    images: Mapping[str, FloatArray]
    mask: BoolArray
    regions: Mapping[str, BoolArray]
    spacing_mm: tuple[float, float, float]
    burden: Burden | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    affine: Affine | None = None
    embed_volume: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.images if name not in SEQUENCES]
        if unknown:
            raise ValueError(f"expected images of {', '.join(SEQUENCES)}, got {unknown[0]!r}")
        for name, array in {**self.images, **self.regions}.items():
            if array.shape != self.mask.shape:
                raise ValueError(f"{name}: expected the shape of the mask, {self.mask.shape}, got {array.shape}")
        if self.mask.ndim != 3 or not any(image.any() for image in self.images.values()):
            raise ValueError("expected an image (x, y, z) with a value other than 0, got none")


def write_case_report(path: Path, view: CaseView) -> None:
    """Writes the report of one case: everything is in the file, nothing is fetched.

    The same view gives the same bytes. An older file is replaced only by a complete new one.
    """
    files.write_text(path, case_report(view))


def case_report(view: CaseView) -> str:
    """Returns the text of the page; see ``write_case_report``."""
    head = head_of(view.images)
    labels = clusters(view.mask)
    named, outside = _exclusive(view.regions, labels > 0)
    shown = {**named, **({OTHER: outside} if outside.any() else {})} if named else {ALL: head}
    plane = plane_of(view.spacing_mm)
    sequences = [name for name in SHOWN_FIRST if name in view.images and view.images[name].any()]
    viewer = viewer_of(view.images, view.mask, head, view.spacing_mm, sequences) if view.embed_volume else None
    groups, sequences, left_out = _groups(view, shown, labels, head, plane, sequences)
    by_region = {name: labels > 0 if name == ALL else (labels > 0) & region for name, region in shown.items()}
    burden = view.burden
    parts = {
        "viewer": viewer,
        "pvs": [] if viewer is None else pvs_rows(burden, labels, viewer),
        "case": view.name,
        "warnings": _warnings(view),
        "assumed": _provenance(view, sequences, named),
        "burden": burden is not None,
        "rows": burden_rows(burden),
        "outside": outside_of(burden),
        "scores": [] if burden is None else [score_of(score) for score in burden.scores],
        "slab": "" if burden is None else f"{burden.slab_mm:.3g}",
        "clusters": int(labels.max(initial=0)),
        "plane": plane.name,
        "edges_of_slices": plane.edges,
        "sequences": sequences,
        "left_out": left_out,
        "groups": groups,
        "legend": [(style_of(name), name_of(name), count_of(burden, name)) for name in by_region],
        "projections": [_projection(p, view, head, named, by_region) for p in (AXIAL, CORONAL, SAGITTAL)],
    }
    return render("case_report.html", parts, (SCRIPT,) if viewer is None else (SCRIPT, VIEWER_SCRIPT))


def _exclusive(regions: Mapping[str, BoolArray], mask: BoolArray) -> tuple[dict[str, BoolArray], BoolArray]:
    """Returns the regions in the order shown without overlap, and the part of the mask in none of them.

    A voxel of several regions belongs to the one named first, as in the burden.
    """
    free = np.ones(mask.shape, bool)
    exclusive = {}
    for name, region in regions.items():
        if name not in (ALL, OTHER):
            exclusive[name] = region & free
            free &= ~region
    return dict(sorted(exclusive.items(), key=lambda item: style_of(item[0]))), mask & free


# --- provenance -----------------------------------------------------------------------------------------


def sentences(values: object) -> tuple[str, ...]:
    """Returns sentences from what should be a list of them."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        return () if values is None else (str(values),)
    return tuple(str(value) for value in values)


def _warnings(view: CaseView) -> list[str]:
    """Returns every warning once."""
    own = () if view.burden is None else view.burden.warnings
    return list(dict.fromkeys((*sentences(view.metadata.get("warnings")), *view.warnings, *own)))


def _provenance(
    view: CaseView, sequences: Sequence[str], named: Mapping[str, BoolArray]
) -> list[tuple[str, list[str]]]:
    """Returns terms and sentences on how the mask was made."""
    metadata = view.metadata
    used = list(sentences(metadata.get("sequences"))) or list(sequences)
    reference = str(metadata.get("reference") or "")
    missing = [name for name in SEQUENCES if name not in used]
    terms: dict[str, list[str]] = {"Sequences": [f"{', '.join(used)}."]}
    if missing:
        terms["Sequences"].append(f"Not given, or not usable: {', '.join(missing)}.")
    if reference:
        terms["Reference"] = [f"{reference}: the mask lies on its grid."]
        if others := [name for name in used if name != reference]:
            were = "was" if len(others) == 1 else "were"
            terms["Reference"].append(f"{' and '.join(others)} {were} resampled onto it.")
    spacing = _BY.join(f"{mm:.3g}" for mm in view.spacing_mm)
    terms["Grid"] = [f"{_BY.join(map(str, view.mask.shape))} voxels of {spacing} mm (x, y, z).", *_respaced(view)]
    if configuration := str(metadata.get("network") or ""):
        terms["Network"] = [_network(configuration, metadata.get("members"), max(view.spacing_mm))]
    threshold = metadata.get("threshold")
    if isinstance(threshold, int | float):
        low = metadata.get("low_threshold")
        lower = isinstance(low, int | float) and low < threshold
        sentence = f"Voxels are marked at a probability of {low if lower else threshold:.3g} or more"
        if lower:
            sentence += f", in clusters that reach {threshold:.3g}"
        terms["Threshold"] = [f"{sentence}."]
    if metadata.get("prompt"):
        terms["Prompt"] = [f"\N{LEFT DOUBLE QUOTATION MARK}{metadata['prompt']}\N{RIGHT DOUBLE QUOTATION MARK}"]
    terms["Regions"] = [", ".join(name_of(name) for name in named) or "None: the whole image is shown as one."]
    terms["Made by"] = [f"pvs_model {metadata.get('version') or __version__}{_seconds(metadata.get('seconds'))}"]
    return list(terms.items())


def _respaced(view: CaseView) -> list[str]:
    """Returns a sentence where the network's grid had another spacing."""
    spacing = view.metadata.get("network_spacing_mm")
    if not isinstance(spacing, list | tuple) or [isinstance(mm, int | float) for mm in spacing] != [True] * 3:
        return []
    if all(abs(mm - own) <= 0.001 * own for mm, own in zip(spacing, view.spacing_mm, strict=True)):
        return []
    shown = _BY.join(f"{mm:.3g}" for mm in spacing)
    return [f"Resampled to {shown} mm for the network; its probabilities were resampled back."]


def _network(configuration: str, members: object, thickest_mm: float) -> str:
    name = {"3d": "3D", "2d": "2D"}.get(configuration, configuration)
    sentence = name
    if isinstance(members, int) and members > 1:
        sentence += f", the mean of {members} networks"
    thick = is_thick(thickest_mm)
    if name == ("2D" if thick else "3D"):
        than = "is not below" if thick else "is below"
        sentence += f": the largest voxel spacing, {thickest_mm:.3g} mm, {than} {THICK_SLICE_MM:g} mm"
    return f"{sentence}."


def _seconds(seconds: object) -> str:
    if not isinstance(seconds, Mapping):
        return ""
    values = [value for value in seconds.values() if isinstance(value, int | float) and math.isfinite(value)]
    return f", in {sum(values):.0f} s" if values else ""


# --- slices and projections: view boxes in mm, pixels scaled within them -----------------------------------


def _groups(
    view: CaseView, shown: Mapping[str, BoolArray], labels: Labels, head: BoolArray, plane: Plane, sequences: list[str]
) -> tuple[list[dict[str, Any]], list[str], str]:
    """Returns the slices of every region, the sequences shown, and a sentence on what is left out."""
    frames = {name: frame(region, head, view.spacing_mm) for name, region in shown.items() if region.any()}
    chosen: dict[str, list[ShownSlice]] = {}
    for most, names in ((SLICES_PER_REGION, sequences), (SLICES_PER_REGION, sequences[:1]), (1, sequences[:1])):
        chosen = {name: choose_slices(labels, shown[name], plane, view.spacing_mm, most) for name in frames}
        if len(names) * sum(_pixels(frames[name], plane) * len(chosen[name]) for name in frames) <= MAX_PIXELS:
            break
    windows = {name: window(view.images[name], name) for name in names}
    groups: list[dict[str, Any]] = []
    for name in shown:
        note = "" if name in frames else "The region is empty in this image."
        slices = [
            _slice(view, f"p{len(groups)}-{k}", name, one, plane, frames[name], windows)
            for k, one in enumerate(chosen.get(name, ()))
        ]
        if slices and chosen[name][0].pvs == 0:
            where = "" if name == ALL else " in this region"
            note = f"No PVS was marked{where}. A slice without any is shown as a control."
        groups.append({"name": name_of(name), "note": note, "slices": slices})
    left_out = ""
    if len(names) < len(sequences):
        left_out = f"To keep this file small, only {names[0]} is shown"
        left_out += f", and {'one slice' if most == 1 else f'{most} slices'} per region at most."
    return groups, list(names), left_out


def _pixels(box: tuple[slice, slice, slice], plane: Plane) -> int:
    columns, rows = box[plane.columns], box[plane.rows]
    return (columns.stop - columns.start) * (rows.stop - rows.start)


def _slice(
    view: CaseView,
    key: str,
    region: str,
    shown: ShownSlice,
    plane: Plane,
    box: tuple[slice, slice, slice],
    windows: Mapping[str, tuple[float, float]],
) -> dict[str, Any]:
    part = tuple(slice(shown.index, shown.index + 1) if axis == plane.across else box[axis] for axis in range(3))
    mask = plane.slice_of(view.mask[part], 0)
    rows, columns = mask.shape
    mm = plane.spacing(view.spacing_mm)
    magnified = np.clip(PICTURE_WIDTH * min(mm) / (columns * mm[0]), *MAGNIFICATION) / min(mm)
    here = "here" if region == ALL else "of this region here"
    return {
        "key": key,
        "title": f"{plane.name} slice {shown.index} (of 0 to {view.mask.shape[plane.across] - 1})",
        "where": _position(view, plane, shown.index),
        "count_text": f"{shown.pvs or 'no'} PVS {here}",
        "columns": columns,
        "rows": rows,
        **_sizes(mask.shape, mm, float(magnified)),
        "images": [png_uri(grey(plane.slice_of(view.images[name][part], 0), windows[name])) for name in windows],
        "outline": path(mask),
        "bar": f"M3 {rows * mm[1] - 3:.6g}h10",
    }


def _sizes(shape: tuple[int, ...], mm: tuple[float, float], magnified: float) -> dict[str, Any]:
    """Returns the scale of a picture's pixels and the size of its view box in mm, and its size on the screen."""
    width, height = shape[1] * mm[0], shape[0] * mm[1]
    return {
        "scale": f"{mm[0]:.6g} {mm[1]:.6g}",
        "size_mm": (f"{width:.6g}", f"{height:.6g}"),
        "width": round(width * magnified),
        "height": round(height * magnified),
    }


def _position(view: CaseView, plane: Plane, index: int) -> str:
    position = f"{number(index * view.spacing_mm[plane.across])} mm {plane.from_end}"
    if view.affine is not None:
        middle = (np.array(view.mask.shape) - 1) / 2
        middle[plane.across] = index
        mm = float((view.affine[:3, :3] @ middle + view.affine[:3, 3])[plane.across])
        position += f"; {'xyz'[plane.across]} = {number(mm)} mm in the scanner"
    return position


def _projection(
    plane: Plane, view: CaseView, head: BoolArray, named: Mapping[str, BoolArray], by_region: Mapping[str, BoolArray]
) -> dict[str, Any]:
    """Returns the maximum of the mask along one axis, with the outlines of head and regions."""
    box = box_of(head)
    assert box is not None  # an image has a value other than 0
    outline = np.pad(silhouette(head[box], plane), 1)
    masks = {name: np.pad(plane.projected(mask[box]), 1) for name, mask in by_region.items()}
    inner = {name: region for name, region in named.items() if name not in (CSO, OTHER_WM, "WM")}
    nuclei = {name: np.pad(plane.projected(region[box]), 1) for name, region in inner.items()}
    return {
        "plane": plane.name,
        "edges": plane.edges,
        **_sizes(outline.shape, plane.spacing(view.spacing_mm), PROJECTION_SCALE),
        "head": path(outline),
        "regions": [(style_of(name), path(flat)) for name, flat in nuclei.items() if flat.any()],
        "layers": [(style_of(name), path(flat)) for name, flat in masks.items() if flat.any()],
    }

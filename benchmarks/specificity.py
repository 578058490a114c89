"""Locations of predicted PVS in real scans without labels: ``python -m benchmarks.specificity``.

    python -m benchmarks.specificity --scans DIR|FILE ... [--weights DIR] [--device cpu] [--json FILE] [--montage DIR]

``--scans`` takes folders in any layout that the product reads, and single images whose names say the sequence. In a
folder that holds several images of a sequence, those whose names begin alike are a case (``visit1_T1w``,
``visit1_T2w``), and an image whose name begins with its sequence is a case by itself.

PVS lie in white matter, deep grey matter, hippocampus and midbrain. Clusters in cortex, fluid, dura or outside the
brain are therefore false positives: the fewer, the more specific the network, if it still detects PVS in the deep
brain. Each cell of the Markdown table holds two values, before and after the product's removal
of clusters outside the tissue that bears PVS; the first shows the network's own specificity. Columns:

- clusters: 26-connected clusters of the product's mask, without those below its minimum volume.
- deep, cortex, CSF, dura, outside, cerebellum + brainstem: the share of clusters whose centre lies there (the voxel of
  the cluster nearest to its centroid). They sum to 1. The regions are those of the product's anatomy network:
  - deep: cerebral white matter, basal ganglia, thalamus, hippocampus, amygdala, ventral diencephalon and midbrain;
  - CSF: ventricles, sulci, cisterns and holes in the brain;
  - dura: neither parenchyma nor ventricle and within 3 mm of the intracranial surface, on either side of it. The
    network has no class of its own for dura and venous sinuses, which lie there;
  - outside: all the rest. In scans that the product has skull-stripped there are few even before the removal, since
    it then segments the brain and 1 mm around it only.
- per cm3 cortex, per cm3 deep: clusters with their centre there, divided by the region's volume in this scan.

The last row holds the means over scans; a scan without clusters has no shares. The regions are estimates with errors
of their own (docs/anatomy.md), so compare networks on the same scans and the same anatomy weights.
``--montage`` writes a figure of six axial slices per scan: clusters that stay in red, those removed in blue.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.cases import WEIGHTS, mean, write_json
from pvs_model.anatomy.regions import Anatomy
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError, VolumeError
from pvs_model.inference.postprocess import remove_small_components, to_mask
from pvs_model.layouts import choose
from pvs_model.layouts.base import entries
from pvs_model.layouts.names import image_stem, is_image, sequence_of
from pvs_model.pipeline import Segmenter
from pvs_model.preprocessing.prepare import PreparedImages
from pvs_model.reports.slices import AXIAL, box_of, clusters, window
from pvs_model.types import SEQUENCES, BoolArray, Case
from pvs_model.volume.geometry import dilate_mm

PLACES = ("deep", "cortex", "CSF", "dura", "outside", "cerebellum + brainstem")
DEEP = ("WM", "BG", "HIP", "AMY", "VDC", "MID")
DENSITIES = ("cortex", "deep")
COLUMNS = ("clusters", *PLACES, *(f"per cm3 {place}" for place in DENSITIES))
#: Dura and venous sinuses lie within this distance of the intracranial surface.
DURA_MM = 3.0
SLICES = 6

Values = dict[str, float | None]


def find_scans(path: Path) -> list[Case]:
    """Finds the cases of a folder, or the case of an image file."""
    if not path.is_dir():
        sequence = sequence_of(path.name)
        problem = None if sequence else f"{path}: expected an image whose name says T1w, T2w or FLAIR"
        return [Case(image_stem(path.name) or path.name, {sequence: path} if sequence else {}, Path(), problem)]
    cases, subjects = [], choose(path).find_cases(path)
    for case in subjects:
        folder = path / case.output.parent
        if case.problem is not None:
            cases += list(_separated(folder)) or [case]
        elif folder == path:
            cases.append(replace(case, name=path.name if len(subjects) == 1 else f"{path.name}/{case.name}"))
        else:
            cases.append(case)
    return cases


def _separated(folder: Path) -> Iterator[Case]:
    """Makes a case of each image of a folder with images of several subjects."""
    for image in entries(folder):
        if is_image(image) and sequence_of(image.name):
            yield from find_scans(image)


def places_of(anatomy: Anatomy, spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.uint8]:
    """Computes the place of every voxel as an index of ``PLACES``, uint8 (x, y, z)."""
    intracranial = anatomy.brain | anatomy.mask("intracranial")
    surface = dilate_mm(intracranial, DURA_MM, spacing_mm) & dilate_mm(~intracranial, DURA_MM, spacing_mm)
    places = np.where(intracranial, PLACES.index("CSF"), PLACES.index("outside")).astype(np.uint8)
    places[surface & ~anatomy.mask("brain")] = PLACES.index("dura")
    places[anatomy.mask("parenchyma")] = PLACES.index("cerebellum + brainstem")
    places[anatomy.mask("CTX")] = PLACES.index("cortex")
    for name in DEEP:
        places[anatomy.mask(name)] = PLACES.index("deep")
    return places


def centres(mask: npt.NDArray[np.generic], spacing_mm: tuple[float, float, float]) -> npt.NDArray[np.int64]:
    """Finds the voxel of each 26-connected cluster nearest to its centroid, (clusters, 3)."""
    from scipy import ndimage

    labels, voxels_nearest = clusters(mask != 0), []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        voxels = np.argwhere(labels[box] == number)
        offsets = (voxels - voxels.mean(0)) * spacing_mm
        voxels_nearest.append(voxels[(offsets**2).sum(1).argmin()] + [part.start for part in box])
    return np.array(voxels_nearest, np.int64).reshape(-1, 3)


def count_by_place(
    mask: npt.NDArray[np.generic], places: npt.NDArray[np.uint8], spacing_mm: tuple[float, float, float]
) -> Values:
    """Computes the values of ``COLUMNS`` for a mask; None where the denominator is 0.

    Args:
        mask: (x, y, z), PVS where not 0.
        places: uint8 (x, y, z), indices of ``PLACES``.
        spacing_mm: Voxel spacing.
    """
    counts = np.bincount(places[tuple(centres(mask, spacing_mm).T)], minlength=len(PLACES))
    cm3 = np.bincount(places.ravel(), minlength=len(PLACES)) * float(np.prod(spacing_mm)) / 1000
    total = int(counts.sum())
    values: Values = {"clusters": total}
    for index, name in enumerate(PLACES):
        values[name] = int(counts[index]) / total if total else None
    for name in DENSITIES:
        index = PLACES.index(name)
        values[f"per cm3 {name}"] = float(counts[index] / cm3[index]) if cm3[index] else None
    return {name: values[name] for name in COLUMNS}


def row(first: list[str], before: Values, after: Values) -> str:
    """Formats a line of the table."""
    cells = []
    for name in COLUMNS:
        digits = 0 if name == "clusters" else 3 if name.startswith("per") else 2
        cells.append(" / ".join("-" if v is None else f"{v:.{digits}f}" for v in (before[name], after[name])))
    return "| " + " | ".join([*first, *cells]) + " |"


def montage(path: Path, prepared: PreparedImages, brain: BoolArray, before: BoolArray, after: BoolArray) -> None:
    """Draws six axial slices from the base of the brain to its vertex, with outlines, and their centre at 2x."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    image = prepared.image[SEQUENCES.index(prepared.reference)]
    low, high = window(image, prepared.reference)
    image = np.where(image == 0, low, image)
    box = box_of(brain) or tuple(slice(0, n) for n in image.shape)
    heights = np.linspace(box[2].start, box[2].stop - 1, SLICES + 3).round().astype(int)[2:-1]
    middle = tuple(slice((3 * s.start + s.stop) // 4, (s.start + 3 * s.stop) // 4) for s in box[:2])
    x_mm, y_mm, _ = prepared.grid.spacing_mm
    figure, axes = pyplot.subplots(3, SLICES, figsize=(4 * SLICES, 13), facecolor="black", layout="constrained")
    for row_axes, part, outlined in zip(axes, (box[:2], middle, middle), (True, False, True), strict=True):
        for axis, z in zip(row_axes, heights, strict=True):
            shown, kept, removed = (AXIAL.slice_of(a[part], z) for a in (image, after, before & ~after))
            axis.imshow(shown, cmap="gray", vmin=low, vmax=high, aspect=y_mm / x_mm, interpolation="nearest")
            for marked, colour in ((kept, "red"), (removed, "deepskyblue")):
                if outlined and marked.any():
                    axis.contour(marked, [0.5], colors=colour, linewidths=0.7)
            axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    """Prints the table, each row when its scan is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", type=Path, required=True, metavar="DIR|FILE")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--montage", type=Path, metavar="DIR")
    args = parser.parse_args()
    segmenter = Segmenter(InferenceConfig(args.weights, args.device))
    results: dict[str, dict[str, Values]] = {"before": {}, "after": {}}
    names = ["scan", "network", *COLUMNS]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names), flush=True)
    for case in (case for path in args.scans for case in find_scans(path)):
        try:
            predicted = segmenter.predict(segmenter.preprocess(case))
            segmentation, prepared = segmenter.postprocess(predicted), predicted.preprocessed.prepared
            if prepared.anatomy is None:
                raise VolumeError("expected a scan of a brain, but the anatomy network detected none")
        except PVSError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        spacing = prepared.grid.spacing_mm
        settings = predicted.ensemble.settings
        before = to_mask(predicted.probability, settings.threshold, prepared.foreground, settings.low_threshold)
        before = remove_small_components(before, float(np.prod(spacing)))
        places = places_of(prepared.anatomy, spacing)
        for when, mask in (("before", before), ("after", segmentation.canonical_mask)):
            results[when][case.name] = count_by_place(mask, places, spacing)
        configuration = predicted.ensemble.configuration.upper()
        print(row([case.name, configuration], results["before"][case.name], results["after"][case.name]), flush=True)
        if args.montage is not None:
            name = case.name.replace("/", "_") + ".png"
            montage(args.montage / name, prepared, prepared.anatomy.brain, before > 0, segmentation.canonical_mask > 0)
    means = {when: {n: mean(v[n] for v in values.values()) for n in COLUMNS} for when, values in results.items()}
    print(row(["mean", ""], means["before"], means["after"]))
    write_json(args.json, {"weights": str(args.weights), "scans": results, "mean": means})


if __name__ == "__main__":
    main()

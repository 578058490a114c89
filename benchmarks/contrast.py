"""Contrast of predicted PVS in real scans without labels: ``python -m benchmarks.contrast``.

    python -m benchmarks.contrast --scans DIR|FILE ... [--weights DIR] [--thresholds 0.5 0.9] [--json FILE]

The contrast of a cluster is its peak minus the median of its surroundings, relative to the contrast from white matter
to ventricles: of spots that were measured on real scans, nine tenths reach 0.14. It needs no label, and shows
whether a network marks what a reader would see. It is measured in T2w, else T1w, else FLAIR. Clusters are those of one
slice each, since thick slices cut PVS. Noise adds to the peak: about 0.02 to 0.05.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.cases import WEIGHTS, write_json
from benchmarks.specificity import find_scans
from pvs_model.anatomy.regions import Anatomy
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError, VolumeError
from pvs_model.inference.postprocess import to_mask
from pvs_model.pipeline import Segmenter
from pvs_model.types import SEQUENCES, AnyArray, BoolArray, Case, FloatArray, Triple

#: Surroundings of a cluster: voxels of its slice from ``MARGIN_MM`` to ``REACH_MM`` away.
MARGIN_MM, REACH_MM = 1.0, 3.5
COLUMNS = ("threshold", "clusters", "10 %", "50 %", "90 %", "from 0.1 on", "below 0.05")


def contrasts(mask: AnyArray, image: FloatArray, anatomy: Anatomy, spacing_mm: Triple) -> FloatArray:
    """Computes the contrast of each cluster of a slice: (clusters,); NaN where nothing surrounds one.

    Args:
        mask: (x, y, z), PVS where not 0.
        image: (x, y, z).
        anatomy: Its white matter and ventricles give the contrast that is 1.
        spacing_mm: Voxel spacing; the longest is the slice axis.

    Raises:
        VolumeError: The anatomy has no white matter or no ventricles.
    """
    white, fluid = anatomy.mask("WM"), anatomy.mask("ventricles")
    if not white.any() or not fluid.any():
        raise VolumeError("expected white matter and ventricles in the anatomy of the scan")
    unit = float(np.median(image[fluid]) - np.median(image[white]))
    through_plane = int(np.argmax(spacing_mm))
    in_plane = [mm for axis, mm in enumerate(spacing_mm) if axis != through_plane]
    near, far = (_disc(mm, in_plane) for mm in (MARGIN_MM, REACH_MM))
    values = []
    for pvs, plane in zip(np.moveaxis(mask != 0, through_plane, 0), np.moveaxis(image, through_plane, 0), strict=True):
        labels, _ = ndimage.label(pvs, np.ones((3, 3)))
        excluded = ndimage.binary_dilation(pvs, near)
        for number, box in enumerate(ndimage.find_objects(labels), 1):
            wide = tuple(slice(max(0, s.start - n // 2), s.stop + n // 2) for s, n in zip(box, far.shape, strict=True))
            own = labels[wide] == number
            around = plane[wide][ndimage.binary_dilation(own, far) & ~excluded[wide]]
            peak = np.max(np.sign(unit) * plane[wide][own])
            values.append((peak - np.median(np.sign(unit) * around)) / abs(unit) if len(around) else np.nan)
    return np.array(values, np.float32)


def _disc(radius_mm: float, spacing_mm: list[float]) -> BoolArray:
    """Makes the mask of a disc."""
    axes = [np.arange(-int(radius_mm / mm), int(radius_mm / mm) + 1) * mm for mm in spacing_mm]
    return np.hypot(axes[0][:, None], axes[1][None]) <= radius_mm + 1e-6


def summary(threshold: float, values: FloatArray) -> dict[str, float]:
    """Computes the values of ``COLUMNS``."""
    percentiles = np.nanpercentile(values, (10, 50, 90)) if np.isfinite(values).any() else [np.nan] * 3
    low, middle, high = (round(float(v), 3) for v in percentiles)
    strong, weak = int((values >= 0.1).sum()), int((values < 0.05).sum())
    return dict(zip(COLUMNS, (threshold, len(values), low, middle, high, strong, weak), strict=True))


def measure(segmenter: Segmenter, case: Case, thresholds: Sequence[float] | None) -> list[dict[str, float]]:
    """Segments a case and measures the contrast of its clusters at each threshold.

    Raises:
        PVSError: The case cannot be segmented, or shows no brain.
    """
    predicted = segmenter.predict(segmenter.preprocess(case))
    prepared = predicted.preprocessed.prepared
    if prepared.anatomy is None:
        raise VolumeError("expected a scan of a brain, but the anatomy network detected none")
    sequence = next(name for name in ("T2w", "T1w", "FLAIR") if name in prepared.sequences)
    image = np.asarray(prepared.image[SEQUENCES.index(sequence)], np.float32)
    rows = []
    settings = predicted.ensemble.settings
    for threshold in thresholds or [settings.threshold]:
        low = None if thresholds else settings.low_threshold
        mask = to_mask(predicted.probability, threshold, prepared.foreground, low)
        rows.append(summary(threshold, contrasts(mask, image, prepared.anatomy, prepared.grid.spacing_mm)))
    return rows


def main() -> None:
    """Prints a row per scan and threshold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", nargs="+", type=Path, required=True, metavar="DIR|FILE")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--thresholds", nargs="+", type=float, help="default: those of the manifest")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    segmenter = Segmenter(InferenceConfig(args.weights, args.device))
    results: dict[str, list[dict[str, float]]] = {}
    print("| " + " | ".join(("scan", *COLUMNS)) + " |\n|" + "---|" * (len(COLUMNS) + 1), flush=True)
    for case in (case for path in args.scans for case in find_scans(path)):
        try:
            results[case.name] = measure(segmenter, case, args.thresholds)
        except PVSError as error:
            print(f"{case.name}: {error}", file=sys.stderr)
            continue
        for values in results[case.name]:
            print("| " + " | ".join([case.name, *(f"{values[name]:g}" for name in COLUMNS)]) + " |", flush=True)
    write_json(args.json, {"weights": str(args.weights), "scans": results})


if __name__ == "__main__":
    main()

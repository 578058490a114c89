"""A Frangi filter as the peer: what a filter without learning reaches when it is told its best settings.

    python -m benchmarks.frangi SETS/NAME ...

Scale-space vesselness (Frangi et al. 1998, scikit-image) of T2w (bright tubes), per region. The threshold, and
whether one scale or all are used, is the one with the best mean Dice over the cases that are reported, per set
and region: an oracle, which no method can use on new data. It makes the peer look as good as it can.
"""

from __future__ import annotations

import numpy as np
from skimage.filters import frangi

from benchmarks.cases import Bool, LabelledCase, arguments, cases_of, header, measured, row, sets_of, write_json
from pvs_model.evaluation.metrics import dice
from pvs_model.types import SEQUENCES, FloatArray

#: Radii (mm) that make up each choice of scales, as voxels of the finest axis.
SCALES_MM = ((0.5,), (0.5, 1.0), (0.5, 1.0, 1.5))
PERCENTILES = np.concatenate([np.arange(80, 99, 1.0), np.arange(99, 100, 0.1)])


def vesselness(case: LabelledCase, scales_mm: tuple[float, ...]) -> FloatArray:
    """Frangi's vesselness (x, y, z) of T2w, or of T1w (dark tubes) where there is no T2w."""
    name = "T2w" if "T2w" in case.volumes else "T1w"
    image = case.prepared.image[SEQUENCES.index(name)]
    finest = min(case.prepared.grid.spacing_mm)
    sigmas = [max(0.6, s / finest) for s in scales_mm]
    if max(case.prepared.grid.spacing_mm) >= 2.5:  # slice by slice: across thick slices there is no tube to follow
        slices = [frangi(image[..., k], sigmas, black_ridges=name == "T1w") for k in range(image.shape[2])]
        return np.stack(slices, -1).astype(np.float32)
    return np.asarray(frangi(image, sigmas, black_ridges=name == "T1w"), np.float32)


def main() -> None:
    """Filter, find the best threshold per set and region, print."""
    args = arguments(__doc__).parse_args()
    kept = []
    print(header("set", "scales (mm)", "region"))
    for name, folder in sets_of(args.sets).items():
        cases = list(cases_of(folder, args.count))
        filtered = {scales: [vesselness(case, scales) for case in cases] for scales in SCALES_MM}
        for region in ("CSO", "BG"):
            best: tuple[float, tuple[float, ...], float] = (-1.0, SCALES_MM[0], 0.0)
            truths: list[Bool] = [case.within(region) for case in cases]
            for scales, volumes in filtered.items():
                inside = [v[case.regions[region]] for v, case in zip(volumes, cases, strict=True)]
                for threshold in np.percentile(np.concatenate(inside), PERCENTILES):
                    values = [
                        dice((v >= threshold) & case.regions[region], truth)
                        for v, case, truth in zip(volumes, cases, truths, strict=True)
                    ]
                    reached = float(np.nanmean(values)) if not np.all(np.isnan(values)) else -1.0
                    best = max(best, (reached, scales, float(threshold)))
            _, scales, threshold = best
            results = [
                measured((v >= threshold) & case.regions[region], truth)
                for v, case, truth in zip(filtered[scales], cases, truths, strict=True)
            ]
            kept.append({"set": name, "region": region, "scales_mm": scales, "threshold": threshold, "dice": best[0]})
            print(row((name, "+".join(f"{s:g}" for s in scales), region), results), flush=True)
    write_json(args.json, kept)


if __name__ == "__main__":
    main()

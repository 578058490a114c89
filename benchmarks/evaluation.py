"""Seconds and memory of an evaluation, beside the straightforward way of one mask per cluster.

    python -m benchmarks.evaluation [--cases 8] [--size 256] [--clusters 500] [--workers 2] [--json FILE]

The cases are made up and written as .nii.gz to a temporary folder: curved tubes, one to a cell of 32^3 voxels. The
prediction holds nine in ten of them, moved so that truth and prediction share about 60 %, and another tube for each
tenth; regions cut through some. The straightforward way goes over the clusters three times and compares the whole
image with each cluster's number; it is timed once, and has to give the same scores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from pvs_model.evaluation.metrics import Values, all_sets, clusters, official, overlap

ROOT = Path(__file__).resolve().parents[1]
Bool = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int64]

#: Voxels along a side of the cube that holds one tube.
CELL = 32
SPACING_MM = (1.0, 1.0, 1.0)
#: One more evaluation in a process of its own, whose peak memory is then known.
ALONE = """
import sys
from pathlib import Path
from pvs_model.evaluation.evaluate import evaluate
evaluate(Path(sys.argv[1]), Path(sys.argv[2]), workers=1)
"""


def tube(rng: np.random.Generator) -> Points:
    """Voxels (n, 3) of a curved tube, 6 to 20 voxels long and 3 or 4 thick, that leaves its cell a margin of 2."""
    length = rng.uniform(6, 20)
    along, across = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
    t = np.linspace(-0.5, 0.5, 60)[:, None]
    centre = CELL / 2 + rng.uniform(-7, 7, 3)
    middle = np.clip(centre + length * (t * along + rng.uniform(0, 1.2) * t**2 * across), 5, CELL - 6)
    reach = np.argwhere(np.ones((5, 5, 5))) - 2
    ball = reach[(reach**2).sum(1) < rng.uniform(2.5, 4.5)]
    return np.unique((middle.round().astype(np.int64)[:, None] + ball).reshape(-1, 3), axis=0)


def masks(size: int, count: int, seed: int) -> dict[str, Bool]:
    """Truth, prediction and regions (size, size, size)."""
    rng = np.random.default_rng(seed)
    corners = np.argwhere(np.ones((size // CELL,) * 3)) * CELL
    if count > len(corners):
        raise SystemExit(f"expected at most {len(corners)} clusters in {size}^3, found {count}")
    made = {name: np.zeros((size,) * 3, bool) for name in ("PVS", "pred", "CSO", "BG")}
    for corner in rng.permutation(corners)[:count]:
        true = tube(rng)
        moved = true + rng.permutation((1, 1, 0)) if rng.random() < 0.9 else tube(rng)
        for name, points in (("PVS", true), ("pred", moved)):
            made[name][tuple((corner + points).T)] = True
    x, y, z = np.meshgrid(*[(np.arange(size) + 0.5) / size - 0.5] * 3, indexing="ij", sparse=True)
    made["BG"][:] = (abs(x) < 0.2) & (abs(y) < 0.2) & (abs(z) < 0.2)
    made["CSO"][:] = (x**2 + y**2 + z**2 < 0.2) & (z > -0.2) & ~made["BG"]
    return made


def write(folder: Path, size: int, count: int, seed: int) -> None:
    """One case, in ``truth`` and ``predictions`` below ``folder``."""
    case = f"case{seed:03d}"
    for name, mask in masks(size, count, seed).items():
        path = folder / ("predictions" if name == "pred" else "truth") / case / f"{case}_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(mask.astype(np.uint8), np.diag([*SPACING_MM, 1.0])), path)


def straightforward(prediction: Bool, truth: Bool) -> Values:
    """The official scores with one mask per cluster, in three loops over clusters."""
    real, true_count = clusters(truth)
    found, predicted_count = clusters(prediction)
    touched = sum(bool(((real == k) & prediction).any()) for k in range(1, true_count + 1))
    missed = sum(not ((real == k) & prediction).any() for k in range(1, true_count + 1))
    false = sum(not ((found == k) & truth).any() for k in range(1, predicted_count + 1))
    if touched + missed != true_count or false > predicted_count:
        raise SystemExit("the loops over clusters disagree with each other")
    shared, true_voxels, predicted_voxels = (int(mask.sum()) for mask in (truth & prediction, truth, prediction))
    avd = abs(predicted_voxels - true_voxels) / true_voxels
    return {
        "dice": 2 * shared / (true_voxels + predicted_voxels),
        "avd": avd,
        "avd_capped": min(1.0, avd),
        "recall": touched / true_count,
        "precision": touched / predicted_count,
    }


def timed(call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Median seconds of a call, and what it gives."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def peak_mib(truth: Path, predictions: Path) -> float:
    """Peak memory of the evaluation of a folder in a process of its own.

    A child starts out with the peak memory of its parent: to be called while this one is small.
    """
    child = subprocess.Popen([sys.executable, "-c", ALONE, str(truth), str(predictions)], cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the evaluation of {truth} failed (status {child.returncode})")
    return usage.ru_maxrss / 1024


def one_case(folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of the three ways to score one case in the whole image."""
    case = folder.name
    truth, prediction = (
        np.asarray(nibabel.load(path).dataobj) != 0
        for path in (folder / f"{case}_PVS.nii.gz", folder.parents[1] / "predictions" / case / f"{case}_pred.nii.gz")
    )
    all_sets(prediction[:8, :8, :8], np.ones((8, 8, 8), bool), SPACING_MM)  # imports are not to be measured
    only_official, scores = timed(lambda: official(overlap(prediction, truth)), repeats)
    all_four, (counts, _) = timed(lambda: all_sets(prediction, truth, SPACING_MM), repeats)
    loops, slow_scores = timed(lambda: straightforward(prediction, truth))
    if slow_scores != scores:
        raise SystemExit(f"expected equal scores of {case}, found {slow_scores} and {scores}")
    return {"loops_s": loops, "official_s": only_official, "all_sets_s": all_four, "counts": asdict(counts), **scores}


def main() -> None:
    """Make cases, measure, print a table; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
            made = [pool.submit(write, folder, args.size, args.clusters, seed) for seed in range(args.cases)]
            for future in made:
                future.result()
        truth, predictions, alone = folder / "truth", folder / "predictions", folder / "alone"
        for part in (truth, predictions):
            shutil.copytree(part / "case000", alone / part.name / "case000")
        memory = peak_mib(alone / "truth", alone / "predictions")
        one = one_case(truth / "case000", args.repeats)

        from pvs_model.evaluation.evaluate import evaluate

        total, report = timed(lambda: evaluate(truth, predictions, workers=args.workers))
    if report.problems or len(report.rows) != 3 * args.cases:
        raise SystemExit(f"expected 3 rows for each of {args.cases} cases, found {len(report.rows)}; {report.problems}")
    counts = one["counts"]
    print(
        f"One case of {args.size}^3: {counts['truth_clusters']} clusters of truth, {counts['predicted_clusters']} of "
        f"prediction, Dice {one['dice']:.2f}; medians of {args.repeats}, the first row once\n\n"
        "| scores of one case, whole image | s | times as fast |\n|---|---|---|"
    )
    for label, key in (
        ("official: one mask per cluster, three loops", "loops_s"),
        ("official: `overlap`", "official_s"),
        ("all four sets: `all_sets`", "all_sets_s"),
    ):
        print(f"| {label} | {one[key]:.2f} | {one['loops_s'] / one[key]:.0f} |")
    print(
        f"\n| `evaluate` of folders: whole image, CSO and BG | |\n|---|---|\n"
        f"| {args.cases} cases, {args.workers} processes | {total:.1f} s, {total / args.cases:.2f} s per case |\n"
        f"| peak memory, one case | {memory:.0f} MiB |"
    )
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        asked = {name: getattr(args, name) for name in ("cases", "size", "clusters", "workers", "repeats")}
        results = {"asked": asked, **one, "evaluate_s": total, "peak_mib": memory}
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

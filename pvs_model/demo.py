"""The main job on one simulated subject, with scores against its truth and a picture to look at."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvs_model import files
from pvs_model.synth.phantom import phantom
from pvs_model.training.cases import write_case

NAME = "phantom"
SEED = 11
VOXEL_MM = (1.0, 1.0, 1.0)

TRUTH, FOUND, BOTH = (0.95, 0.75, 0.10), (0.85, 0.20, 0.75), (0.20, 0.85, 0.95)  # missed, extra, agreed


def demo(output: Path, weights: Path | None = None) -> int:
    """Simulate a phantom, run ``process.py`` on it as a user would, print scores, write ``overlay.png``.

    Args:
        output: folder, emptied first: ``input``, ``truth``, ``masks``, ``scores.json``, ``overlay.png``.
        weights: weights folder; None for the shipped one.

    Returns:
        the exit status of ``process.py``.
    """
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.summary import as_json, text
    from pvs_model.volume.io import read
    from pvs_model.volume.masks import read_mask

    for part in ("input", "truth", "masks"):
        shutil.rmtree(output / part, ignore_errors=True)
    print(f"simulating one subject (phantom, seed {SEED}, 1 mm)", flush=True)
    folder = write_case(output / "input", NAME, phantom(SEED), SEED, VOXEL_MM, truth=output / "truth")
    command = [sys.executable, str(Path(__file__).resolve().parents[1] / "process.py")]
    command += ["--input", str(output / "input"), "--output", str(output / "masks")]
    command += ["--weights", str(weights)] if weights else []
    status = subprocess.run(command, check=False).returncode
    if status:
        return status
    report = evaluate(output / "truth", output / "masks", workers=1)
    files.write_text(output / "scores.json", json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    truth = read_mask(output / "truth" / NAME / f"{NAME}_PVS.nii.gz").inside
    mask_path = output / "masks" / NAME / f"{NAME}_pred.nii.gz"
    mask = read_mask(mask_path).inside
    (counts,) = [row.counts for row in report.rows if row.region == "all"]
    print("against the simulated truth (not a result on real scans), by the challenge's metrics:")
    print(text(report))
    print(
        f"clusters: {counts.touched_truth} of {counts.truth_clusters} true ones touched, "
        f"{counts.touching_predicted} of {counts.predicted_clusters} found ones touch the truth; "
        f"voxels: {counts.predicted_voxels} found, {counts.truth_voxels} true"
    )
    for warning in report.warnings:
        print(f"note: {warning}")
    picture = output / "overlay.png"
    overlay(read(folder / f"{NAME}_T2w.nii.gz").data, truth, mask, picture)
    print(f"mask: {mask_path}\npicture: {picture} (blue: agreed, yellow: missed, magenta: extra)")
    return 0


def overlay(
    image: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], path: Path
) -> None:
    """Three axial slices (x, y), image above, image with agreement and disagreement below, as a PNG."""
    from matplotlib.figure import Figure

    where = np.flatnonzero(truth.any((0, 1)) | mask.any((0, 1)))
    low, high = (int(where[0]), int(where[-1])) if len(where) else (0, image.shape[2] - 1)
    chosen = [round(low + (high - low) * share) for share in (0.42, 0.58, 0.74)]
    top = float(np.percentile(image[image > 0], 99.5)) if (image > 0).any() else 1.0
    figure = Figure(figsize=(12, 9), facecolor="black")
    for column, z in enumerate(chosen):
        gray = np.repeat(np.clip(image[:, :, z] / top, 0, 1)[..., None], 3, axis=2)
        coloured = gray.copy()
        coloured[truth[:, :, z] & ~mask[:, :, z]] = TRUTH
        coloured[mask[:, :, z] & ~truth[:, :, z]] = FOUND
        coloured[mask[:, :, z] & truth[:, :, z]] = BOTH
        for row, picture in enumerate((gray, coloured)):
            axes = figure.add_subplot(2, 3, row * 3 + column + 1)
            axes.imshow(picture.transpose(1, 0, 2)[::-1], interpolation="nearest")
            axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path, dpi=130)

"""Simulate one subject, segment it, print scores, write a picture."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pvs_model import files
from pvs_model.commands import segment
from pvs_model.errors import PVSError

NAME = "phantom"
SEED = 11
VOXEL_MM = (1.0, 1.0, 1.0)

#: RGB of missed (yellow), false (magenta) and agreed (blue) voxels.
MISSED, FALSE, AGREED = (0.95, 0.75, 0.10), (0.85, 0.20, 0.75), (0.20, 0.85, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``demo``."""
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--weights", type=Path, help="weights folder (default: the shipped ones)")


def run(args: argparse.Namespace) -> int:
    """Simulates a phantom, segments it, prints scores and writes ``overlay.png``.

    The folder ``--output`` gets ``input``, ``truth``, ``masks``, ``scores.json`` and ``overlay.png``; the case of an
    earlier demo is removed from the first three.

    Returns:
        Exit status of ``segment``.

    Raises:
        PVSError: One of these folders holds something else, which is left as it is.
    """
    from pvs_model.datasets.simulated_cases import write_case
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.summary import as_json, text
    from pvs_model.simulation.phantom import make_phantom
    from pvs_model.volume.io import read
    from pvs_model.volume.masks import read_mask

    output = args.output
    remove_earlier(output)
    print(f"simulating one subject (phantom, seed {SEED}, 1 mm)", flush=True)
    folder = write_case(output / "input", NAME, make_phantom(SEED), SEED, VOXEL_MM, reference=output / "truth")
    weights = ["--weights", str(args.weights)] if args.weights else []
    status = segment.main(["--input", str(output / "input"), "--output", str(output / "masks"), *weights])
    if status:
        return status
    report = evaluate(output / "truth", output / "masks", workers=1)
    files.write_text(output / "scores.json", json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    reference = read_mask(output / "truth" / NAME / f"{NAME}_PVS.nii.gz").inside
    mask_path = output / "masks" / NAME / f"{NAME}_pred.nii.gz"
    mask = read_mask(mask_path).inside
    (counts,) = [row.counts for row in report.rows if row.region == "all"]
    print("scores by the challenge's metrics against the simulated reference (not a result on real scans):")
    print(text(report))
    print(
        f"clusters: {counts.detected_reference_clusters} of {counts.reference_clusters} reference clusters detected, "
        f"{counts.true_positive_clusters} of {counts.predicted_clusters} predicted clusters touch the reference; "
        f"voxels: {counts.predicted_voxels} predicted, {counts.reference_voxels} in the reference"
    )
    for warning in report.warnings:
        print(f"note: {warning}")
    picture = output / "overlay.png"
    overlay(read(folder / f"{NAME}_T2w.nii.gz").data, reference, mask, picture)
    print(f"mask: {mask_path}\npicture: {picture} (blue: agreed, yellow: missed, magenta: false)")
    return 0


def remove_earlier(output: Path) -> None:
    """Removes the case of an earlier demo from its folders.

    Raises:
        PVSError: They hold other files, which would be segmented and scored as well. Nothing is removed then.
    """
    folders = [output / part for part in ("input", "truth", "masks")]
    for folder in folders:
        for path in folder.rglob("*") if folder.is_dir() else [folder] if folder.exists() else []:
            own = path.parent == folder / NAME and path.name.startswith(f"{NAME}_")
            if not own and path != folder / NAME and not path.name.startswith("."):
                raise PVSError(
                    f"{path}: expected {folder} to hold nothing but the case {NAME} of an earlier demo, got something "
                    "else: choose another --output"
                )
    for folder in folders:
        shutil.rmtree(folder / NAME, ignore_errors=True)


def overlay(
    image: npt.NDArray[np.float32], reference: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_], path: Path
) -> None:
    """Draws three axial slices as a PNG: the image above, and below it with agreement and disagreement in colour."""
    from matplotlib.figure import Figure

    occupied = np.flatnonzero(reference.any((0, 1)) | mask.any((0, 1)))
    low, high = (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, image.shape[2] - 1)
    slices = [round(low + (high - low) * share) for share in (0.42, 0.58, 0.74)]
    top = float(np.percentile(image[image > 0], 99.5)) if (image > 0).any() else 1.0
    figure = Figure(figsize=(12, 9), facecolor="black")
    for column, z in enumerate(slices):
        gray = np.repeat(np.clip(image[:, :, z] / top, 0, 1)[..., None], 3, axis=2)
        coloured = gray.copy()
        coloured[reference[:, :, z] & ~mask[:, :, z]] = MISSED
        coloured[mask[:, :, z] & ~reference[:, :, z]] = FALSE
        coloured[mask[:, :, z] & reference[:, :, z]] = AGREED
        for row, picture in enumerate((gray, coloured)):
            axes = figure.add_subplot(2, 3, row * 3 + column + 1)
            axes.imshow(picture.transpose(1, 0, 2)[::-1], interpolation="nearest")
            axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path, dpi=130)

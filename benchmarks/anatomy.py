"""Dice of the brain and its regions, and seconds, as a Markdown table: ``python -m benchmarks.anatomy``.

Sets: two real T1w with FreeSurfer labels (one stripped, one with its skull); simulated scans of brains of other
subjects (stripped: the maps have no skull); and, with ``--held-out``, of the heads that training kept for validation.
The simulated ones are T1w, T2w and FLAIR with axial slices of 1, 3 and 6 mm and 1 mm within them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pvs_model.anatomy.inference import find_regions, load_network
from pvs_model.anatomy.regions import CLASS, values_of
from pvs_model.datasets.label_maps import find_label_maps
from pvs_model.evaluation.metrics import dice
from pvs_model.training.anatomy.label_maps import LabelMap, class_targets, load_label_map
from pvs_model.training.anatomy.scans import AnatomyScanParams, render
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume.geometry import to_ras
from pvs_model.volume.io import read

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
REAL = {"T1_norm.mgz": "T1_norm_labels.mgz", "T1_orig_with_skull.mgz": "T1_orig_labels.mgz"}
COLUMNS = ("brain", "BG", "CAU", "PUT", "PAL", "THA", "WM", "CTX", "HIP", "MID", "BST", "CBL", "LV", "CSF")
SLICES_MM = (1, 3, 6)
SHAPE = (176, 216, 180)

Classes = npt.NDArray[np.integer]
Case = tuple[str, Volume, Classes]


def real_cases(folder: Path) -> Iterator[Case]:
    """Reads T1w with FreeSurfer labels on the same grid; FreeSurfer labels no CSF outside the ventricles."""
    for image, labels in REAL.items():
        if (folder / image).is_file() and (folder / labels).is_file():
            ids = np.rint(to_ras(read(folder / labels))[0].data).astype(np.int32)
            reference = class_targets(ids, labels)
            reference[reference == CLASS["CSF"]] = 0  # FreeSurfer labels little of it
            yield f"real {image}", to_ras(read(folder / image))[0], reference


def simulated_cases(heads: Sequence[LabelMap], name: str, strip: str) -> Iterator[Case]:
    """Simulates every head in every sequence and thickness."""
    for sequence in SEQUENCES:
        for thickness in SLICES_MM:
            for number, head in enumerate(heads):
                volume, reference = simulated(head, sequence, thickness, strip, seed=1000 + number)
                yield f"{name} {sequence} {thickness} mm", volume, reference


def simulated(head: LabelMap, sequence: str, thickness: int, strip: str, seed: int) -> tuple[Volume, Classes]:
    """Simulates a scan of 1 x 1 x ``thickness`` mm and its classes by majority."""
    rng = np.random.default_rng(seed)
    a, b, c = (float(v) for v in rng.uniform(-10, 10, 3))
    params = AnatomyScanParams(
        seed=seed, sequence=sequence, rotation_deg=(a, b, c), strip=strip, strip_at=0.5, noise=0.03, bias=0.15
    )
    scan = render(head, params, SHAPE, spacing_mm=1.0, raw=True)
    blocks = scan.image.unflatten(2, (-1, thickness))
    image = blocks.mean(3).numpy()
    target = scan.target.unflatten(2, (-1, thickness)).mode(3).values.numpy()
    return Volume(image, np.diag([1.0, 1.0, thickness, 1.0])), target


def scores(volume: Volume, reference: Classes, weights: Path) -> tuple[list[float], float]:
    """Computes Dice per column (NaN where the reference lacks the region), and seconds."""
    began = time.perf_counter()
    prediction = find_regions(volume, weights)
    seconds = time.perf_counter() - began
    row = []
    for name in COLUMNS:
        members = [CLASS[key] for key in CLASS if set(values_of(key)) <= set(values_of(name))]
        region = np.isin(reference, members)
        row.append(dice(prediction.mask(name), region) if region.any() else float("nan"))
    return row, seconds


def table(cases: Iterator[Case], weights: Path) -> str:
    """Formats one line per set: means over its cases."""
    rows: dict[str, list[tuple[list[float], float]]] = {}
    for name, volume, reference in cases:
        rows.setdefault(name, []).append(scores(volume, reference, weights))
    lines = [f"| set | cases | {' | '.join(COLUMNS)} | seconds |", "| --- " * (len(COLUMNS) + 3) + "|"]
    for name, results in rows.items():
        means = np.mean([r for r, _ in results], 0)
        cells = " | ".join("-" if np.isnan(v) else f"{v:.3f}" for v in means)
        lines.append(f"| {name} | {len(results)} | {cells} | {np.mean([s for _, s in results]):.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "weights", help="weights folder, or a file")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--held-out", action="store_true", help="only the heads that weights are chosen by")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load_network(options.weights)  # not part of the time of a case

    def cases() -> Iterator[Case]:
        if options.held_out:
            heads = [load_label_map(path) for path in find_label_maps(options.data / "anatomies")[-3:]]
            yield from simulated_cases(heads, "held-out heads", "no")
            return
        yield from real_cases(options.data / "real" / "single")
        heads = [load_label_map(path) for path in find_label_maps(options.data / "anatomies_validation")]
        yield from simulated_cases(heads, "other brains", "csf")

    print(table(cases(), options.weights))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Speed of the simulator, and differences between simulated and real scans.

    python -m benchmarks.simulator speed  --anatomies DIR [--device cpu|cuda] [--sides 48 96] [--repeats 5]
    python -m benchmarks.simulator signal --anatomies DIR [--real DIR] [--labelled IMAGE LABELS ...]
    python -m benchmarks.simulator burden --anatomies DIR [--heads 3] [--patches 14]

``speed``: scenes rendered and scans redrawn per second, medians. ``signal``: tissue contrasts and noise of real
scans beside the percentiles of simulated draws. ``burden``: size of simulated clusters beside
percentiles measured at 7 T, and clusters and volume of whole heads beside the ranges in Figure 3 of the challenge's
paper. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pvs_model.burden.morphology import Shape, shape_of
from pvs_model.config import SUBJECTS
from pvs_model.datasets.insertion_sites import core_of, robust
from pvs_model.datasets.label_maps import find_label_maps, load_head_model
from pvs_model.datasets.real_scans import load_real_scans
from pvs_model.datasets.simulated_cases import plain_scan, simulate_protocol
from pvs_model.inference.postprocess import MIN_COMPONENT_MM3
from pvs_model.simulation.acquisition import Scan, acquire
from pvs_model.simulation.head import INDEX, PVS_TISSUES, is_tissue, to_tissues
from pvs_model.simulation.parameters import draw_scan, draw_scene, draw_voxel
from pvs_model.simulation.protocols import protocol_named
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.visibility import label_visible
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume.components import label_components
from pvs_model.volume.geometry import to_ras
from pvs_model.volume.intensity import correct_bias, foreground
from pvs_model.volume.io import read

Made = TypeVar("Made")

DRAWS = 2000
PERCENTILES = (10, 50, 90)
#: Signal ratios to white matter that are compared, and the tissue of each.
RATIOS = {"GM/WM": "cortex", "CSF/WM": "ventricle", "putamen/WM": "putamen"}


# ---- speed ---------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """Measures scenes and scans per second for each side of a cubic patch of about 1 mm."""
    paths = find_label_maps(args.anatomies)[: args.heads]
    anatomies = [load_head_model(path, args.cache).to(args.device) for path in paths]
    print(f"device {args.device}, {torch.get_num_threads()} CPU thread(s), {args.repeats} repeats")
    print("| patch | scene rendered, s | scenes/s | scan, s | scans/s | its labels, s | share |")
    print("|---|---|---|---|---|---|---|")
    for side in args.sides:
        scenes, scans, labels = [], [], []
        for repeat in range(args.repeats + 1):
            voxel, plane = draw_voxel(repeat, 3)
            params = draw_scene(repeat, (side, side, side), voxel, plane)
            anatomy = anatomies[repeat % len(anatomies)]
            seconds, scene = _timed(partial(render, params, anatomy), args.device)
            scenes.append(seconds)
            # Without PVS a scan costs what it did before it was asked which of them are visible.
            bare = replace(scene, pvs_index=scene.pvs_index[:0], displaced=scene.displaced[:, :0])
            without, _ = _timed(partial(_redraw, bare, repeat), args.device)
            seconds, scan = _timed(partial(_redraw, scene, repeat), args.device)
            more, _ = _timed(partial(label_visible, scan.cnr, voxel, scene.pvs_fraction.float() / 255), args.device)
            scans.append(seconds + more)
            labels.append(seconds + more - without)
        a, b, c = (statistics.median(values[1:]) for values in (scenes, scans, labels))  # the first one warms up
        print(f"| {side}^3 | {a:.2f} | {1 / a:.2f} | {b:.3f} | {1 / b:.1f} | {c:.3f} | {c / b:.0%} |", flush=True)


def _redraw(scene: Scene, seed: int) -> Scan:
    return acquire(scene, draw_scan(seed))


def _timed(work: Callable[[], Made], device: str) -> tuple[float, Made]:
    """Runs a function. Returns its wall-clock time on a GPU or its CPU time, and its result."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    began = clock()
    made = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began, made


# ---- signal --------------------------------------------------------------------------------------------------------


def signal(args: argparse.Namespace) -> None:
    """Prints ratios to white matter and noise per sequence: real scans, then percentiles of draws."""
    rows: dict[str, dict[str, float]] = {}
    for scan in load_real_scans(args.real, args.anatomies, args.cache) if args.real else []:
        inside = foreground(scan.images[next(c for c in range(3) if scan.present[c])])
        for channel, name in enumerate(SEQUENCES):
            if scan.present[channel]:
                image = correct_bias(Volume(scan.images[channel], scan.affine), inside).data
                rows[f"{scan.name} {name}"] = measured(image, scan.tissues, scan.insertion_sites)
    for image_path, labels_path in args.labelled or []:
        volume, labels = (to_ras(read(Path(path)))[0] for path in (image_path, labels_path))
        tissues = to_tissues(np.rint(labels.data).astype(np.int32), labels_path)
        corrected = correct_bias(volume, foreground(volume.data)).data
        rows[f"{Path(image_path).name} T1w"] = measured(corrected, tissues, is_tissue(tissues, *PVS_TISSUES))
    columns = [*RATIOS, "noise/contrast"]
    print(f"| scan | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[c]:.3f}' for c in columns)} |")
    for share, label in ((0.4, "training"), (0.0, "tissue priors")):
        drawn = [draws(seed, share) for seed in range(args.draws)]
        for channel, name in enumerate(SEQUENCES):
            cells = []
            for column in columns:
                low, middle, high = np.percentile([d[channel][column] for d in drawn], PERCENTILES)
                cells.append(f"{low:.3f} / {middle:.3f} / {high:.3f}")
            print(f"| draws, {label}, {name} | {' | '.join(cells)} |")


def measured(
    image: npt.NDArray[np.float32], tissues: npt.NDArray[np.uint8], sites: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Computes medians over the cores of tissues, and the noise from differences of white matter voxels two apart."""
    white = is_tissue(tissues, "white_matter") & sites
    level = float(np.median(image[core_of(white, 2)]))
    out = {}
    for column, name in RATIOS.items():
        mask = is_tissue(tissues, name)
        core = core_of(mask, 1 if name == "cortex" else 2)  # cortex is too thin for more
        out[column] = float(np.median(image[core])) / level
    fluid = out["CSF/WM"] * level
    core = core_of(white, 2)
    both = core[2:] & core[:-2]
    step = (image[2:] - image[:-2])[both]
    out["noise/contrast"] = robust(step)[1] / np.sqrt(2) / abs(level - fluid)
    return out


def draws(seed: int, random_share: float) -> list[dict[str, float]]:
    """Computes the same values of one simulated draw per sequence, from the signals of pure tissue."""
    scan = draw_scan(seed, complete=True, random_share=random_share)
    table = np.array(scan.signals)
    out = []
    for channel in range(3):
        white = table[channel, INDEX["white_matter"]]
        ratio = {column: float((table[channel, INDEX[name]] / white) ** scan.gamma[channel])
                 for column, name in RATIOS.items()}  # fmt: skip
        out.append(ratio | {"noise/contrast": scan.noise[channel]})
    return out


# ---- burden --------------------------------------------------------------------------------------------------------


#: Measured in two segmentations at 7 T (voxels of 0.41 mm): percentiles 5, 25, 50, 75, 95 of clusters.
MEASURED_7T = {
    "diameter, mm": (0.58, 0.68, 0.76, 0.88, 1.07),
    "length, mm": (2.1, 3.3, 4.8, 7.1, 13.7),
    "volume, mm3": (0.7, 1.2, 2.2, 4.1, 9.5),
}
SEVEN_TESLA_MM = 0.41
PERCENTILES_7T = (5, 25, 50, 75, 95)
#: Grids whose whole heads are counted, and what the challenge's paper says of their sites (Figure 3).
SITES = {
    "edinburgh_philips_0.5": "Edinburgh: 3 to 4 mm3 per cluster, up to 1050 clusters, 500 to 4000 mm3",
    "edinburgh_prisma_0.9": "Edinburgh",
    "edinburgh_ge_1x1x2": "Edinburgh",
    "sg70": "Singapore: below 350 clusters, below 2000 mm3",
}


def burden(args: argparse.Namespace) -> None:
    """Prints sizes of labelled simulated clusters beside measured ones."""
    paths = find_label_maps(args.anatomies)
    values: dict[str, list[float]] = {name: [] for name in MEASURED_7T}
    for number in range(args.patches):
        voxel = (SEVEN_TESLA_MM,) * 3
        seed = args.seed + number
        scene = draw_scene(seed, (128, 128, 128), voxel, target="centrum", empty_share=0.0, subject="thin")
        head = load_head_model(paths[number % len(paths)], args.cache)
        scan = acquire(render(scene, head), plain_scan(seed, 3))
        for shape in clusters(label_visible(scan.cnr, voxel)[0].numpy(), voxel, whole=True):
            for name, value in zip(values, (shape.width_mm, shape.length_mm, shape.volume_mm3), strict=True):
                values[name].append(value)
    count = len(values["length, mm"])
    print(f"{count} clusters in {args.patches} patches of voxels of {SEVEN_TESLA_MM} mm; percentiles {PERCENTILES_7T}")
    print("\n| | measured | simulated | median, ratio |\n|---|---|---|---|")
    for name, real in MEASURED_7T.items():
        made = np.percentile(values[name], PERCENTILES_7T)
        text = [" / ".join(f"{v:.2f}" for v in row) for row in (real, made)]
        print(f"| {name} | {text[0]} | {text[1]} | {made[2] / real[2]:.2f} |", flush=True)
    print("\n| protocol | subject | clusters | volume, mm3 | mm3 per cluster | fluid, mm3 | the site |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for name, site in SITES.items():
        for subject in SUBJECTS:
            for number in range(args.heads):
                seed = args.seed + number
                head = load_head_model(paths[seed % len(paths)], args.cache)
                case = simulate_protocol(head, seed, protocol_named(name), subject)
                voxel_mm3 = float(abs(np.linalg.det(case.affine[:3, :3])))
                count = label_components(case.pvs.label)[0].max()
                volume, fluid = case.pvs.label.sum() * voxel_mm3, case.pvs.pvs_fraction.sum() * voxel_mm3
                print(f"| {name} | {subject} | {count} | {volume:.0f} | {volume / max(1, count):.1f} | {fluid:.0f} | "
                      f"{site} |", flush=True)  # fmt: skip


def clusters(label: npt.NDArray[np.bool_], voxel_mm: Sequence[float], whole: bool = False) -> list[Shape]:
    """Measures each 26-connected cluster of at least the minimum volume of the product.

    Args:
        label: (x, y, z).
        voxel_mm: Voxel spacing.
        whole: Whether to leave out clusters that touch the border of the array.
    """
    numbered, _ = label_components(label)
    shapes = []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        if whole and any(s.start == 0 or s.stop == n for s, n in zip(box, label.shape, strict=True)):
            continue
        shapes.append(shape_of(numbered[box] == number, np.diag([*voxel_mm, 1.0])))
    return [shape for shape in shapes if shape.volume_mm3 >= MIN_COMPONENT_MM3]


def main() -> None:
    """Runs one of the three experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("speed", "signal", "burden"))
    parser.add_argument("--anatomies", type=Path, required=True, help="folder of label maps with FreeSurfer ids")
    parser.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies and registrations")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patches", type=int, default=14, help="of the geometry at 0.41 mm")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=(48, 96))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real", type=Path, help="folder of skull-stripped scans, as for simulate --backgrounds")
    parser.add_argument("--labelled", nargs=2, action="append", metavar=("IMAGE", "LABELS"), help="a T1w, its labels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"speed": speed, "signal": signal, "burden": burden}[args.experiment](args)


if __name__ == "__main__":
    main()

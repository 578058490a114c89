"""The simulator alone: how fast it is, and how far its scans are from real ones, by numbers.

    python -m benchmarks.simulator speed  --anatomies DIR [--device cpu|cuda] [--sides 48 96] [--repeats 5]
    python -m benchmarks.simulator signal --anatomies DIR [--real DIR] [--labelled IMAGE LABELS ...]
    python -m benchmarks.simulator burden --anatomies DIR [--heads 3] [--voxel-mm 1 1 1]

``speed``: scenes rendered and scans redrawn per second, medians. ``signal``: tissue contrasts and noise of real
scans beside the percentiles of simulated draws. ``burden``: clusters and volume of simulated whole heads beside
the ranges in Figure 3 of the challenge's paper. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from pvs_model.synth.anatomy import (
    BASAL_GANGLIA,
    CENTRUM_SEMIOVALE,
    INDEX,
    OTHER_BRAIN,
    PVS_HOSTS,
    Anatomy,
    is_tissue,
    to_tissues,
)
from pvs_model.synth.case import whole_scene
from pvs_model.synth.engine import Scan, Scene, SceneParams, acquire, draw_scan, draw_scene, draw_voxel, render
from pvs_model.training.backgrounds import load_backgrounds
from pvs_model.training.data import label_maps, load_anatomy
from pvs_model.training.hosts import core_of, robust
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume.geometry import to_ras
from pvs_model.volume.intensity import correct_bias, foreground
from pvs_model.volume.io import read

Made = TypeVar("Made")

DRAWS = 2000
PERCENTILES = (10, 50, 90)
#: Signal ratios to white matter that are compared, and the tissue of each.
RATIOS = {"GM/WM": "cortex", "CSF/WM": "ventricle", "putamen/WM": "putamen"}
#: Figure 3 of the challenge's paper: site, clusters, volume in mm3.
FIGURE_3 = (
    ("Edinburgh", "many 500 to 1050", "500 to 4000"),
    ("Singapore", "below 350", "below 2000"),
    ("Shanghai", "below 350", "up to above 5000"),
)


# ---- speed ---------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """Scenes and scans per second at each side of a cubic patch of about 1 mm."""
    paths = label_maps(args.anatomies)[: args.heads]
    anatomies = [load_anatomy(path, args.cache).to(args.device) for path in paths]
    print(f"device {args.device}, {torch.get_num_threads()} CPU thread(s), {args.repeats} repeats")
    print("| patch | scene rendered, s | scenes/s | scan redrawn, s | scans/s |\n|---|---|---|---|---|")
    for side in args.sides:
        scenes, scans = [], []
        for repeat in range(args.repeats + 1):
            voxel, plane = draw_voxel(repeat, 3)
            params = draw_scene(repeat, (side, side, side), voxel, plane)
            anatomy = anatomies[repeat % len(anatomies)]
            seconds, scene = _timed(partial(render, params, anatomy), args.device)
            scenes.append(seconds)
            seconds, _ = _timed(partial(_redraw, scene, repeat), args.device)
            scans.append(seconds)
        a, b = (statistics.median(values[1:]) for values in (scenes, scans))  # the first one warms up
        print(f"| {side}^3 | {a:.2f} | {1 / a:.2f} | {b:.3f} | {1 / b:.1f} |", flush=True)


def _redraw(scene: Scene, seed: int) -> Scan:
    return acquire(scene, draw_scan(seed))


def _timed(work: Callable[[], Made], device: str) -> tuple[float, Made]:
    """Seconds and result of some work: by the clock on a GPU, its queue emptied; on the CPU those it was given."""
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
    """Ratios to white matter and noise per sequence: real scans, then percentiles of draws."""
    rows: dict[str, dict[str, float]] = {}
    for scan in load_backgrounds(args.real, args.anatomies, args.cache) if args.real else []:
        inside = foreground(scan.images[next(c for c in range(3) if scan.present[c])])
        for channel, name in enumerate(SEQUENCES):
            if scan.present[channel]:
                image = correct_bias(Volume(scan.images[channel], scan.affine), inside).data
                rows[f"{scan.name} {name}"] = measured(image, scan.tissues, scan.hosts)
    for image_path, labels_path in args.labelled or []:
        volume, labels = (to_ras(read(Path(path)))[0] for path in (image_path, labels_path))
        tissues = to_tissues(np.rint(labels.data).astype(np.int32), labels_path)
        corrected = correct_bias(volume, foreground(volume.data)).data
        rows[f"{Path(image_path).name} T1w"] = measured(corrected, tissues, is_tissue(tissues, *PVS_HOSTS))
    columns = [*RATIOS, "noise/contrast"]
    print(f"| scan | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for name, values in rows.items():
        print(f"| {name} | {' | '.join(f'{values[c]:.3f}' for c in columns)} |")
    for share, words in ((0.4, "training"), (0.0, "tissue priors")):
        drawn = [draws(seed, share) for seed in range(args.draws)]
        for channel, name in enumerate(SEQUENCES):
            cells = []
            for column in columns:
                low, middle, high = np.percentile([d[channel][column] for d in drawn], PERCENTILES)
                cells.append(f"{low:.3f} / {middle:.3f} / {high:.3f}")
            print(f"| draws, {words}, {name} | {' | '.join(cells)} |")


def measured(
    image: npt.NDArray[np.float32], tissues: npt.NDArray[np.uint8], hosts: npt.NDArray[np.bool_]
) -> dict[str, float]:
    """Medians over the cores of tissues; noise from differences of voxels two apart, within white matter hosts."""
    white = is_tissue(tissues, "white_matter") & hosts
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
    """The same numbers of one simulated draw, per sequence: those of pure tissue, as drawn."""
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


def burden(args: argparse.Namespace) -> None:
    """Clusters, volume, width and length of PVS in simulated heads, and what the densities alone would bring."""
    paths = label_maps(args.anatomies)
    x, y, z = args.voxel_mm
    print("| head, seed | tubes expected | clusters | volume, mm3 | width of a cluster, mm | length, mm |")
    print("|---|---|---|---|---|---|")
    found, mm3, tubes, volumes = [], [], [], []
    for seed in range(args.seed, args.seed + args.heads):
        anatomy = load_anatomy(paths[seed % len(paths)], args.cache)
        params = whole_scene(anatomy, seed, (x, y, z))
        sizes, lengths = clusters(render(params, anatomy).label.numpy(), (x, y, z))
        widths = 2 * np.sqrt(sizes / (np.pi * lengths))
        volumes.append(host_volumes(anatomy))
        tubes.append(expected(volumes[-1], params))
        found.append(len(sizes))
        mm3.append(float(sizes.sum()))
        print(
            f"| {anatomy.name}, {seed} | {tubes[-1]:.0f} | {len(sizes)} | {sizes.sum():.0f} | {_percentiles(widths)} | "
            f"{_percentiles(lengths)} |",
            flush=True,
        )
    scenes = [draw_scene(k, (8, 8, 8), (x, y, z), target="whole", empty_share=0.0) for k in range(args.draws)]
    count = np.array([expected(volumes[k % len(volumes)], scene) for k, scene in enumerate(scenes)])
    clusters_of_one, mm3_of_one = sum(found) / sum(tubes), sum(mm3) / sum(tubes)
    print(f"\nclusters per tube {clusters_of_one:.2f}, mm3 per tube {mm3_of_one:.1f} (all heads above together)")
    print(f"{args.draws} draws, 10 / 50 / 90 %: tubes {_percentiles(count)}; at that rate clusters "
          f"{_percentiles(count * clusters_of_one)}, volume {_percentiles(count * mm3_of_one)} mm3\n")  # fmt: skip
    print("| Figure 3 of the paper | clusters | volume, mm3 |\n|---|---|---|")
    for row in FIGURE_3:
        print(f"| {' | '.join(row)} |")


def clusters(label: npt.NDArray[np.bool_], voxel_mm: Sequence[float]) -> tuple[npt.NDArray[np.float64], ...]:
    """Volume (mm3) and length (mm, along the longest principal axis, a voxel's own size included) per 26-cluster."""
    numbered, _ = ndimage.label(label, np.ones((3, 3, 3)))
    sizes, lengths = [], []
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        points = np.argwhere(numbered[box] == number) * np.array(voxel_mm)
        centred = points - points.mean(0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        lengths.append(float(np.ptp(centred @ axis)) + float(np.abs(axis) @ np.array(voxel_mm)))
        sizes.append(len(points) * float(np.prod(voxel_mm)))
    return np.array(sizes), np.array(lengths)


def host_volumes(anatomy: Anatomy) -> tuple[float, float, float]:
    """cm3 of host tissue in basal ganglia, centrum semiovale and the rest."""
    tissues, regions = anatomy.tissues.numpy()[::2, ::2, ::2], anatomy.regions.numpy()[::2, ::2, ::2]
    counts = np.bincount(regions[is_tissue(tissues, *PVS_HOSTS)], minlength=OTHER_BRAIN + 1) / 1000
    return float(counts[BASAL_GANGLIA]), float(counts[CENTRUM_SEMIOVALE]), float(counts[OTHER_BRAIN])


def expected(volumes: tuple[float, float, float], params: SceneParams) -> float:
    """Tubes that the densities of a scene mean in host tissue of some cm3 (basal ganglia, centrum, rest)."""
    densities = (params.pvs_basal, params.pvs_centrum, params.pvs_other)
    return float(np.prod(params.scale)) * sum(v * d for v, d in zip(volumes, densities, strict=True))


def _percentiles(values: npt.NDArray[np.float64]) -> str:
    return " / ".join(f"{v:.3g}" for v in np.percentile(values, PERCENTILES)) if len(values) else "-"


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "signal", "burden"))
    parser.add_argument("--anatomies", type=Path, required=True, help="folder of label maps with FreeSurfer ids")
    parser.add_argument("--cache", type=Path, help="folder that keeps prepared anatomies and registrations")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=(48, 96))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real", type=Path, help="folder of skull-stripped scans, as for simulate --backgrounds")
    parser.add_argument("--labelled", nargs=2, action="append", metavar=("IMAGE", "LABELS"), help="a T1w, its labels")
    parser.add_argument("--voxel-mm", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar=("X", "Y", "Z"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"speed": speed, "signal": signal, "burden": burden}[args.what](args)


if __name__ == "__main__":
    main()

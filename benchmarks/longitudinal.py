"""Repeatability and known change of PVS counts and volumes between simulated visits of the same subjects.

``python -m benchmarks.longitudinal WORK --anatomies MAPS``. Each subject has three visits: the first; a repeat with the
same PVS; and one without a fifth of its PVS. Contrast, noise and the position in the scanner differ. Visits
are segmented and compared as ``pvs-model longitudinal`` does. Voxels of all visits lie at the same places of the head,
so real repeats vary more. Existing masks in WORK are not used again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from benchmarks.burden import SEED, densities, with_densities
from benchmarks.cases import WEIGHTS, format_score, write_json
from pvs_model.burden.change import Change
from pvs_model.commands.longitudinal import changes_between
from pvs_model.config import InferenceConfig, is_thick
from pvs_model.datasets.simulated_cases import CaseSpec, plain_scan, save
from pvs_model.datasets.simulated_sets import HeadModels
from pvs_model.evaluation.agreement_statistics import intraclass
from pvs_model.layouts import choose
from pvs_model.pipeline import Segmenter
from pvs_model.simulation.parameters import Triple
from pvs_model.simulation.protocols import on_grid
from pvs_model.simulation.render import Scene, render
from pvs_model.simulation.subject import acquire_case, whole_scene
from pvs_model.types import Affine
from pvs_model.volume.components import label_components

#: Share of the PVS that the third visit lacks.
GONE_SHARE = 0.2
#: Visits by name: whether PVS are removed.
VISITS = {"a": False, "b": False, "c": True}


@dataclass(frozen=True)
class Subject:
    """Simulated subject: numbers of removed and of all PVS, and its changes to the repeat and to the third visit."""

    name: str
    removed: int
    total: int
    repeat: Change
    change: Change


def without_pvs(scene: Scene, share: float, seed: int) -> tuple[Scene, int, int]:
    """Removes a share of the PVS of a scene, chosen at random. Returns the scene, their number, and that of all."""
    fraction = scene.pvs_fraction.numpy()
    labels, sizes = label_components(fraction)
    count = len(sizes) - 1
    gone = 1 + np.random.default_rng(seed).permutation(count)[: round(share * count)]
    removed = torch.from_numpy(np.isin(labels, gone))
    kept = ~removed.flatten()[scene.pvs_index.long()]
    changed = replace(
        scene,
        pvs_fraction=torch.where(removed, 0, scene.pvs_fraction).to(torch.uint8),
        diameter=torch.where(removed, 0, scene.diameter).to(torch.uint8),
        pvs_index=scene.pvs_index[kept],
        displaced=scene.displaced[:, kept],
    )
    return changed, len(gone), count


def pose(seed: int) -> Affine:
    """Draws a position in the scanner: up to 8 degrees about each axis and 10 mm along it."""
    rng = np.random.default_rng(seed)
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-8, 8, 3), degrees=True).as_matrix()
    transform[:3, 3] = rng.uniform(-10, 10, 3)
    return transform


def write_subject(folder: Path, heads: HeadModels, number: int, subjects: int, voxel_mm: Triple) -> tuple[int, int]:
    """Simulates the visits of a subject. Returns the numbers of PVS that the third lacks, and of all."""
    head = heads.find(heads.name(number))
    params = whole_scene(head, SEED + 700 + number, voxel_mm)
    params = with_densities(params, *densities(number + 1, subjects + 1))
    scene = render(params, head)
    changed, removed, total = without_pvs(scene, GONE_SHARE, number)
    for k, (visit, lacks) in enumerate(VISITS.items()):
        scan = plain_scan(SEED + 10 * number + k, 2 if is_thick(max(voxel_mm)) else 3)
        case = acquire_case(changed if lacks else scene, params, scan)
        case.affine[:] = pose(10 * number + k) @ case.affine
        save(folder, CaseSpec(visit, head.name, on_grid(voxel_mm).name, SEED + number), case)
    return removed, total


def measure_subject(folder: Path, segmenter: Segmenter, removed: int, total: int) -> Subject:
    """Segments and compares the visits of a subject."""
    cases = sorted(choose(folder).find_cases(folder), key=lambda case: case.name)
    results = {case.name: segmenter.segment(case) for case in cases}
    repeat, change = (
        changes_between({name: results[name] for name in pair})[1][0] for pair in (("a", "b"), ("a", "c"))
    )
    return Subject(folder.name, removed, total, repeat, change)


def table(subjects: Sequence[Subject]) -> str:
    """Formats repeatability and change by region and quantity."""
    lines = [
        "| region | quantity | first visit | ICC(2,1) of the repeat | repeat, % | change, % |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    measured = {str(row["region"]) for row in subjects[0].repeat.rows()}
    for region in (name for name in ("WM", "BG", "all") if name in measured):
        rows = [
            tuple(next(r for r in change.rows() if r["region"] == region) for change in (s.repeat, s.change))
            for s in subjects
        ]
        for quantity, (key, unit) in {"count": ("count_{}", ""), "volume": ("volume_{}_mm3", " mm3"),
                                      "fluid": ("fluid_{}_mm3", " mm3")}.items():  # fmt: skip
            first, repeat = (np.array([float(r[0][key.format(k)] or 0) for r in rows]) for k in ("from", "to"))
            later = np.array([float(r[1][key.format("to")] or 0) for r in rows])
            icc = next(i for i in intraclass(np.array([first, repeat]).T) if i.form == "ICC(2,1)")
            relative = [100 * (values.sum() / first.sum() - 1) if first.sum() else None for values in (repeat, later)]
            span = f"{first.min():.0f} to {first.max():.0f}{unit}"
            cells = " | ".join("-" if v is None else f"{v:+.1f}" for v in relative)
            lines.append(f"| {region} | {quantity} | {span} | {format_score(icc.value)} | {cells} |")
    return "\n".join(lines)


def statuses(subjects: Sequence[Subject]) -> str:
    """Formats how many PVS of the first visit are stable or gone in the others."""
    lines = []
    for name, changes in (("repeat", [s.repeat for s in subjects]), ("change", [s.change for s in subjects])):
        rows = [next(r for r in change.rows() if r["region"] == "all") for change in changes]
        counts = {key: sum(int(r[key] or 0) for r in rows) for key in ("count_from", "stable_from", "gone", "new")}
        share = 100 * counts["gone"] / max(1, counts["count_from"])
        lines.append(f"{name}: {counts}, {share:.1f} % gone")
    truth = 100 * sum(s.removed for s in subjects) / max(1, sum(s.total for s in subjects))
    return "\n".join([*lines, f"truth of the change: {truth:.1f} % of the simulated PVS removed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.longitudinal",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", type=Path, help="folder for the visits")
    parser.add_argument("--anatomies", type=Path, help="folder of label maps (default: phantoms)")
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--voxel", type=float, nargs=3, default=(1.0, 1.0, 1.0), metavar="MM")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--no-anatomy", dest="anatomy", action="store_false", help="whole image only: faster")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    x, y, z = options.voxel
    heads = HeadModels(options.anatomies, options.work / ".cache")
    segmenter = Segmenter(InferenceConfig(options.weights, options.device, anatomy=options.anatomy))
    subjects = []
    for number in tqdm(range(options.subjects)):
        folder = options.work / f"sub{number:02d}"
        removed, total = write_subject(folder, heads, number, options.subjects, (x, y, z))
        subjects.append(measure_subject(folder, segmenter, removed, total))
        if len(subjects) > 1:
            print(f"{len(subjects)} subjects\n\n{table(subjects)}\n\n{statuses(subjects)}\n", flush=True)
    write_json(options.json, {s.name: {"repeat": s.repeat.rows(), "change": s.change.rows()} for s in subjects})
    return 0


if __name__ == "__main__":
    sys.exit(main())

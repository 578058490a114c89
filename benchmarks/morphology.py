"""Errors of length, width, direction and volume of painted tubes of known shape: ``python -m benchmarks.morphology``.

With ``--speed``: instead the time of ``measure`` for 1000 PVS in a mask of 256 x 256 x 256 voxels.

Each tube is drawn by a seed (length from tip to tip 2 to 20 mm, width 0.8 to 3 mm with round ends, any direction, any
place between voxels; straight, or an arc of radius 6 to 25 mm), painted at 1/8 mm with the simulator's painter and
averaged onto the voxels; its label is the voxels that it fills by 40 %, or 20 % where slices are thick. Prints Markdown
tables: errors of what ``pvs_model.burden`` measures, then of the alternatives that it was chosen from.

Tubes with several clusters or none are counted, not measured. The
formulas were chosen with seeds below 1000; the tables of docs/burden.md are of the default seeds.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from skimage.morphology import skeletonize

from pvs_model.burden.measure import measure
from pvs_model.burden.morphology import Shape, centre_line, shape_of, tube_width
from pvs_model.simulation.render import labelling_threshold
from pvs_model.simulation.tubes import Tubes, voxelise
from pvs_model.types import Triple

Floats = npt.NDArray[np.float64]

FINE_MM = 0.125
STEP_MM = 0.05
VOXELS: dict[str, Triple] = {"0.5 mm": (0.5, 0.5, 0.5), "1 mm": (1.0, 1.0, 1.0), "1 x 1 x 3 mm": (1.0, 1.0, 3.0)}
FORMS = ("straight", "curved")
FIRST_SEED = 100_000
THIN_MM = 1.5


@dataclass(frozen=True)
class Tube:
    """A painted tube of known shape.

    Attributes:
        label: bool (x, y, z), RAS+ axes.
        length_mm, width_mm, volume_mm3: Dimensions of the painted tube.
        direction: Unit vector from end to end.
    """

    label: npt.NDArray[np.bool_]
    length_mm: float
    width_mm: float
    volume_mm3: float
    direction: Floats


@dataclass(frozen=True)
class MeasuredTube:
    """A tube with one cluster, the cluster, and its shape."""

    tube: Tube
    cluster: npt.NDArray[np.bool_]
    affine: Floats
    shape: Shape


def draw(seed: int, voxel_mm: Triple, form: str) -> Tube:
    """Draws a tube, the same for every voxel size but for its position relative to the voxels."""
    rng = np.random.default_rng(seed)
    width = rng.uniform(0.8, 3.0)
    length = rng.uniform(max(2.0, 1.25 * width), 20.0)
    ahead = rng.normal(size=3)
    ahead /= np.linalg.norm(ahead)
    aside = np.cross(ahead, rng.normal(size=3))
    aside /= np.linalg.norm(aside)
    line = length - width  # painted with balls: half a width is added at each end
    along = np.linspace(-line / 2, line / 2, max(2, round(line / STEP_MM)))[:, None]
    points = along * ahead
    if form == "curved":
        radius = max(rng.uniform(6, 25), line / 2.6)  # 150 degrees at most
        points = radius * (np.sin(along / radius) * ahead + (1 - np.cos(along / radius)) * aside)
    voxel = np.array(voxel_mm)
    low, high = points.min(0) - width / 2, points.max(0) + width / 2
    shape = np.ceil((high - low) / voxel).astype(int) + 3
    points += voxel * (1 + rng.uniform(size=3)) - low
    (x, y, z), (a, b, c) = shape, np.round(voxel / FINE_MM).astype(int)
    radii = torch.full((1, len(points)), width / 2)
    fine, _, _ = voxelise(
        Tubes(torch.tensor(points[None], dtype=torch.float32), radii, torch.ones_like(radii)),
        (int(x * a), int(y * b), int(z * c)),
        torch.full((3,), FINE_MM),
    )
    filled = fine.view(x, a, y, b, z, c).mean((1, 3, 5)).numpy()
    return Tube(
        filled >= labelling_threshold(voxel_mm), length, width, math.pi / 4 * width**2 * (length - width / 3), ahead
    )


def measured(tube: Tube, voxel_mm: Triple) -> MeasuredTube | int:
    """Measures the cluster of a tube; returns the number of clusters where it is not 1."""
    labels, count = ndimage.label(tube.label, np.ones((3, 3, 3)))
    if count != 1:
        return int(count)
    cluster = labels[ndimage.find_objects(labels)[0]] == 1
    affine = np.diag([*voxel_mm, 1.0])
    return MeasuredTube(tube, cluster, affine, shape_of(cluster, affine))


# ---- errors of one measured tube, None where there is no value -------------------

Error = Callable[[MeasuredTube], float | None]


def degrees(direction: Sequence[float] | Floats | None, tube: Tube) -> float | None:
    """Angle between two axes; None without a direction."""
    if direction is None:
        return None
    return math.degrees(math.acos(min(1.0, abs(float(np.dot(direction, tube.direction))))))


def positions(m: MeasuredTube) -> Floats:
    """Voxel centres in mm, (N, 3)."""
    return np.argwhere(m.cluster) @ m.affine[:3, :3].T


def main_axis(m: MeasuredTube, voxels: float) -> Floats:
    """Main axis of the voxel centres, with a multiple of the moments of a voxel added."""
    spread = np.cov(positions(m).T, bias=True) if m.cluster.sum() > 1 else np.zeros((3, 3))
    return np.linalg.eigh(spread + voxels * m.affine[:3, :3] ** 2 / 12)[1][:, 2]


def skeleton_steps(m: MeasuredTube) -> float:
    """Length of the skeleton's longest path, from voxel to voxel."""
    return float(np.linalg.norm(np.diff(centre_line(m.cluster, m.affine[:3, :3]), axis=0), axis=1).sum())


def extent(m: MeasuredTube) -> float:
    """Extent of the voxels along the main axis."""
    axis = main_axis(m, 1.0)
    return float(np.ptp(positions(m) @ axis) + 1 / np.abs(axis / np.diag(m.affine)[:3]).max())


def moments(m: MeasuredTube) -> float:
    """Length of the box with the same variance along the main axis."""
    axis = main_axis(m, 1.0)
    return math.sqrt(12 * float((positions(m) @ axis).var() + ((m.affine[:3, :3] @ axis) ** 2).sum() / 12))


def through_distances(m: MeasuredTube) -> float:
    """Twice the mean distance to the background along the skeleton."""
    spacing = np.diag(m.affine)[:3]
    distance = ndimage.distance_transform_edt(np.pad(m.cluster, 1), sampling=spacing)
    at = np.round(centre_line(m.cluster, m.affine[:3, :3]) / spacing).astype(int) + 1
    return 2 * float(distance[tuple(at.T)].mean())


def ends(m: MeasuredTube) -> Floats:
    """Unit vector from one end of the skeleton to the other; 0 for a single point."""
    line = centre_line(m.cluster, m.affine[:3, :3])
    return (line[-1] - line[0]) / max(float(np.linalg.norm(line[-1] - line[0])), 1e-9)


CHOSEN: dict[str, Error] = {
    "length, mm": lambda m: m.shape.length_mm - m.tube.length_mm,
    "width, mm": lambda m: m.shape.width_mm - m.tube.width_mm,
    "width where thin, mm": lambda m: m.shape.width_mm - m.tube.width_mm if m.tube.width_mm < THIN_MM else None,
    "direction, degrees": lambda m: degrees(m.shape.direction, m.tube),
    "volume, %": lambda m: 100 * (m.shape.volume_mm3 / m.tube.volume_mm3 - 1),
    "elongation, %": lambda m: 100 * (m.shape.elongation / (m.tube.length_mm / m.tube.width_mm) - 1),
}
ALTERNATIVES: dict[str, Error] = {
    "length: skeleton alone": lambda m: skeleton_steps(m) - m.tube.length_mm,
    "length: extent along the main axis": lambda m: extent(m) - m.tube.length_mm,
    "length: second moments": lambda m: moments(m) - m.tube.length_mm,
    "width: cylinder of the volume": lambda m: (
        math.sqrt(4 * m.shape.volume_mm3 / math.pi / m.shape.length_mm) - m.tube.width_mm
    ),
    "width: square rod of the volume": lambda m: math.sqrt(m.shape.volume_mm3 / m.shape.length_mm) - m.tube.width_mm,
    "width: distance to the background": lambda m: through_distances(m) - m.tube.width_mm,
    "width: true length known": lambda m: tube_width(m.shape.volume_mm3, m.tube.length_mm) - m.tube.width_mm,
    "direction: as chosen, none withheld": lambda m: degrees(main_axis(m, -1.0), m.tube),
    "direction: voxel middles": lambda m: degrees(main_axis(m, 0.0), m.tube),
    "direction: voxels as boxes": lambda m: degrees(main_axis(m, 1.0), m.tube),
    "direction: ends of the skeleton": lambda m: degrees(ends(m), m.tube),
}


def table(errors: dict[str, Error], tubes: dict[tuple[str, str], list[MeasuredTube]]) -> None:
    """Prints a line per measure and form, a column per voxel size: mean error (bias); median (quartiles)."""
    print(f"| error of | tubes | {' | '.join(VOXELS)} |")
    print(f"| --- | --- |{' ---: |' * len(VOXELS)}")
    for name, error in errors.items():
        for form in FORMS:
            cells = []
            for voxels in VOXELS:
                values = [value for m in tubes[voxels, form] if (value := error(m)) is not None]
                low, middle, high = np.percentile(values, (25, 50, 75))
                cells.append(f"{np.mean(values):.2f}; {middle:.2f} ({low:.2f} to {high:.2f})")
            print(f"| {name} | {form} | {' | '.join(cells)} |")


def speed(count: int = 1000, side: int = 256) -> None:
    """Measures the CPU time for a mask of straight lines, 1 to 15 voxels long and 1 to 3 thick, and four regions."""
    rng = np.random.default_rng(0)
    mask = np.zeros((side, side, side), bool)
    for start, step in zip(rng.uniform(20, side - 20, (count, 3)), rng.normal(size=(count, 3)), strict=True):
        along = np.arange(0, rng.uniform(1, 15), 0.3)[:, None] * step / np.linalg.norm(step)
        thick = np.stack(np.meshgrid(*[range(rng.integers(1, 4))] * 3), -1).reshape(-1, 1, 3)
        mask[tuple(np.round(start + along + thick).astype(int).reshape(-1, 3).T)] = True
    quarter = np.indices(mask.shape, np.uint8)[2] // (side // 4)
    regions = {name: quarter == k for k, name in enumerate(("hippocampus", "midbrain", "BG", "CSO"))}
    sides = np.ones(mask.shape, np.uint8)
    sides[side // 2 :] = 2
    measure(mask[:32], {}, np.eye(4))  # imports
    start = time.process_time()
    burden = measure(mask, regions, np.eye(4), ~mask | mask, sides)
    print(f"{len(burden.pvs)} PVS in {side}^3 voxels: {time.process_time() - start:.2f} s")


def main(argv: Sequence[str] | None = None) -> None:
    """Draws, paints, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tubes", type=int, default=300, help="tubes per voxel size and form (default 300)")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help=f"seed of the first tube (default {FIRST_SEED})")
    parser.add_argument("--speed", action="store_true", help="measure the time instead")
    args = parser.parse_args(argv)
    if args.speed:
        speed()
        return
    torch.set_num_threads(1)
    measured_tubes: dict[tuple[str, str], list[MeasuredTube]] = {}
    print("| voxels | tubes | drawn | no cluster | several | no direction | empty skeleton |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for voxels, voxel_mm in VOXELS.items():
        for form in FORMS:
            tubes = [draw(args.seed + k, voxel_mm, form) for k in range(args.tubes)]
            all_measured = [measured(tube, voxel_mm) for tube in tubes]
            good = measured_tubes[voxels, form] = [m for m in all_measured if isinstance(m, MeasuredTube)]
            lost = sum(m == 0 for m in all_measured)
            broken = args.tubes - len(good) - lost
            undirected = sum(m.shape.direction is None for m in good)
            empty = sum(not skeletonize(np.pad(m.cluster, 1)).any() for m in good)
            print(f"| {voxels} | {form} | {args.tubes} | {lost} | {broken} | {undirected} | {empty} |", flush=True)
    print()
    table(CHOSEN, measured_tubes)
    print()
    table(ALTERNATIVES, measured_tubes)


if __name__ == "__main__":
    main()

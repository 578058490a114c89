"""What a seed chooses: plain records of every number of a scene and of a scan, and the priors they are drawn from.

A record can be kept as JSON and replayed: equal records give equal arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pvs_model.synth.contrast import draw_signals

Triple = tuple[float, float, float]

#: Array axes of a scene -> axes of the anatomy, the last being perpendicular to the slices.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@dataclass(frozen=True)
class SceneParams:
    """Geometry of one patch or head; lengths in mm, densities per cm3 of the tissue named."""

    seed: int
    target: str  # region to centre on: "centrum", "basal", "brain", "head"; or "whole" for everything
    shape: tuple[int, int, int]
    voxel_mm: Triple
    plane: str
    flip: bool
    rotation_deg: Triple
    scale: Triple
    elastic_mm: float
    pvs_centrum: float
    pvs_basal: float
    pvs_other: float
    pvs_diameter_mm: float  # median; in the basal ganglia ``pvs_basal_diameter_mm``
    pvs_basal_diameter_mm: float
    pvs_diameter_spread: float  # standard deviation of the logarithm, as all spreads
    pvs_length_mm: float
    pvs_length_spread: float
    pvs_strength: float
    pvs_strength_spread: float
    pvs_wander: float
    pvs_variation: float  # of width and signal along a tube, share
    pvs_gaps: float  # share of the tubes that are interrupted
    pvs_bundle: float  # tubes per bundle in the basal ganglia
    pvs_subinsular: float  # density beside the putamen over that of white matter
    lesion_burden: float
    lesion_dots: float
    lacunes: float
    cavities: float
    islands: float
    sheets: float  # share of the depths of sulci that is filled
    sheet_depth_mm: float  # from white matter
    voids: float
    bridges: float
    folia: float  # how wide the clefts of the cerebellum are, 0 = closed


@dataclass(frozen=True)
class ScanParams:
    """One acquisition of a scene: one entry per sequence (T1w, T2w, FLAIR) unless said otherwise; voxels, not mm."""

    seed: int
    signals: tuple[tuple[float, ...], ...]
    present: tuple[bool, bool, bool]
    stripped: bool
    texture: Triple  # slow variation within tissue, share of the contrast
    fine_texture: Triple  # variation from voxel to voxel, which hides PVS as noise does
    psf: tuple[Triple, Triple, Triple]
    acquired: tuple[Triple, Triple, Triple]  # acquired voxel size relative to the grid per axis, 1 = the same
    shift: tuple[Triple, Triple, Triple]
    bias: Triple
    noise: Triple  # share of the contrast between white matter and CSF
    grain: Triple
    ring_keep: Triple  # 1 = none
    gamma: Triple
    mean_jitter: Triple
    scale_jitter: Triple
    mask_threshold: float  # of the smoothed share of brain and fluid: 0.5 follows the border, less is loose
    mask_smooth_mm: float


class _Draw:
    """A short hand over a seeded generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def log(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, sd: float) -> float:
        return sd * float(torch.randn((), generator=self.generator))

    def chance(self, p: float) -> bool:
        return self.uniform(0, 1) < p

    def pick(self, **weights: float) -> str:
        total, roll = sum(weights.values()), self.uniform(0, 1)
        for name, weight in weights.items():
            roll -= weight / total
            if roll < 0:
                return name
        return next(reversed(weights))


def draw_voxel(seed: int, dimensions: int) -> tuple[Triple, str]:
    """Voxel size (last axis perpendicular to the slices) and plane, over the trained range."""
    d = _Draw(seed)
    if dimensions == 2:
        inside = d.pick(fine=0.5, middle=0.3, coarse=0.2)
        xy = {"fine": d.uniform(0.34, 0.6), "middle": d.uniform(0.6, 0.8), "coarse": d.uniform(0.8, 1.1)}[inside]
        z = d.uniform(2.5, 4.5) if d.chance(0.35) else d.uniform(4.5, 8.0)
        return (xy, xy, z), d.pick(axial=0.85, coronal=0.08, sagittal=0.07)
    kind = d.pick(millimetre=0.4, fine=0.13, half=0.17, thicker=0.3)
    if kind == "thicker":
        xy = d.uniform(0.6, 1.1)
        return (xy, xy, d.uniform(max(1.2, xy), 2.45)), d.pick(axial=0.8, coronal=0.1, sagittal=0.1)
    iso = {"millimetre": d.uniform(0.88, 1.15), "fine": d.uniform(0.62, 0.9), "half": d.uniform(0.45, 0.62)}[kind]
    return (iso, iso * d.uniform(0.95, 1.08), iso * d.uniform(0.95, 1.25)), "axial"


def draw_scene(
    seed: int,
    shape: tuple[int, int, int],
    voxel_mm: Triple,
    plane: str = "axial",
    target: str | None = None,
    empty_share: float = 0.1,
    subject: str | None = None,
) -> SceneParams:
    """Choose the geometry of one scene.

    Widths, lengths and numbers follow what was measured in two segmentations at 7 T (0.41 mm voxels; compared by
    ``benchmarks.simulator burden``): many PVS of 0.6 to 1.1 mm; and a tail of subjects with few wide ones, most of
    them in the basal ganglia.

    Args:
        seed: of every draw.
        shape: voxels of the scene.
        voxel_mm: their size.
        plane: of the slices.
        target: region that the patch is centred on; "whole" for a head; drawn when None.
        empty_share: share of the scenes without PVS.
        subject: one of ``config.SUBJECTS``; drawn when None.
    """
    d = _Draw(seed)
    whole = target == "whole"
    empty = d.chance(empty_share)
    thin_share = 0.7 if max(voxel_mm) < 2.5 else 0.5  # thick slices show few thin ones
    subject = subject or d.pick(thin=thin_share, wide=1 - thin_share)
    thin = subject == "thin"
    crowded = 1.0 if whole or d.chance(0.5) else 2.5  # half of the patches show more of what is to be learnt

    def density(share_empty: float, low: float, high: float) -> float:
        return 0.0 if empty or d.chance(share_empty) else d.log(low, high * crowded)

    diameter = d.uniform(0.66, 0.95) if thin else d.uniform(0.8, 1.25)

    none = (0.0, 0.0, 0.0)
    turn = 4.0 if whole else 12.0
    return SceneParams(
        seed=seed,
        target=target or d.pick(centrum=0.36, basal=0.26, brain=0.33, head=0.05),
        shape=shape,
        voxel_mm=voxel_mm,
        plane=plane,
        flip=d.chance(0.5),
        rotation_deg=none if whole else (d.normal(turn), d.normal(turn), d.normal(turn)),
        scale=(d.uniform(0.9, 1.12), d.uniform(0.9, 1.12), d.uniform(0.9, 1.12)),
        elastic_mm=d.uniform(0.0, 2.2),
        pvs_centrum=density(0.05, 0.2, 2.2) if thin else density(0.1, 0.05, 0.7),
        pvs_basal=density(0.05, 0.3, 3.0) if thin else density(0.05, 0.3, 2.5),
        pvs_other=density(0.4, 0.1, 1.5),
        pvs_diameter_mm=diameter,
        pvs_basal_diameter_mm=diameter * d.uniform(1.0, 1.3) if thin else d.uniform(1.0, 2.2),
        pvs_diameter_spread=d.uniform(0.15, 0.3),
        pvs_length_mm=d.log(4.8, 9.8),
        pvs_length_spread=d.uniform(0.45, 0.65),
        pvs_strength=d.uniform(0.35, 1.0),
        pvs_strength_spread=d.uniform(0.1, 0.35),
        pvs_wander=d.uniform(0.05, 0.4),
        pvs_variation=d.uniform(0.0, 0.35),
        pvs_gaps=d.uniform(0.0, 0.25),
        pvs_bundle=d.uniform(1.0, 6.0),
        pvs_subinsular=d.uniform(0.5, 4.0),
        lesion_burden=0.0 if d.chance(0.35) else d.uniform(0.05, 1.0),
        lesion_dots=0.0 if d.chance(0.5) else d.log(0.03, 1.0),
        lacunes=0.0 if d.chance(0.6) else d.log(0.003, 0.05),
        cavities=0.0 if d.chance(0.85) else d.log(0.001, 0.01 * crowded),
        islands=0.0 if d.chance(0.1) else d.log(0.3, 8.0),
        sheets=0.0 if d.chance(0.15) else d.uniform(0.05, 0.8),
        sheet_depth_mm=d.uniform(1.5, 3.2),
        voids=0.0 if d.chance(0.4) else d.log(0.05, 1.0),
        bridges=0.0 if d.chance(0.5) else d.log(0.3, 5.0),
        folia=0.0 if d.chance(0.2) else d.uniform(0.05, 0.45),
    )


def with_clear_pvs(scene: SceneParams) -> SceneParams:
    """Makes the PVS of a scene many, wide and bright: with these a network begins to learn."""
    return replace(
        scene,
        pvs_centrum=max(scene.pvs_centrum, 1.0),
        pvs_basal=max(scene.pvs_basal, 1.0),
        pvs_diameter_mm=max(scene.pvs_diameter_mm, 1.3),
        pvs_basal_diameter_mm=max(scene.pvs_basal_diameter_mm, 1.3),
        pvs_strength=max(scene.pvs_strength, 0.8),
    )


def draw_scan(
    seed: int, dimensions: int = 3, complete: bool = False, acquired: tuple[Triple, Triple, Triple] | None = None,
    random_share: float = 0.4,
) -> ScanParams:  # fmt: skip
    """Choose contrast and artefacts of one acquisition.

    Args:
        seed: of every draw.
        dimensions: of the network that is to see the scan; in 2D nothing moves or blurs across slices.
        complete: keep all three sequences.
        acquired: voxel size of each sequence relative to the grid; drawn when None.
        random_share: share of draws whose contrasts are not those of the tissue priors.
    """
    d = _Draw(seed)
    kept = "all" if complete else d.pick(all=0.4, t1t2=0.1, t2flair=0.08, t1flair=0.06, t2=0.16, t1=0.16, flair=0.04)
    present = {
        "all": (True, True, True), "t1t2": (True, True, False), "t2flair": (False, True, True),
        "t1flair": (True, False, True), "t2": (False, True, False), "t1": (True, False, False),
        "flair": (False, False, True),
    }[kept]  # fmt: skip
    axes = 3 if dimensions == 3 else 2  # nothing is blurred or shifted across thick slices

    def psf() -> Triple:
        base = d.uniform(0.2, 0.65)  # sigma; FWHM 0.5 to 1.5 voxels
        sharp = [base * d.uniform(0.8, 1.2) for _ in range(axes)] + [0.0] * (3 - axes)
        return (sharp[0], sharp[1], sharp[2])

    def move(sd: float) -> Triple:
        far = [max(-1.0, min(1.0, d.normal(sd))) for _ in range(axes)] + [0.0] * (3 - axes)
        return (far[0], far[1], far[2])

    reference = 1 if present[1] and d.chance(0.75) else 0 if present[0] else 1 if present[1] else 2
    soft = d.uniform(0.0, 0.5)
    shifts = [move(soft) if c != reference else (0.0, 0.0, 0.0) for c in range(3)]
    across = 2 if d.chance(0.8) else int(d.uniform(0, 3))  # the axis of the slices

    def coarser(c: int) -> Triple:
        """Other sequences often had thicker slices or larger voxels than the grid they were resampled onto."""
        inside = d.uniform(1.1, 2.3) if c != reference and d.chance(0.25) else 1.0
        if dimensions == 2:
            return (inside, inside, 1.0)
        thick = d.chance(0.12 if c == reference else 0.4)
        ratio = [inside, inside, inside]
        if thick:
            ratio[across] = d.uniform(1.3, 3.2 if c == reference else 4.0)
        return (ratio[0], ratio[1], ratio[2])

    drawn = (coarser(0), coarser(1), coarser(2))
    noise = d.log(0.012, 0.10)
    return ScanParams(
        seed=seed,
        signals=tuple(tuple(row) for row in draw_signals(d.generator, random_share).tolist()),
        present=present,
        stripped=d.chance(0.7),
        texture=(d.uniform(0, 0.1), d.uniform(0, 0.1), d.uniform(0, 0.1)),
        fine_texture=(d.uniform(0, 0.04), d.uniform(0, 0.04), d.uniform(0, 0.04)),
        psf=(psf(), psf(), psf()),
        acquired=acquired or drawn,
        shift=(shifts[0], shifts[1], shifts[2]),
        bias=(d.uniform(0, 0.3), d.uniform(0, 0.3), d.uniform(0, 0.3)),
        noise=(noise * d.log(0.6, 1.6), noise * d.log(0.6, 1.6), noise * d.log(0.6, 1.6)),
        grain=tuple(0.0 if d.chance(0.6) else d.uniform(0.3, 0.8) for _ in range(3)),  # type: ignore[arg-type]
        ring_keep=tuple(1.0 if d.chance(0.8) else d.uniform(0.6, 0.9) for _ in range(3)),  # type: ignore[arg-type]
        gamma=(math.exp(d.normal(0.12)), math.exp(d.normal(0.12)), math.exp(d.normal(0.12))),
        mean_jitter=(d.normal(0.15), d.normal(0.15), d.normal(0.15)),
        scale_jitter=(math.exp(d.normal(0.15)), math.exp(d.normal(0.15)), math.exp(d.normal(0.15))),
        mask_threshold=d.uniform(0.15, 0.75),
        mask_smooth_mm=d.uniform(0.8, 2.0),
    )

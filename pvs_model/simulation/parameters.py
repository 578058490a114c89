"""Draws the parameters of scenes and scans from their priors, as plain records.

Records can be saved as JSON and replayed: equal records give equal arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from pvs_model.config import is_thick
from pvs_model.simulation.tissue_contrast import draw_signals
from pvs_model.types import Triple


@dataclass(frozen=True)
class SceneParams:
    """Geometry of one patch or head: lengths in mm, densities per cm3 of the tissue.

    Attributes:
        seed: Seed of the scene.
        target: Region of the centre: "centrum", "basal", "brain" or "head"; or "whole" for a whole head.
        shape: Voxels of the scene.
        voxel_mm: Voxel size, the last axis through plane.
        plane: Slice orientation, one of ``PLANES``.
        flip: Whether left and right are exchanged.
        rotation_deg, scale, elastic_mm: Rotation about each axis, scale along each axis, elastic deformation.
        pvs_centrum, pvs_basal, pvs_other: Densities of PVS in centrum semiovale, basal ganglia and remaining brain.
        pvs_diameter_mm, pvs_basal_diameter_mm: Median diameters; the latter in the basal ganglia.
        pvs_diameter_spread: Standard deviation of the logarithm, as for all spreads.
        pvs_length_mm, pvs_length_spread: Median length and its spread.
        pvs_relative_contrast, pvs_relative_contrast_spread: Signal relative to the contrast between tissue and CSF.
        pvs_tortuosity: Random walk of the direction per mm.
        pvs_variation: Relative variation of width and signal along a tube.
        pvs_gaps: Fraction of interrupted tubes.
        pvs_bundle: Tubes per bundle in the basal ganglia.
        pvs_subinsular: Density beside the putamen relative to that in white matter.
        lesion_burden: Extent of confluent white-matter lesions, 0 to 1.
        punctate_lesions, lacunes, stroke_cavities, csf_pockets: Densities.
        sulcal_csf: Fraction of the depths of sulci that contain CSF.
        sulcal_depth_mm: Distance of these depths from white matter.
        flow_voids, grey_matter_bridges: Densities.
        cerebellar_fissures: Width of cerebellar fissures, 0 = closed.
    """

    seed: int
    target: str
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
    pvs_diameter_mm: float
    pvs_basal_diameter_mm: float
    pvs_diameter_spread: float
    pvs_length_mm: float
    pvs_length_spread: float
    pvs_relative_contrast: float
    pvs_relative_contrast_spread: float
    pvs_tortuosity: float
    pvs_variation: float
    pvs_gaps: float
    pvs_bundle: float
    pvs_subinsular: float
    lesion_burden: float
    punctate_lesions: float
    lacunes: float
    stroke_cavities: float
    csf_pockets: float
    sulcal_csf: float
    sulcal_depth_mm: float
    flow_voids: float
    grey_matter_bridges: float
    cerebellar_fissures: float


@dataclass(frozen=True)
class ScanParams:
    """One acquisition of a scene; a triple has one entry per sequence (T1w, T2w, FLAIR), lengths are in voxels.

    Attributes:
        seed: Seed of the scan.
        signals: (3, tissues + structures).
        present: Whether each sequence is present.
        skull_stripped: Whether everything outside the brain is removed.
        texture, fine_texture: Slow variation within tissue, and variation between voxels, relative to the contrast.
        psf: Sigma of the point spread along each axis.
        acquired: Acquired voxel size relative to the grid along each axis.
        shift: Misregistration along each axis.
        bias: Amplitude of the bias field.
        noise: Standard deviation relative to the contrast between white matter and CSF.
        noise_correlation: Sigma of the correlation of the noise, 0 = white.
        kspace_fraction: Fraction of k-space that is acquired, 1 = no Gibbs ringing.
        gamma: Exponent of the intensities.
        mean_jitter, scale_jitter: Errors of the normalisation.
        mask_threshold: Threshold on the smoothed brain fraction; 0.5 follows the border, less gives a loose mask.
        mask_smooth_mm: Smoothing of the brain mask.
    """

    seed: int
    signals: tuple[tuple[float, ...], ...]
    present: tuple[bool, bool, bool]
    skull_stripped: bool
    texture: Triple
    fine_texture: Triple
    psf: tuple[Triple, Triple, Triple]
    acquired: tuple[Triple, Triple, Triple]
    shift: tuple[Triple, Triple, Triple]
    bias: Triple
    noise: Triple
    noise_correlation: Triple
    kspace_fraction: Triple
    gamma: Triple
    mean_jitter: Triple
    scale_jitter: Triple
    mask_threshold: float
    mask_smooth_mm: float


class _Draw:
    """Draws scalars from a seeded generator."""

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
    """Draws a voxel size (last axis through plane) and a slice orientation from the range of training."""
    d = _Draw(seed)
    if dimensions == 2:
        in_plane = d.pick(fine=0.5, middle=0.3, coarse=0.2)
        xy = {"fine": d.uniform(0.34, 0.6), "middle": d.uniform(0.6, 0.8), "coarse": d.uniform(0.8, 1.1)}[in_plane]
        z = d.uniform(2.5, 4.5) if d.chance(0.35) else d.uniform(4.5, 8.0)
        return (xy, xy, z), d.pick(axial=0.85, coronal=0.08, sagittal=0.07)
    resolution = d.pick(millimetre=0.4, fine=0.13, half=0.17, thicker=0.3)
    if resolution == "thicker":
        xy = d.uniform(0.6, 1.1)
        return (xy, xy, d.uniform(max(1.2, xy), 2.45)), d.pick(axial=0.8, coronal=0.1, sagittal=0.1)
    iso = {"millimetre": d.uniform(0.88, 1.15), "fine": d.uniform(0.62, 0.9), "half": d.uniform(0.45, 0.62)}[resolution]
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
    """Draws the geometry of one scene.

    Diameters, lengths and numbers follow two segmentations at 7 T (0.41 mm voxels; ``benchmarks.simulator burden``
    compares them): many PVS of 0.6 to 1.1 mm, and subjects with few wide ones, mostly in the basal ganglia.

    Args:
        seed: Seed of every draw.
        shape: Voxels of the scene.
        voxel_mm: Voxel size.
        plane: Slice orientation.
        target: Region of the centre, or "whole" for a head; drawn if None.
        empty_share: Fraction of scenes without PVS.
        subject: One of ``config.SUBJECTS``; drawn if None.
    """
    d = _Draw(seed)
    whole = target == "whole"
    empty = d.chance(empty_share)
    thin_share = 0.5 if is_thick(max(voxel_mm)) else 0.7  # thick slices show few thin ones
    subject = subject or d.pick(thin=thin_share, wide=1 - thin_share)
    thin = subject == "thin"
    crowded = 1.0 if whole or d.chance(0.5) else 2.5  # half of the patches contain more PVS

    def density(share_empty: float, low: float, high: float) -> float:
        return 0.0 if empty or d.chance(share_empty) else d.log(low, high * crowded)

    diameter = d.uniform(0.66, 0.95) if thin else d.uniform(0.8, 1.25)

    none = (0.0, 0.0, 0.0)
    sd_deg = 12.0
    return SceneParams(
        seed=seed,
        target=target or d.pick(centrum=0.36, basal=0.26, brain=0.33, head=0.05),
        shape=shape,
        voxel_mm=voxel_mm,
        plane=plane,
        flip=d.chance(0.5),
        rotation_deg=none if whole else (d.normal(sd_deg), d.normal(sd_deg), d.normal(sd_deg)),
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
        pvs_relative_contrast=d.uniform(0.35, 1.0),
        pvs_relative_contrast_spread=d.uniform(0.1, 0.35),
        pvs_tortuosity=d.uniform(0.05, 0.4),
        pvs_variation=d.uniform(0.0, 0.35),
        pvs_gaps=d.uniform(0.0, 0.25),
        pvs_bundle=d.uniform(1.0, 6.0),
        pvs_subinsular=d.uniform(0.5, 4.0),
        lesion_burden=0.0 if d.chance(0.35) else d.uniform(0.05, 1.0),
        punctate_lesions=0.0 if d.chance(0.5) else d.log(0.03, 1.0),
        lacunes=0.0 if d.chance(0.6) else d.log(0.003, 0.05),
        stroke_cavities=0.0 if d.chance(0.85) else d.log(0.001, 0.01 * crowded),
        csf_pockets=0.0 if d.chance(0.1) else d.log(0.3, 8.0),
        sulcal_csf=0.0 if d.chance(0.15) else d.uniform(0.05, 0.8),
        sulcal_depth_mm=d.uniform(1.5, 3.2),
        flow_voids=0.0 if d.chance(0.4) else d.log(0.05, 1.0),
        grey_matter_bridges=0.0 if d.chance(0.5) else d.log(0.3, 5.0),
        cerebellar_fissures=0.0 if d.chance(0.2) else d.uniform(0.05, 0.45),
    )


def with_clear_pvs(scene: SceneParams) -> SceneParams:
    """Makes the PVS of a scene numerous, wide and bright, for the first steps of training."""
    return replace(
        scene,
        pvs_centrum=max(scene.pvs_centrum, 1.0),
        pvs_basal=max(scene.pvs_basal, 1.0),
        pvs_diameter_mm=max(scene.pvs_diameter_mm, 1.3),
        pvs_basal_diameter_mm=max(scene.pvs_basal_diameter_mm, 1.3),
        pvs_relative_contrast=max(scene.pvs_relative_contrast, 0.8),
    )


def without_mimics(scene: SceneParams) -> SceneParams:
    """Removes mimics and deformations from a scene, for PVS in a real scan."""
    return replace(
        scene, flip=False, scale=(1.0, 1.0, 1.0), elastic_mm=0.0, lesion_burden=0.0, punctate_lesions=0.0, lacunes=0.0,
        stroke_cavities=0.0, csf_pockets=0.0, sulcal_csf=0.0, flow_voids=0.0, grey_matter_bridges=0.0,
        cerebellar_fissures=0.0,
    )  # fmt: skip


def draw_scan(
    seed: int, dimensions: int = 3, complete: bool = False, acquired: tuple[Triple, Triple, Triple] | None = None,
    random_share: float = 0.4,
) -> ScanParams:  # fmt: skip
    """Draws contrast and artefacts of one acquisition.

    Args:
        seed: Seed of every draw.
        dimensions: Spatial dimensions of the network; in 2D nothing is shifted or blurred through plane.
        complete: Whether all three sequences are present.
        acquired: Voxel size of each sequence relative to the grid; drawn if None.
        random_share: Fraction of draws with contrasts other than those of the tissue priors.
    """
    d = _Draw(seed)
    kept = "all" if complete else d.pick(all=0.4, t1t2=0.1, t2flair=0.08, t1flair=0.06, t2=0.16, t1=0.16, flair=0.04)
    present = {
        "all": (True, True, True), "t1t2": (True, True, False), "t2flair": (False, True, True),
        "t1flair": (True, False, True), "t2": (False, True, False), "t1": (True, False, False),
        "flair": (False, False, True),
    }[kept]  # fmt: skip
    axes = 3 if dimensions == 3 else 2

    def psf() -> Triple:
        base = d.uniform(0.2, 0.65)  # sigma; FWHM 0.5 to 1.5 voxels
        sigma = [base * d.uniform(0.8, 1.2) for _ in range(axes)] + [0.0] * (3 - axes)
        return (sigma[0], sigma[1], sigma[2])

    def shift(sd: float) -> Triple:
        voxels = [max(-1.0, min(1.0, d.normal(sd))) for _ in range(axes)] + [0.0] * (3 - axes)
        return (voxels[0], voxels[1], voxels[2])

    reference = 1 if present[1] and d.chance(0.75) else 0 if present[0] else 1 if present[1] else 2
    sd_voxels = d.uniform(0.0, 0.5)
    shifts = [shift(sd_voxels) if c != reference else (0.0, 0.0, 0.0) for c in range(3)]
    through_plane = 2 if d.chance(0.8) else int(d.uniform(0, 3))

    def coarser(c: int) -> Triple:
        """Draws the acquired voxel size: sequences often have thicker slices or larger voxels than the grid."""
        in_plane = d.uniform(1.1, 2.3) if c != reference and d.chance(0.25) else 1.0
        if dimensions == 2:
            return (in_plane, in_plane, 1.0)
        thick = d.chance(0.12 if c == reference else 0.4)
        ratio = [in_plane, in_plane, in_plane]
        if thick:
            ratio[through_plane] = d.uniform(1.3, 3.2 if c == reference else 4.0)
        return (ratio[0], ratio[1], ratio[2])

    drawn = (coarser(0), coarser(1), coarser(2))
    noise = d.log(0.012, 0.10)
    return ScanParams(
        seed=seed,
        signals=tuple(tuple(row) for row in draw_signals(d.generator, random_share).tolist()),
        present=present,
        skull_stripped=d.chance(0.7),
        texture=(d.uniform(0, 0.2), d.uniform(0, 0.12), d.uniform(0, 0.3)),  # as in seven real scans
        fine_texture=(d.uniform(0, 0.04), d.uniform(0, 0.04), d.uniform(0, 0.04)),
        psf=(psf(), psf(), psf()),
        acquired=acquired or drawn,
        shift=(shifts[0], shifts[1], shifts[2]),
        bias=(d.uniform(0, 0.3), d.uniform(0, 0.3), d.uniform(0, 0.3)),
        noise=(noise * d.log(0.6, 1.6), noise * d.log(0.6, 1.6), noise * d.log(0.6, 1.6)),
        noise_correlation=tuple(0.0 if d.chance(0.6) else d.uniform(0.3, 0.8) for _ in range(3)),  # type: ignore[arg-type]
        kspace_fraction=tuple(1.0 if d.chance(0.8) else d.uniform(0.6, 0.9) for _ in range(3)),  # type: ignore[arg-type]
        gamma=(math.exp(d.normal(0.12)), math.exp(d.normal(0.12)), math.exp(d.normal(0.12))),
        mean_jitter=(d.normal(0.15), d.normal(0.15), d.normal(0.15)),
        scale_jitter=(math.exp(d.normal(0.15)), math.exp(d.normal(0.15)), math.exp(d.normal(0.15))),
        mask_threshold=d.uniform(0.15, 0.75),
        mask_smooth_mm=d.uniform(0.8, 2.0),
    )

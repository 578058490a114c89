"""PVS grown into a real scan: its own noise, contrast and anatomy, tubes whose place is known.

A voxel that the tubes fill by the share s becomes I + s * strength * (CSF - tissue around it), as partial volume
makes it. What is real PVS in the scan stays where it is and is not labelled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pvs_model.synth import artefacts
from pvs_model.synth.anatomy import BASAL_GANGLIA, CENTRUM_SEMIOVALE, FIELD_MM, INDEX, pvs_field
from pvs_model.synth.case import PVSMaps
from pvs_model.synth.engine import LEAST_NOISE, fine_factors
from pvs_model.synth.overlays import overlays
from pvs_model.synth.params import SceneParams, Triple, draw_scene
from pvs_model.synth.visibility import label_visible
from pvs_model.types import Affine

#: Radius of the ball of host tissue that a tube's contrast is taken against.
LOCAL_MM = 2.0
STRIDE = 4  # of the grid of directions, in fine voxels
THICK_MM = 2.5  # a scanner's point spread does not reach across slices so thick


@dataclass(frozen=True)
class Background:
    """A real scan and where PVS may run in it. Arrays (x, y, z) lie in RAS+ order.

    Attributes:
        name: of the scan.
        images: float32 (3, x, y, z), raw intensities; zeros where a sequence is missing.
        present: which sequences there are.
        tissues: uint8, index into ``TISSUES``.
        regions: uint8, ``NO_REGION`` and so on.
        hosts: bool, the tissue that tubes may run through.
        fluid: intensity of CSF in each sequence.
        affine: (4, 4), voxel to RAS+ mm.
    """

    name: str
    images: npt.NDArray[np.float32]
    present: tuple[bool, bool, bool]
    tissues: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.uint8]
    hosts: npt.NDArray[np.bool_]
    fluid: Triple
    affine: Affine

    @property
    def voxel_mm(self) -> Triple:
        """Spacing of the grid."""
        x, y, z = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return (x, y, z)


@dataclass(frozen=True)
class MixParams:
    """What a seed chooses for one mix.

    Attributes:
        scene: densities and shapes of PVS; its look-alikes are none, the scan has its own.
        contrast: range of the signal of a tube, as a share of the contrast from tissue to CSF.
        psf: point spread of each sequence, sigma in voxels along every axis but that of thick slices.
    """

    scene: SceneParams
    contrast: tuple[float, float]
    psf: Triple


@dataclass(frozen=True)
class MixedCase:
    """A real scan with PVS mixed in: fields as those of ``SimulatedCase``, and what it was made from."""

    images: npt.NDArray[np.float32]
    pvs: PVSMaps
    basal_ganglia: npt.NDArray[np.uint8]
    centrum_semiovale: npt.NDArray[np.uint8]
    affine: Affine
    present: tuple[bool, bool, bool]
    mix: MixParams

    @property
    def truth(self) -> npt.NDArray[np.uint8]:
        """The label, uint8 (x, y, z)."""
        return self.pvs.label


def draw_mix(background: Background, seed: int, contrast: tuple[float, float] = (0.2, 0.7),
             subject: str | None = None) -> MixParams:  # fmt: skip
    """Choose densities and shapes from the priors of simulated heads, strengths within ``contrast``."""
    x, y, z = background.hosts.shape
    drawn = draw_scene(seed, (x, y, z), background.voxel_mm, target="whole", empty_share=0.0, subject=subject)
    low, high = contrast
    rng = np.random.default_rng(seed)
    scene = replace(
        drawn, flip=False, scale=(1.0, 1.0, 1.0), elastic_mm=0.0, pvs_strength=float(rng.uniform(low, high)),
        lesion_burden=0.0, lesion_dots=0.0, lacunes=0.0, cavities=0.0, islands=0.0, sheets=0.0, folia=0.0, voids=0.0,
        bridges=0.0,
    )  # fmt: skip
    t1w, t2w, flair = (float(s) for s in rng.uniform(0.25, 0.5, 3))
    return MixParams(scene, contrast, (t1w, t2w, flair))


def grow(background: Background, params: MixParams) -> tuple[npt.NDArray[np.float32], ...]:
    """Share of each voxel that PVS fill, the same times their strength (0 to 1), and their diameter in mm.

    All are float32 (x, y, z).
    """
    coverage, signal, diameter = np.zeros((3, *background.hosts.shape), np.float32)
    boxes = ndimage.find_objects(background.hosts.astype(np.uint8))
    if not boxes:
        return coverage, signal, diameter
    box = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in boxes[0])
    factor = fine_factors(background.voxel_mm)
    h = torch.tensor([v / f for v, f in zip(background.voxel_mm, factor, strict=True)])
    # Only hosts keep their tissue: to the painter all else is ground that no tube may enter.
    tissues = np.where(background.hosts, background.tissues, INDEX["other"]).astype(np.uint8)[box]
    tissue, region = _finer(tissues, factor), _finer(background.regions[box], factor)
    field = _field(background.tissues[box], background.regions[box], background.voxel_mm, tissue.shape, h)
    generator = torch.Generator().manual_seed(params.scene.seed)
    painted = overlays(params.scene, tissue, region, field[:3], field[3], h, STRIDE, generator)

    window = (factor[0], factor[1], factor[2])
    coverage[box], signal[box] = (
        F.avg_pool3d(painted[name][None, None], window)[0, 0].numpy() for name in ("pvs", "pvs_signal")
    )
    diameter[box] = F.max_pool3d(painted["pvs_diameter"][None, None], window)[0, 0].numpy()
    low, high = params.contrast
    return coverage, np.clip(signal, low * coverage, high * coverage), diameter


def _finer(labels: npt.NDArray[np.uint8], factor: list[int]) -> Tensor:
    fine = torch.from_numpy(labels.copy())
    for axis, times in enumerate(factor):
        fine = fine.repeat_interleave(times, axis)
    return fine


def _field(tissues: npt.NDArray[np.uint8], regions: npt.NDArray[np.uint8], voxel_mm: Triple, fine: tuple[int, ...],
           h: Tensor) -> Tensor:  # fmt: skip
    """Directions of PVS, then mm to the ventricles: (4, ...) at every ``STRIDE``-th fine voxel.

    They are reckoned on a grid of 1 mm, as those of label maps are.
    """
    size = [max(2 * int(FIELD_MM), round(n * v)) for n, v in zip(tissues.shape, voxel_mm, strict=True)]
    index = [((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    at_1mm = np.ix_(*index)
    field = torch.from_numpy(pvs_field(tissues[at_1mm], regions[at_1mm]))
    for axis, (n, step) in enumerate(zip(fine, h.tolist(), strict=True)):
        place = ((torch.arange(0, n, STRIDE) + 0.5) * step / FIELD_MM).long()
        field = field.index_select(axis + 1, place.clamp(max=field.shape[axis + 1] - 1))
    return field


def local_tissue(image: npt.NDArray[np.float32], hosts: npt.NDArray[np.bool_], voxel_mm: Triple
                 ) -> npt.NDArray[np.float32]:  # fmt: skip
    """Mean intensity of the host tissue around each voxel, so that mixing leaves the noise as it is."""
    sigma = [LOCAL_MM / 2 / v for v in voxel_mm]
    weight = ndimage.gaussian_filter(hosts.astype(np.float32), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(hosts, image, 0).astype(np.float32), sigma, mode="nearest")
    return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), image).astype(np.float32)


def noise_of(image: npt.NDArray[np.float32], hosts: npt.NDArray[np.bool_]) -> float:
    """Noise of a scan within host tissue, in its units: robust deviation of differences of voxels two apart.

    Along the axis where it is smallest: across thick slices anatomy differs, too. Whatever else varies from voxel to
    voxel counts as noise, since it hides PVS as well.
    """
    found = []
    for axis in range(3):
        one, other = ((slice(None),) * axis + (part,) for part in (slice(2, None), slice(None, -2)))
        steps = (image[one] - image[other])[hosts[one] & hosts[other]]
        if len(steps):
            found.append(float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2)))
    return min(found, default=0.0)


def mix(background: Background, seed: int, contrast: tuple[float, float] = (0.2, 0.7),
        subject: str | None = None) -> MixedCase:  # fmt: skip
    """Grow PVS into a real scan: draw and mix in one call."""
    return mix_as(background, draw_mix(background, seed, contrast, subject))


def mix_as(background: Background, params: MixParams) -> MixedCase:
    """Grow PVS into a real scan, as a record says; equal records give equal arrays."""
    coverage, signal, diameter = grow(background, params)
    voxel = background.voxel_mm
    images = background.images.copy()
    cnr = np.zeros(coverage.shape, np.float32)
    for channel, there in enumerate(background.present):
        if not there:
            continue
        image = background.images[channel]
        x, y, z = (0.0 if v >= THICK_MM else params.psf[channel] for v in voxel)
        share = artefacts.blur(torch.from_numpy(signal)[None], (x, y, z))[0].numpy()
        contrast = np.float32(background.fluid[channel]) - local_tissue(image, background.hosts, voxel)
        images[channel] = np.where(share > 0, image + share * contrast, image)
        least = LEAST_NOISE * np.abs(contrast)
        noise = np.maximum(np.float32(noise_of(image, background.hosts)), least)
        cnr = np.maximum(cnr, np.where(share > 0, share * np.abs(contrast) / np.maximum(noise, 1e-6), 0))
    label, ignore = label_visible(torch.from_numpy(cnr), voxel, torch.from_numpy(coverage))
    return MixedCase(
        images=images,
        pvs=PVSMaps(label.numpy().astype(np.uint8), ignore.numpy().astype(np.uint8), coverage, cnr, diameter),
        basal_ganglia=(background.regions == BASAL_GANGLIA).astype(np.uint8),
        centrum_semiovale=(background.regions == CENTRUM_SEMIOVALE).astype(np.uint8),
        affine=background.affine,
        present=background.present,
        mix=params,
    )

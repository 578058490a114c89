"""Inserts PVS into a real scan, which keeps its noise, contrast and anatomy.

A voxel with the PVS fraction s and the relative contrast k becomes I + s * k * (CSF - surrounding tissue), as partial
volume gives it. Real PVS of the scan stay and are not labelled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pvs_model.config import is_thick
from pvs_model.simulation import artefacts
from pvs_model.simulation.acquisition import MIN_NOISE
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, FIELD_MM, INDEX, pvs_directions
from pvs_model.simulation.parameters import SceneParams, draw_scene, without_mimics
from pvs_model.simulation.render import STRIDE, oversampling
from pvs_model.simulation.structures import draw_structures
from pvs_model.simulation.subject import PVSMaps
from pvs_model.simulation.visibility import label_visible
from pvs_model.types import Affine, Triple, spacing_of

#: Radius of the tissue around a voxel that the contrast of a tube refers to.
LOCAL_MM = 2.0


@dataclass(frozen=True)
class RealScan:
    """A real scan and its insertion sites. Arrays (x, y, z) are in RAS+ order.

    Attributes:
        name: Name of the scan.
        images: float32 (3, x, y, z), raw intensities; zeros for a missing sequence.
        present: Whether each sequence is present.
        tissues: uint8, index into ``TISSUES``.
        regions: uint8, ``NO_REGION`` to ``OTHER_BRAIN``.
        insertion_sites: bool, voxels that can contain PVS.
        csf_intensity: Intensity of CSF in each sequence.
        affine: (4, 4), voxel to RAS+ mm.
    """

    name: str
    images: npt.NDArray[np.float32]
    present: tuple[bool, bool, bool]
    tissues: npt.NDArray[np.uint8]
    regions: npt.NDArray[np.uint8]
    insertion_sites: npt.NDArray[np.bool_]
    csf_intensity: Triple
    affine: Affine

    @property
    def voxel_mm(self) -> Triple:
        """Voxel spacing."""
        return spacing_of(self.affine)


@dataclass(frozen=True)
class InsertionParams:
    """Parameters of one insertion.

    Attributes:
        scene: Densities and shapes of PVS, without mimics: the scan has its own.
        contrast: Range of the signal of PVS relative to the contrast between tissue and CSF.
        psf: Point spread of each sequence, sigma in voxels; not applied across thick slices.
    """

    scene: SceneParams
    contrast: tuple[float, float]
    psf: Triple


@dataclass(frozen=True)
class InsertedCase:
    """A real scan with inserted PVS: fields as in ``SimulatedCase``, and the parameters of the insertion."""

    images: npt.NDArray[np.float32]
    pvs: PVSMaps
    basal_ganglia: npt.NDArray[np.uint8]
    centrum_semiovale: npt.NDArray[np.uint8]
    affine: Affine
    present: tuple[bool, bool, bool]
    params: InsertionParams

    @property
    def reference(self) -> npt.NDArray[np.uint8]:
        """Reference label, uint8 (x, y, z)."""
        return self.pvs.label


def insert_pvs(
    scan: RealScan, seed: int, contrast: tuple[float, float] = (0.2, 0.7), subject: str | None = None
) -> InsertedCase:
    """Draws PVS and inserts them into a real scan; arguments as for ``draw_insertion``."""
    return insert_with(scan, draw_insertion(scan, seed, contrast, subject))


def draw_insertion(
    scan: RealScan, seed: int, contrast: tuple[float, float] = (0.2, 0.7), subject: str | None = None
) -> InsertionParams:
    """Draws the parameters of an insertion from the priors of simulated heads.

    Args:
        scan: Scan to insert into.
        seed: Seed of every draw.
        contrast: Range of the relative contrast of PVS.
        subject: One of ``config.SUBJECTS``; drawn if None.
    """
    x, y, z = scan.insertion_sites.shape
    drawn = draw_scene(seed, (x, y, z), scan.voxel_mm, target="whole", empty_share=0.0, subject=subject)
    rng = np.random.default_rng(seed)
    scene = replace(without_mimics(drawn), pvs_relative_contrast=float(rng.uniform(*contrast)))
    t1w, t2w, flair = (float(s) for s in rng.uniform(0.25, 0.5, 3))
    return InsertionParams(scene, contrast, (t1w, t2w, flair))


def insert_with(scan: RealScan, params: InsertionParams) -> InsertedCase:
    """Inserts PVS with given parameters; equal parameters give equal arrays."""
    pvs_fraction, signal, diameter = grow_pvs(scan, params)
    images = scan.images.copy()
    cnr = np.zeros(pvs_fraction.shape, np.float32)
    for channel, present in enumerate(scan.present):
        if not present:
            continue
        image = scan.images[channel]
        x, y, z = (0.0 if is_thick(v) else params.psf[channel] for v in scan.voxel_mm)
        share = artefacts.blur(torch.from_numpy(signal)[None], (x, y, z))[0].numpy()
        contrast = np.float32(scan.csf_intensity[channel]) - local_mean(image, scan.insertion_sites, scan.voxel_mm)
        images[channel] = np.where(share > 0, image + share * contrast, image)
        noise = np.float32(estimate_noise(image, scan.insertion_sites))
        noise = np.maximum(noise, MIN_NOISE * np.abs(contrast))
        cnr = np.maximum(cnr, np.where(share > 0, share * np.abs(contrast) / np.maximum(noise, 1e-6), 0))
    label, ignore = label_visible(torch.from_numpy(cnr), scan.voxel_mm, torch.from_numpy(pvs_fraction))
    return InsertedCase(
        images=images,
        pvs=PVSMaps(label.numpy().astype(np.uint8), ignore.numpy().astype(np.uint8), pvs_fraction, cnr, diameter),
        basal_ganglia=(scan.regions == BASAL_GANGLIA).astype(np.uint8),
        centrum_semiovale=(scan.regions == CENTRUM_SEMIOVALE).astype(np.uint8),
        affine=scan.affine,
        present=scan.present,
        params=params,
    )


def grow_pvs(scan: RealScan, params: InsertionParams) -> tuple[npt.NDArray[np.float32], ...]:
    """Grows PVS within the insertion sites.

    Returns:
        Three float32 maps (x, y, z): PVS fraction, the same times the relative contrast, and diameter in mm.
    """
    sites = scan.insertion_sites
    pvs_fraction, signal, diameter = np.zeros((3, *sites.shape), np.float32)
    boxes = ndimage.find_objects(sites.astype(np.uint8))
    if not boxes:
        return pvs_fraction, signal, diameter
    box = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in boxes[0])
    factor = oversampling(scan.voxel_mm)
    h = torch.tensor([v / f for v, f in zip(scan.voxel_mm, factor, strict=True)])
    # Outside the insertion sites, the tissue becomes one that no tube enters.
    tissues = np.where(sites, scan.tissues, INDEX["other"]).astype(np.uint8)[box]
    tissue, region = _repeat(tissues, factor), _repeat(scan.regions[box], factor)
    field = _field(scan.tissues[box], scan.regions[box], scan.voxel_mm, tissue.shape, h)
    generator = torch.Generator().manual_seed(params.scene.seed)
    structures = draw_structures(params.scene, tissue, region, field[:3], field[3], h, STRIDE, generator)

    window = (factor[0], factor[1], factor[2])
    pvs_fraction[box], signal[box] = (
        F.avg_pool3d(structures[name][None, None], window)[0, 0].numpy() for name in ("pvs", "pvs_signal")
    )
    diameter[box] = F.max_pool3d(structures["pvs_diameter"][None, None], window)[0, 0].numpy()
    low, high = params.contrast
    return pvs_fraction, np.clip(signal, low * pvs_fraction, high * pvs_fraction), diameter


def _repeat(labels: npt.NDArray[np.uint8], factor: list[int]) -> Tensor:
    """Repeats each voxel along each axis."""
    fine = torch.from_numpy(labels.copy())
    for axis, times in enumerate(factor):
        fine = fine.repeat_interleave(times, axis)
    return fine


def _field(tissues: npt.NDArray[np.uint8], regions: npt.NDArray[np.uint8], voxel_mm: Triple, fine: tuple[int, ...],
           h: Tensor) -> Tensor:  # fmt: skip
    """Computes ``HeadModel.field`` at every ``STRIDE``-th fine voxel, from maps that are resampled to 1 mm."""
    size = [max(2 * int(FIELD_MM), round(n * v)) for n, v in zip(tissues.shape, voxel_mm, strict=True)]
    index = [((np.arange(m) + 0.5) * n / m).astype(int) for m, n in zip(size, tissues.shape, strict=True)]
    at_1mm = np.ix_(*index)
    field = torch.from_numpy(pvs_directions(tissues[at_1mm], regions[at_1mm]))
    for axis, (n, step) in enumerate(zip(fine, h.tolist(), strict=True)):
        place = ((torch.arange(0, n, STRIDE) + 0.5) * step / FIELD_MM).long()
        field = field.index_select(axis + 1, place.clamp(max=field.shape[axis + 1] - 1))
    return field


def local_mean(
    image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], voxel_mm: Triple
) -> npt.NDArray[np.float32]:
    """Computes the mean of the masked tissue around each voxel; the contrast thus does not depend on the noise."""
    sigma = [LOCAL_MM / 2 / v for v in voxel_mm]
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma, mode="nearest")
    total = ndimage.gaussian_filter(np.where(mask, image, 0).astype(np.float32), sigma, mode="nearest")
    return np.where(weight > 1e-3, total / np.maximum(weight, 1e-3), image).astype(np.float32)


def estimate_noise(image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """Estimates the noise within a mask as the robust deviation of differences between voxels two apart.

    The axis with the smallest deviation counts, since anatomy differs across thick slices. Any variation between voxels
    counts as noise, since it hides PVS as well.

    Returns:
        Standard deviation in units of the image, 0 for an empty mask.
    """
    deviations = []
    for axis in range(3):
        upper, lower = ((slice(None),) * axis + (part,) for part in (slice(2, None), slice(None, -2)))
        steps = (image[upper] - image[lower])[mask[upper] & mask[lower]]
        if len(steps):
            deviations.append(float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2)))
    return min(deviations, default=0.0)

"""Acquires a rendered scene: contrast, point spread, slices, artefacts and noise, with the CNR of its PVS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pvs_model.config import STANDARD_RANGE, is_thick
from pvs_model.simulation import artefacts
from pvs_model.simulation.head import INDEX, INTRACRANIAL, TISSUES, tissue_ids
from pvs_model.simulation.parameters import ScanParams
from pvs_model.simulation.render import Scene
from pvs_model.simulation.tissue_contrast import STRUCTURES
from pvs_model.types import Triple

#: Minimum noise, relative to the contrast, in contrast-to-noise ratios. With ``visibility.VISIBLE``, labelled PVS reach
#: at least a tenth of the contrast from white matter to CSF, however little noise there is: of the spots that were
#: measured on real scans, nine tenths reach 0.14 to 0.42.
MIN_NOISE = 0.04


@dataclass(frozen=True)
class Scan:
    """An acquired scene.

    Attributes:
        images: (3, X, Y, Z), raw; zeros for a missing sequence and outside the foreground.
        foreground: bool (X, Y, Z).
        cnr: (X, Y, Z), largest contrast-to-noise ratio of PVS over the channels present (``visibility``).
        params: Parameters of the acquisition.
    """

    images: Tensor
    foreground: Tensor
    cnr: Tensor
    params: ScanParams


def acquire(scene: Scene, params: ScanParams) -> Scan:
    """Acquires a scene.

    In this order: signal, texture, point spread, slices, misregistration, bias field, ringing, noise, gamma,
    skull-stripping. The contribution of PVS takes the same path up to the noise, which gives their contrast-to-noise
    ratio.

    Args:
        scene: Rendered scene.
        params: Parameters of the acquisition.
    """
    device = scene.fractions.device
    generator = torch.Generator(device=device).manual_seed(params.seed)
    signals = torch.tensor(params.signals, device=device)
    foreground = _foreground(scene, params)
    contribution = pvs_contribution(scene, signals) if len(scene.pvs_index) else None
    images = _mean_signal(scene, signals)
    cnr = torch.zeros(images.shape[1:], device=device)
    for c in range(3):
        if not params.present[c]:
            images[c] = 0
            continue
        contrast = float((signals[c, INDEX["white_matter"]] - signals[c, INDEX["ventricle"]]).abs().clamp_min(0.05))
        image = _add_texture(images[c][None], params, c, contrast, generator)
        if contribution is not None:
            image = torch.cat([image, contribution[c][None]])
        image = _sample(image, params, c, scene.voxel_mm, generator)
        if contribution is not None:
            sigma = contrast * max(MIN_NOISE, math.hypot(params.noise[c], params.fine_texture[c]))
            cnr = torch.maximum(cnr, image[1].abs() / sigma)
        image = artefacts.rician(
            image[:1], params.noise[c] * contrast, params.noise_correlation[c], generator, params.acquired[c]
        )
        image = image.clamp_min(0) ** params.gamma[c]
        images[c] = torch.where(foreground, image[0], torch.zeros_like(image[0]))
    return Scan(images, foreground, torch.where(foreground, cnr, torch.zeros_like(cnr)), params)


def pvs_contribution(scene: Scene, signals: Tensor) -> Tensor:
    """Computes the signal with PVS minus the signal without them, before the point spread: (3, X, Y, Z).

    Args:
        scene: Rendered scene.
        signals: (3, tissues + structures).
    """
    pvs = len(TISSUES) + STRUCTURES.index("pvs")
    index = scene.pvs_index.long()
    displaced = scene.displaced.float()
    added = signals[:, pvs, None] * displaced.sum(0) - signals @ displaced
    out = torch.zeros(3, scene.pvs_fraction.numel(), device=signals.device)
    out[:, index] = added
    return out.reshape(3, *scene.pvs_fraction.shape)


def standardise(scan: Scan, scene: Scene) -> Tensor:
    """Normalises a patch (3, X, Y, Z) as part of its head: z-scores by the head's histogram, with jitter."""
    p = scan.params
    share = scene.histogram[int(not p.skull_stripped and scene.whole_head)]
    out = torch.zeros_like(scan.images)
    for c in range(3):
        if not p.present[c]:
            continue
        signals = torch.tensor(p.signals[c], device=share.device)[: len(TISSUES)] ** p.gamma[c]
        mean = (share * signals).sum()
        sd = ((share * (signals - mean) ** 2).sum() + 0.03**2).sqrt()
        z = (scan.images[c] - mean - p.mean_jitter[c] * sd) / (sd * p.scale_jitter[c])
        out[c] = torch.where(scan.foreground, z.clamp(*STANDARD_RANGE), torch.zeros_like(z))
    return out


def _mean_signal(scene: Scene, signals: Tensor) -> Tensor:
    """Averages the signals of the tissues and structures in each voxel: (3, X, Y, Z)."""
    present = scene.fractions.flatten(1).amax(1) > 0
    images = torch.zeros(3, *scene.fractions.shape[1:], device=signals.device)
    for k in torch.nonzero(present)[:, 0].tolist():  # one tissue at a time: a whole head has 50 M voxels
        share = scene.fractions[k].float()
        for c in range(3):
            images[c].add_(share, alpha=float(signals[c, k]) / 255)
    return images


def _add_texture(image: Tensor, params: ScanParams, c: int, contrast: float, generator: torch.Generator) -> Tensor:
    """Adds slow and fine variation within tissue to an image (1, X, Y, Z)."""
    shape = image.shape[1:]
    for amplitude, voxels in ((params.texture[c], 5.0), (params.fine_texture[c], 1.2)):
        x, y, z = (max(2, round(n / voxels)) for n in shape)
        field = artefacts.smooth_noise((1, *shape), (x, y, z), generator, image.device)
        image = image + field * amplitude * contrast * (image > 0.02)
    return image


def _sample(image: Tensor, params: ScanParams, c: int, voxel_mm: Triple, generator: torch.Generator) -> Tensor:
    """Applies point spread, slices, misregistration, bias field and ringing to maps (N, X, Y, Z) alike."""
    shape = image.shape[1:]
    image = artefacts.blur(image, params.psf[c])
    for axis, ratio in enumerate(params.acquired[c]):
        image = artefacts.regrid(image, ratio, ratio / 2, axis)
    image = artefacts.shift(image, params.shift[c])
    x, y, z = (max(2, round(n * v / 60) + 1) for n, v in zip(shape, voxel_mm, strict=True))
    field = artefacts.smooth_noise((1, *shape), (x, y, z), generator, image.device)
    image = image * torch.exp(params.bias[c] * 0.5 * field)
    if params.kspace_fraction[c] < 1:
        image = artefacts.ring(image, params.kspace_fraction[c], axis=0 if params.seed % 2 else 1)
    return image


def _foreground(scene: Scene, params: ScanParams) -> Tensor:
    """Returns the mask (X, Y, Z) of a brain extraction, a little too tight or too loose, or the whole grid."""
    shape = scene.pvs_fraction.shape
    if not params.skull_stripped and scene.whole_head:
        return torch.ones(shape, dtype=torch.bool, device=scene.pvs_fraction.device)
    inside = [*tissue_ids(*INTRACRANIAL), *range(len(TISSUES), len(scene.fractions))]
    share = scene.fractions[inside].sum(0, dtype=torch.int32).float() / 255
    x, y, z = (0.0 if is_thick(v) else params.mask_smooth_mm / v for v in scene.voxel_mm)
    return artefacts.blur(share[None], (x, y, z))[0] >= params.mask_threshold

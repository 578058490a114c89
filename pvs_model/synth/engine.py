"""From a seed to a scan: ``params.draw_*`` chooses every number, ``render`` and ``acquire`` follow them.

A simulator is usually two steps, ``draw(seed) -> Params`` and ``render(Params) -> Sample``. Here each of the
two is split once more, into geometry (``draw_scene``, ``render``) and scan (``draw_scan``, ``acquire``):
rendering a scene (which voxel is how much of what) takes seconds, acquiring it (contrast, blur, noise) a
fraction of one, so training renders a scene once and scans it many times.

Equal records give equal arrays, bit for bit, on one device. Everything runs where the anatomy's tensors lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.synth import artefacts
from pvs_model.synth.anatomy import (
    BASAL_GANGLIA,
    CENTRUM_SEMIOVALE,
    FIELD_MM,
    INDEX,
    INTRACRANIAL,
    TISSUES,
    VOXEL_MM,
    Anatomy,
    tissue_ids,
)
from pvs_model.synth.contrast import OVERLAYS
from pvs_model.synth.overlays import overlays as paint_overlays
from pvs_model.synth.params import PLANES, ScanParams, SceneParams, Triple, draw_scan, draw_scene, draw_voxel

#: By the coverage rule, kept for comparison, a voxel is PVS when tubes fill at least this share of it.
LABEL_COVERAGE = 0.4
LABEL_COVERAGE_THICK = 0.2
#: Unit of ``Scene.diameter``.
DIAMETER_MM = 0.02
#: Below this share of the contrast, noise hides nothing from an annotator: the least that a contrast is divided by.
LEAST_NOISE = 0.02


@dataclass(frozen=True)
class Scene:
    """What each voxel of the acquired grid is made of.

    Attributes:
        fractions: uint8 (tissues + overlays, X, Y, Z), 255 = all of the voxel.
        coverage: uint8 (X, Y, Z), share filled by PVS (the fluid fraction), 255 = all.
        pvs_index: int32 (P,), flat indices of the voxels that PVS reach.
        displaced: float16 (tissues + overlays, P), the shares of those voxels that would be there without PVS.
        diameter: uint8 (X, Y, Z), of the widest tube that reaches a voxel, in units of ``DIAMETER_MM``.
        regions: uint8 (X, Y, Z).
        voxel_mm: grid spacing.
        histogram: (2, tissues) of the anatomy, for normalisation of a patch as part of its head.
        whole_head: whether the anatomy has a skull.
    """

    fractions: Tensor
    coverage: Tensor
    pvs_index: Tensor
    displaced: Tensor
    diameter: Tensor
    regions: Tensor
    voxel_mm: Triple
    histogram: Tensor
    whole_head: bool

    @property
    def thickness_mm(self) -> float:
        return max(self.voxel_mm)

    def label(self, coverage: float | None = None) -> Tensor:
        """bool (X, Y, Z): PVS by the coverage rule, from a share of the voxel on; None for that of the grid."""
        return self.coverage >= math.ceil((coverage or label_coverage(self.voxel_mm)) * 255)


def label_coverage(voxel_mm: Triple) -> float:
    """The share of a voxel that tubes must fill to make it PVS: lower for thick slices."""
    return LABEL_COVERAGE_THICK if max(voxel_mm) >= 2.5 else LABEL_COVERAGE


def fine_factors(voxel_mm: Triple) -> list[int]:
    """Voxels per axis that an acquired voxel is rendered with: of 0.56 mm at most, 0.75 mm across thick slices."""
    return [math.ceil(v / (0.56 if v < 2.5 else 0.75)) for v in voxel_mm]


def rotation(degrees: Triple) -> Tensor:
    """Rotation matrix (3, 3) about x, then y, then z."""
    out = torch.eye(3, device="cpu")
    for axis, angle in enumerate(degrees):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = torch.eye(3, device="cpu")
        turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        out = turn @ out
    return out


def _centre_mm(params: SceneParams, anatomy: Anatomy, generator: torch.Generator) -> Tensor:
    """Point of the anatomy (mm from its corner) that the scene is centred on."""
    coarse = anatomy.regions[::4, ::4, ::4]
    if params.target in ("whole", "head"):
        where = torch.nonzero(anatomy.tissues[::4, ::4, ::4] > 0 if params.target == "head" else coarse > 0)
    else:
        wanted = {"centrum": coarse == CENTRUM_SEMIOVALE, "basal": coarse == BASAL_GANGLIA, "brain": coarse > 0}
        where = torch.nonzero(wanted[params.target])
    if params.target == "whole" or len(where) == 0:
        middle = (
            (where.amin(0) + where.amax(0) + 1).float() / 2
            if len(where)
            else torch.tensor(coarse.shape, device=where.device) / 2
        )
        return middle * 4 * VOXEL_MM
    chosen = int(torch.randint(len(where), (), generator=generator, device=generator.device))
    return (where[chosen].float() + 0.5) * 4 * VOXEL_MM


def _pull(
    params: SceneParams, anatomy: Anatomy, fine: tuple[int, int, int], h: Tensor, generator: torch.Generator
) -> tuple[Callable[..., list[Tensor]], Tensor]:
    """Sampler of the anatomy in scene coordinates.

    Returns a function: index ranges of the fine grid -> positions (3 tensors x, y, z) in anatomy mm, and
    the matrix (3, 3) from scene to anatomy directions.
    """
    device = anatomy.tissues.device
    matrix = torch.zeros(3, 3, device="cpu")  # small ones are cheaper there
    for scene_axis, anatomy_axis in enumerate(PLANES[params.plane]):
        matrix[anatomy_axis, scene_axis] = 1.0
    matrix = rotation(params.rotation_deg) @ torch.diag(1 / torch.tensor(params.scale, device="cpu")) @ matrix
    if params.flip:
        matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0], device="cpu")) @ matrix
    matrix = matrix.to(device)
    centre = _centre_mm(params, anatomy, generator).to(device)
    extent = torch.tensor(fine, device=device) * h
    cells = tuple(max(3, int(e / 22) + 2) for e in extent.tolist())
    elastic = artefacts.smooth_noise((3, *[max(2, int(e / 4)) for e in extent.tolist()]), cells, generator, device)  # type: ignore[arg-type]
    elastic = elastic * params.elastic_mm

    def positions(start: int, stop: int, step: int = 1) -> list[Tensor]:
        x = (torch.arange(start, stop, step, device=device) + 0.5) * h[0] - extent[0] / 2
        y = (torch.arange(0, fine[1], step, device=device) + 0.5) * h[1] - extent[1] / 2
        z = (torch.arange(0, fine[2], step, device=device) + 0.5) * h[2] - extent[2] / 2
        if step == 1 and (start, stop) == (0, fine[0]):
            move = F.interpolate(elastic[None], size=fine, mode="trilinear")[0]  # ten times as fast as the way below
        else:  # a slab of it
            span = [
                (torch.arange(start, stop, step, device=device) + 0.5) / fine[0] * 2 - 1,
                (torch.arange(0, fine[1], step, device=device) + 0.5) / fine[1] * 2 - 1,
                (torch.arange(0, fine[2], step, device=device) + 0.5) / fine[2] * 2 - 1,
            ]
            grid = torch.stack(torch.meshgrid(*span, indexing="ij"), -1).flip(-1)  # grid_sample wants (z, y, x)
            move = F.grid_sample(elastic[None], grid[None], padding_mode="border", align_corners=False)[0]
        return [
            centre[a]
            + matrix[a, 0] * x[:, None, None]
            + matrix[a, 1] * y[None, :, None]
            + matrix[a, 2] * z[None, None, :]
            + move[a]
            for a in range(3)
        ]

    return positions, matrix


def _gather(volume: Tensor, positions: list[Tensor], voxel_mm: float, outside: float = 0) -> Tensor:
    """Nearest value of (C, X, Y, Z) or (X, Y, Z) at positions; ``outside`` beyond the array."""
    shape = volume.shape[-3:]
    flat = torch.zeros(positions[0].shape, dtype=torch.int32, device=volume.device)
    valid = torch.ones(positions[0].shape, dtype=torch.bool, device=volume.device)
    for n, p in zip(shape, positions, strict=True):
        index = (p / voxel_mm).floor().int()
        valid &= (index >= 0) & (index < n)
        flat = flat * n + index.clamp(0, n - 1)
    values = volume.flatten(-3)[..., flat]
    return torch.where(valid, values, torch.as_tensor(outside, dtype=values.dtype, device=values.device))


def render(params: SceneParams, anatomy: Anatomy) -> Scene:
    """Renders what each voxel is made of: warps the anatomy, grows PVS and mimics, averages onto the acquired grid."""
    device = anatomy.tissues.device
    generator = torch.Generator(device=device).manual_seed(params.seed)
    factor = fine_factors(params.voxel_mm)
    fine = tuple(n * f for n, f in zip(params.shape, factor, strict=True))
    h = torch.tensor([v / f for v, f in zip(params.voxel_mm, factor, strict=True)], device=device)
    positions, matrix = _pull(params, anatomy, fine, h, generator)  # type: ignore[arg-type]

    slab = max(factor[0], (8_000_000 // max(1, fine[1] * fine[2])) // factor[0] * factor[0])
    starts = list(range(0, fine[0], slab))
    parts = [positions(s, min(s + slab, fine[0])) for s in starts] if len(starts) == 1 else None

    maps = torch.stack([anatomy.tissues, anatomy.regions])
    tissue, region = torch.cat(
        [_gather(maps, parts[0] if parts else positions(s, min(s + slab, fine[0])), VOXEL_MM) for s in starts], 1
    )
    stride = 4
    field = _gather(anatomy.field, positions(0, fine[0], stride), FIELD_MM)
    direction = torch.einsum("as,axyz->sxyz", matrix, field[:3])
    direction = direction / (direction.norm(dim=0, keepdim=True) + 1e-6)

    overlays = paint_overlays(params, tissue, region, direction, field[3], h, stride, generator)
    scene = _average(tissue, region, overlays, factor, params.shape)
    return Scene(*scene, voxel_mm=params.voxel_mm, histogram=anatomy.histogram, whole_head=anatomy.whole_head)


def _average(
    tissue: Tensor, region: Tensor, overlays: dict[str, Tensor], factor: list[int], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean over each acquired voxel: the first six fields of ``Scene``."""
    window = (factor[0], factor[1], factor[2])

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool3d(x[None, None].float(), window)[0, 0]

    covers = [(k, overlays["pvs_signal" if name == "pvs" else name]) for k, name in enumerate(OVERLAYS, len(TISSUES))
              if name == "pvs" or name in overlays]  # fmt: skip
    remaining = torch.ones(tissue.shape, device=tissue.device)
    fractions = torch.zeros(len(TISSUES) + len(OVERLAYS), *shape, dtype=torch.uint8, device=tissue.device)
    for k, cover in covers:
        fractions[k] = (pool(remaining * cover) * 255).round().to(torch.uint8)
        remaining = remaining * (1 - cover)
    fractions[: len(TISSUES)] = _shares(tissue, remaining, factor)

    coverage = pool(overlays["pvs"])
    signal = overlays["pvs_signal"]
    index = torch.nonzero(pool(signal).flatten() > 0)[:, 0]
    displaced = torch.zeros(len(fractions), len(index), device=tissue.device)
    if len(index):
        below = _blocks(signal, factor)[index]  # of each voxel, what of its fine voxels PVS take
        for k, cover in covers[1:]:
            part = below * _blocks(cover, factor)[index]
            displaced[k] = part.mean(1)
            below = below - part
        displaced.scatter_add_(0, _blocks(tissue, factor)[index].long().T, below.T / below.shape[1])
    diameter = F.max_pool3d(overlays["pvs_diameter"][None, None], window)[0, 0]
    middle = region[factor[0] // 2 :: factor[0], factor[1] // 2 :: factor[1], factor[2] // 2 :: factor[2]]
    return (
        fractions,
        (coverage * 255).round().to(torch.uint8),
        index.to(torch.int32),
        displaced.half(),
        (diameter / DIAMETER_MM).round().clamp(max=255).to(torch.uint8),
        middle.contiguous(),
    )


def _shares(tissue: Tensor, remaining: Tensor, factor: list[int]) -> Tensor:
    """uint8 (tissues, X, Y, Z): how much of each acquired voxel is of each tissue and not painted over, 255 = all.

    Whole numbers are added up, so that the order of adding does not matter on any device.
    """
    x, y, z = (n // f for n, f in zip(tissue.shape, factor, strict=True))
    voxel = [torch.arange(n, device=tissue.device) // f for n, f in zip(tissue.shape, factor, strict=True)]
    index = (voxel[0][:, None, None] * y + voxel[1][:, None]) * z + voxel[2]
    index = index + tissue.long() * (x * y * z)
    weight = (remaining * 4080).round()
    added = torch.bincount(index.flatten(), weight.flatten(), minlength=len(TISSUES) * x * y * z)
    return (added.reshape(len(TISSUES), x, y, z) / (16.0 * math.prod(factor))).round().to(torch.uint8)


def _blocks(fine: Tensor, factor: list[int]) -> Tensor:
    """The fine voxels of each acquired voxel: (X fx, Y fy, Z fz) to (X Y Z, fx fy fz)."""
    x, y, z = (n // f for n, f in zip(fine.shape, factor, strict=True))
    split = fine.reshape(x, factor[0], y, factor[1], z, factor[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(x * y * z, -1)


def pvs_contribution(scene: Scene, signals: Tensor) -> Tensor:
    """What PVS add to the signal of each channel before the scanner blurs it: (3, X, Y, Z), 0 where there are none.

    Args:
        scene: as rendered.
        signals: (3, tissues + overlays).
    """
    pvs = len(TISSUES) + OVERLAYS.index("pvs")
    index = scene.pvs_index.long()
    displaced = scene.displaced.float()
    added = signals[:, pvs, None] * displaced.sum(0) - signals @ displaced
    out = torch.zeros(3, scene.coverage.numel(), device=signals.device)
    out[:, index] = added
    return out.reshape(3, *scene.coverage.shape)


@dataclass(frozen=True)
class Scan:
    """An acquired scene.

    Attributes:
        images: (3, X, Y, Z), raw; zeros where a sequence is missing or stripped away.
        foreground: bool (X, Y, Z).
        cnr: (X, Y, Z), the largest contrast-to-noise ratio of PVS over the channels present (``visibility``).
        params: of the acquisition.
    """

    images: Tensor
    foreground: Tensor
    cnr: Tensor
    params: ScanParams


def acquire(scene: Scene, params: ScanParams) -> Scan:
    """Signal, texture, point spread, slices, misregistration, bias field, ringing, noise, gamma, stripping.

    What PVS contribute goes the same way beside the image, up to the noise: their contrast-to-noise ratio.
    """
    device = scene.fractions.device
    generator = torch.Generator(device=device).manual_seed(params.seed)
    used = scene.fractions.flatten(1).amax(1) > 0
    signals = torch.tensor(params.signals, device=device)
    shape = tuple(scene.fractions.shape[1:])
    white, fluid = INDEX["white_matter"], INDEX["ventricle"]
    foreground = _foreground(scene, params)
    contribution = pvs_contribution(scene, signals) if len(scene.pvs_index) else None

    cnr = torch.zeros(shape, device=device)
    images = torch.zeros(3, *shape, device=device)
    for k in torch.nonzero(used)[:, 0].tolist():  # one tissue at a time: a whole head has 50 M voxels
        share = scene.fractions[k].float()
        for c in range(3):
            images[c].add_(share, alpha=float(signals[c, k]) / 255)
    for c in range(3):
        if not params.present[c]:
            images[c] = 0
            continue
        contrast = float((signals[c, white] - signals[c, fluid]).abs().clamp_min(0.05))
        image = images[c][None]
        for amplitude, voxels in ((params.texture[c], 5.0), (params.fine_texture[c], 1.2)):
            cells = tuple(max(2, round(n / voxels)) for n in shape)
            field = artefacts.smooth_noise((1, *shape), cells, generator, device)  # type: ignore[arg-type]
            image = image + field * amplitude * contrast * (image > 0.02)
        if contribution is not None:
            image = torch.cat([image, contribution[c][None]])
        image = artefacts.blur(image, params.psf[c])
        for axis, ratio in enumerate(params.acquired[c]):
            image = artefacts.regrid(image, ratio, ratio / 2, axis)
        image = artefacts.shift(image, params.shift[c])
        cells = tuple(max(2, round(n * v / 60) + 1) for n, v in zip(shape, scene.voxel_mm, strict=True))
        field = artefacts.smooth_noise((1, *shape), cells, generator, device)  # type: ignore[arg-type]
        image = image * torch.exp(params.bias[c] * 0.5 * field)
        if params.ring_keep[c] < 1:
            image = artefacts.ring(image, params.ring_keep[c], axis=0 if params.seed % 2 else 1)
        if contribution is not None:
            sigma = contrast * max(LEAST_NOISE, math.hypot(params.noise[c], params.fine_texture[c]))
            cnr = torch.maximum(cnr, image[1].abs() / sigma)
        image = artefacts.rician(image[:1], params.noise[c] * contrast, params.grain[c], generator, params.acquired[c])
        image = image.clamp_min(0) ** params.gamma[c]
        images[c] = torch.where(foreground, image[0], torch.zeros_like(image[0]))
    return Scan(images, foreground, torch.where(foreground, cnr, torch.zeros_like(cnr)), params)


def _foreground(scene: Scene, params: ScanParams) -> Tensor:
    """bool (X, Y, Z): everything, or what a brain extraction leaves: smooth, a little too tight or too loose."""
    shape = scene.coverage.shape
    if not (params.stripped or not scene.whole_head):
        return torch.ones(shape, dtype=torch.bool, device=scene.coverage.device)
    inside = [*tissue_ids(*INTRACRANIAL), *range(len(TISSUES), len(scene.fractions))]
    share = scene.fractions[inside].sum(0, dtype=torch.int32).float() / 255
    x, y, z = (0.0 if v >= 2.5 else params.mask_smooth_mm / v for v in scene.voxel_mm)
    return artefacts.blur(share[None], (x, y, z))[0] >= params.mask_threshold


def standardise(scan: Scan, scene: Scene) -> Tensor:
    """Patch (3, X, Y, Z) normalised as the whole head would be: z-score by the anatomy's histogram, jittered."""
    p = scan.params
    head = 0 if (p.stripped or not scene.whole_head) else 1
    share = scene.histogram[head]
    out = torch.zeros_like(scan.images)
    for c in range(3):
        if not p.present[c]:
            continue
        signals = torch.tensor(p.signals[c], device=share.device)[: len(TISSUES)] ** p.gamma[c]
        mean = (share * signals).sum()
        sd = ((share * (signals - mean) ** 2).sum() + 0.03**2).sqrt()
        z = (scan.images[c] - mean - p.mean_jitter[c] * sd) / (sd * p.scale_jitter[c])
        out[c] = torch.where(scan.foreground, z.clamp(-4, 8), torch.zeros_like(z))
    return out


__all__ = [
    "PLANES", "Scan", "ScanParams", "Scene", "SceneParams", "acquire", "draw_scan", "draw_scene", "draw_voxel",
    "render", "standardise",
]  # fmt: skip

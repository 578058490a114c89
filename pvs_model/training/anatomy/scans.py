"""Simulates scans for the anatomy network from label maps at its working resolution: ``draw``, then ``render``."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.anatomy.intensity import normalise
from pvs_model.anatomy.network import SPACING_MM
from pvs_model.anatomy.regions import CLASS
from pvs_model.simulation.artefacts import blur, regrid, rician, smooth_noise
from pvs_model.simulation.head import INDEX, TISSUES
from pvs_model.simulation.tissue_contrast import TISSUE_SIGNALS
from pvs_model.training.anatomy.face import add_fat, draw_face, face_signals, paint_face, signal_of
from pvs_model.training.anatomy.label_maps import LEFT, NO_SIDE, RIGHT, SIGNALS, LabelMap
from pvs_model.types import SEQUENCES, Triple

#: Groups of tissues with correlated signals.
ALIKE = (
    ("white_matter", "ventral_dc", "brainstem", "cerebellum_wm", "pallidum"),
    ("cortex", "caudate", "putamen", "hippocampus", "cerebellum_gm", "thalamus"),
    ("ventricle", "csf"),
)


@dataclass(frozen=True)
class AnatomyScanParams:
    """Parameters of one scan of one label map. Lengths in mm, fractions 0 to 1.

    Attributes:
        seed: Seed of every random field and signal.
        sequence: One of ``SEQUENCES``, or "any" for random signals.
        rotation_deg, scale, shift_mm: Pose of the head, per axis.
        mirrored: Whether left and right are exchanged, with their labels.
        warp_mm: Deviation of the coarse (35 mm) and the fine (15 mm) displacements.
        strip: "no", "csf" (brain and CSF are kept) or "brain".
        strip_at: Tightness of the stripping, 0 (wide) to 1 (tight).
        strip_width_mm: Blur of the stripping edge.
        blur_mm: Deviation of the point spread function.
        thickness_mm: Slice thickness.
        axis: Slice axis.
        noise: Deviation of the noise, for a signal range of 1.
        bias: Deviation of the logarithm of the bias field.
        gamma: Exponent of the signal.
        cut_mm: Planes cut off the field of view, (low, high) per axis, from the brain's edge inwards.
        hyperintensities: Approximate fraction of the white matter with hyperintensities.
        blobs: Number of strokes or tumours.
        zero_air: Whether air is exactly 0 although the skull is present.
        invert: Whether the contrast is inverted.
    """

    seed: int
    sequence: str = "T1w"
    rotation_deg: Triple = (0.0, 0.0, 0.0)
    scale: Triple = (1.0, 1.0, 1.0)
    shift_mm: Triple = (0.0, 0.0, 0.0)
    mirrored: bool = False
    warp_mm: tuple[float, float] = (0.0, 0.0)
    strip: str = "no"
    strip_at: float = 0.5
    strip_width_mm: float = 2.0
    blur_mm: float = 0.6
    thickness_mm: float = 1.0
    axis: int = 2
    noise: float = 0.02
    bias: float = 0.1
    gamma: float = 1.0
    cut_mm: tuple[float, ...] = (0.0,) * 6
    hyperintensities: float = 0.0
    blobs: int = 0
    zero_air: bool = False
    invert: bool = False


@dataclass(frozen=True)
class AnatomyScan:
    """Scan with its targets: image float32 (x, y, z) 0 to 1; target int64 (x, y, z), classes; side uint8 (x, y, z)."""

    image: Tensor
    target: Tensor
    side: Tensor


def draw(seed: int, difficulty: float = 1.0) -> AnatomyScanParams:
    """Draws the parameters of one scan.

    Args:
        seed: Seed of every draw.
        difficulty: 1 for the full range of training; 0 for canonical, whole scans with the usual contrasts.
    """
    rng = random.Random(seed)

    def three(sample: Callable[[], float]) -> Triple:
        return sample(), sample(), sample()

    def chance(share: float) -> bool:
        return rng.random() < share * difficulty

    milder = 0.3 + 0.7 * difficulty
    far = chance(0.2)
    size = rng.gauss(1.0, 0.08)
    cuts = [0.0] * 6
    if chance(0.3):
        for face in rng.sample(range(6), rng.choice((1, 1, 2))):
            cuts[face] = rng.uniform(0, 45)
    sequence = rng.choice(SEQUENCES)
    if chance(0.5):
        sequence = "any"
    return AnatomyScanParams(
        seed=seed,
        sequence=sequence,
        rotation_deg=three(lambda: milder * rng.uniform(-20, 20)),
        scale=three(lambda: min(1.25, max(0.8, size * rng.gauss(1.0, 0.05)))),
        shift_mm=three(lambda: rng.uniform(-60, 60) if far else milder * rng.gauss(0, 10)),
        mirrored=rng.random() < 0.5,
        warp_mm=(rng.uniform(0, 5), rng.uniform(0, 1.5)),
        strip=rng.choice(("no", "no", "no", "csf", "brain", "brain")),
        strip_at=rng.uniform(0.15, 0.7),
        strip_width_mm=rng.uniform(0.8, 4.0),
        blur_mm=abs(rng.gauss(0, 0.8)),
        thickness_mm=rng.uniform(2, 7.5) if chance(0.5) else 1.0,
        axis=rng.choice((0, 1, 2, 2)),
        noise=milder * abs(rng.gauss(0, 0.04)),
        bias=abs(rng.gauss(0, 0.25)),
        gamma=math.exp(rng.gauss(0, 0.25)),
        cut_mm=tuple(cuts),
        hyperintensities=rng.uniform(0, 0.15) if rng.random() < 0.35 else 0.0,
        blobs=rng.choice((1, 1, 2)) if chance(0.25) else 0,
        zero_air=rng.random() < 0.3,
        invert=sequence == "any" and rng.random() < 0.15,
    )


def render(
    label_map: LabelMap,
    params: AnatomyScanParams,
    shape: tuple[int, int, int],
    spacing_mm: float = SPACING_MM,
    raw: bool = False,
) -> AnatomyScan:
    """Simulates a scan on a grid centred on the brain, apart from the shift.

    Args:
        label_map: Label map of the head.
        params: Parameters of the scan.
        shape: Shape of the grid (x, y, z).
        spacing_mm: Spacing of the grid.
        raw: Whether to skip the normalisation.
    """
    g = torch.Generator().manual_seed(params.seed)
    label_map = paint_face(label_map, draw_face(params.seed))
    position = _positions(label_map, params, shape, spacing_mm, g)
    codes = _look_up(label_map, position, (0.0, 0.0, 0.0))
    target = label_map.target[codes.long()].long()
    side = label_map.side[codes.long()]
    if params.mirrored:
        side = torch.tensor([NO_SIDE, RIGHT, LEFT], dtype=torch.uint8)[side.long()]

    mean, spread = face_signals(*_signals(params, g), params.seed, params.sequence)
    per_code = mean[label_map.signal]
    offset = 0.3 * spacing_mm
    image = (
        per_code[codes.long()]
        + per_code[_look_up(label_map, position, (offset, -offset, offset)).long()]
        + per_code[_look_up(label_map, position, (-offset, offset, -offset)).long()]
    ) / 3  # partial volume
    del position
    brain = target > 0
    if label_map.frame is not None:
        image = add_fat(image, label_map.signal[codes.long()], mean, params.seed, spacing_mm)
    image = image + spread[label_map.signal][codes.long()] * torch.randn(shape, generator=g)
    image = _lesions(image, target, params, spacing_mm, g)
    cells = (max(2, shape[0] // 12), max(2, shape[1] // 12), max(2, shape[2] // 12))
    image = image * (1 + 0.03 * smooth_noise((1, *shape), cells, g)[0])
    image = image.clamp_min(0) ** params.gamma
    air = label_map.signal[codes.long()] == 0
    image = image * torch.exp(params.bias * smooth_noise((1, *shape), (3, 3, 3), g)[0])
    image = blur(image[None], (params.blur_mm / spacing_mm,) * 3)
    early = params.seed % 2 == 0  # noise added before the slices are averaged, or after
    if early:
        image = rician(image, params.noise * 1.5, 0.0, g)
    phase = float(torch.rand((), generator=g))
    image = regrid(image, params.thickness_mm / spacing_mm, phase, params.axis)
    if not early:
        image = rician(image, params.noise, 0.0, g)
    image = image[0]
    if params.invert:
        image = (float(image.amax()) - image).clamp_min(0)
    if params.zero_air or params.invert:
        image = torch.where(air, 0.0, image)

    outside = _outside(target, brain, params, spacing_mm, g)
    image = torch.where(outside, 0.0, image)
    target = torch.where(outside, 0, target)
    side = torch.where(target > 0, side, NO_SIDE)
    return AnatomyScan(image if raw else normalise(image), target, side)


def _positions(
    label_map: LabelMap, params: AnatomyScanParams, shape: tuple[int, int, int], spacing_mm: float, g: torch.Generator
) -> Tensor:
    """Position in the label map of each voxel of the grid: float32 (3, x, y, z), voxels of 1 mm."""
    a, b, c = (math.radians(v) for v in params.rotation_deg)
    about_x = torch.tensor([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = torch.tensor([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = torch.tensor([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    matrix = about_x @ about_y @ about_z @ torch.diag(1 / torch.tensor(params.scale))
    if params.mirrored:
        matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0])) @ matrix
    axes = [
        (torch.arange(n) - (n - 1) / 2) * spacing_mm - shift for n, shift in zip(shape, params.shift_mm, strict=True)
    ]
    position = torch.empty((3, *shape))
    for row in range(3):
        x, y, z = (matrix[row, k] * axes[k] for k in range(3))
        position[row] = x[:, None, None] + y[None, :, None] + (z + label_map.centre[row])[None, None, :]
    extent = [n * spacing_mm for n in shape]
    for deviation, cell in zip(params.warp_mm, (35.0, 15.0), strict=True):
        if deviation > 0:
            cells = (round(extent[0] / cell) + 1, round(extent[1] / cell) + 1, round(extent[2] / cell) + 1)
            coarse = torch.randn((1, 3, *(n + 2 for n in cells)), generator=g)
            coarse = F.avg_pool3d(coarse, 2, 1) * math.sqrt(8)  # smoother than between independent nodes
            position += deviation * F.interpolate(coarse, size=shape, mode="trilinear", align_corners=True)[0]
    return position


def _look_up(label_map: LabelMap, position: Tensor, offset: Triple) -> Tensor:
    """Codes (x, y, z) at positions shifted by an offset in mm; 0 outside the map."""
    nx, ny, nz = label_map.codes.shape
    x, y, z = ((position[k] + offset[k]).round_().int() for k in range(3))
    inside = (x >= 0) & (x < nx) & (y >= 0) & (y < ny) & (z >= 0) & (z < nz)
    index = (x.clamp_(0, nx - 1) * ny + y.clamp_(0, ny - 1)) * nz + z.clamp_(0, nz - 1)
    return torch.take(label_map.codes, index.long()) * inside


def _signals(params: AnatomyScanParams, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mean and deviation per signal (``SIGNALS``,), about 0 to 1."""

    def uniform(low: float, high: float, n: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g)

    mean = torch.empty(SIGNALS)
    tissues = len(TISSUES)
    outside = slice(INDEX["soft_tissue"], SIGNALS)
    if params.sequence == "any":
        mean[:] = uniform(0, 1, SIGNALS)
        for group in ALIKE:
            members = [INDEX[name] for name in group]
            tied = uniform(0, 1, len(members)) < 0.65
            near = mean[members[0]] + 0.08 * torch.randn(len(members), generator=g)
            mean[members] = torch.where(tied, near, mean[members])
    else:
        prior = torch.tensor([TISSUE_SIGNALS[name][SEQUENCES.index(params.sequence)] for name in TISSUES])
        white = prior[INDEX["white_matter"]]
        gain = torch.exp(0.25 * torch.randn(1, generator=g))
        mean[:tissues] = white + (prior - white) * gain + 0.04 * torch.randn(tissues, generator=g)
        fluid = mean[INDEX["ventricle"]]
        mean[INDEX["csf"]] = fluid + (mean[INDEX["csf"]] - fluid) * uniform(0, 3)
        mean[tissues:] = uniform(0, 1, SIGNALS - tissues)
        mean[outside] = torch.where(
            uniform(0, 1, SIGNALS - outside.start) < 0.5, uniform(0, 1.3, SIGNALS - outside.start), mean[outside]
        )
        for name, extra in (("soft_tissue", 507), ("skin", 511), ("bone", 515), ("marrow", 516)):
            mean[signal_of(extra)] = prior[INDEX[name]] * uniform(0.3, 2.0)
    mean[INDEX["air"]] = uniform(0, 0.1) if float(uniform(0, 1)) < 0.2 else 0.0
    if float(uniform(0, 1)) < 0.2:  # fat saturation
        mean[signal_of(511)] *= 0.2
        mean[signal_of(516)] *= 0.2
    spread = uniform(0, 0.06, SIGNALS)
    spread[outside] += uniform(0, 0.2, SIGNALS - outside.start)  # muscle, fat and vessels share a label
    spread[INDEX["air"]] = 0.0
    return mean.clamp(0, 1.6), spread


def _lesions(image: Tensor, target: Tensor, params: AnatomyScanParams, spacing_mm: float, g: torch.Generator) -> Tensor:
    """Adds white matter hyperintensities, and blobs of any signal within the brain; labels do not change."""
    shape = image.shape
    level = torch.rand(8, generator=g).tolist()
    if params.hyperintensities > 0:
        cells = (int(shape[0] * spacing_mm / 9), int(shape[1] * spacing_mm / 9), int(shape[2] * spacing_mm / 9))
        field = smooth_noise((1, *shape), cells, g)[0]
        white = (target == CLASS["WM"]) | (target == CLASS["IC"])
        patches = white & (field > 1.3 - 4 * params.hyperintensities)
        signal = {"T1w": 0.55, "T2w": 0.65, "FLAIR": 1.0}.get(params.sequence, 1.2 * level[0])
        image = torch.where(patches, signal + 0.2 * (level[1] - 0.5), image)
    tissue = (target > 0) & (target != CLASS["CSF"]) & (target != CLASS["LV"]) & (target != CLASS["V34"])
    where = torch.nonzero(tissue)
    for k in range(params.blobs if len(where) else 0):
        middle = where[int(torch.randint(len(where), (), generator=g))]
        radius = (4 + 26 * level[2 + k]) / spacing_mm
        squared = sum(
            (((torch.arange(n) - int(m)) / radius) ** 2).reshape([-1 if a == b else 1 for b in range(3)])
            for a, (n, m) in enumerate(zip(shape, middle, strict=True))
        )
        field = smooth_noise((1, *shape), (shape[0] // 8, shape[1] // 8, shape[2] // 8), g)[0]
        distance = squared + 0.3 * field
        image = torch.where(tissue & (distance < 1), 1.3 * level[4 + k], image)
        if level[6] < 0.5:  # a core of another signal
            image = torch.where(tissue & (distance < 0.35), 1.3 * level[7], image)
    return image


def _outside(target: Tensor, brain: Tensor, params: AnatomyScanParams, spacing_mm: float, g: torch.Generator) -> Tensor:
    """Mask of voxels set to 0: outside the field of view, or removed with the skull."""
    removed = torch.zeros_like(brain)
    if params.strip != "no":
        kept = brain if params.strip == "csf" else brain & (target != CLASS["CSF"])
        soft = blur(kept[None].float(), (params.strip_width_mm / spacing_mm,) * 3)[0]
        cells = (target.shape[0] // 10, target.shape[1] // 10, target.shape[2] // 10)
        removed |= soft < params.strip_at + 0.1 * smooth_noise((1, *target.shape), cells, g)[0]
    for axis in range(3):
        hit = torch.nonzero(brain.any(dim=tuple(other for other in range(3) if other != axis)))
        if not len(hit):
            continue
        low, high = (round(v / spacing_mm) for v in params.cut_mm[2 * axis : 2 * axis + 2])
        if low:
            removed.narrow(axis, 0, min(target.shape[axis], int(hit[0]) + low)).fill_(True)
        if high:
            start = max(0, int(hit[-1]) - high)
            removed.narrow(axis, start, target.shape[axis] - start).fill_(True)
    return removed

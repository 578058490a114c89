"""Renders the geometry of a scene: the composition of each acquired voxel.

Simulation has two stages, each with its parameter record: geometry (``draw_scene``, ``render``) and scan
(``draw_scan``, ``acquire``). Rendering takes seconds and acquiring a fraction of one, so training renders a scene once
and acquires it many times. Equal records give equal arrays, bit for bit, on one device. Everything is computed on the
device of the head model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.config import is_thick
from pvs_model.simulation import artefacts
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, FIELD_MM, TISSUES, VOXEL_MM, HeadModel
from pvs_model.simulation.parameters import SceneParams
from pvs_model.simulation.structures import draw_structures
from pvs_model.simulation.tissue_contrast import STRUCTURES
from pvs_model.types import PLANES, Triple

#: Partial-volume fraction from which the coverage rule, kept for comparison, labels a voxel as PVS.
LABELLING_THRESHOLD = 0.4
LABELLING_THRESHOLD_THICK = 0.2
#: Unit of ``Scene.diameter``.
DIAMETER_UNIT_MM = 0.02
#: Fine voxels per coarse voxel of the grid of directions.
STRIDE = 4
#: Maximum number of fine voxels that are warped at once.
MAX_VOXELS = 8_000_000


@dataclass(frozen=True)
class Scene:
    """Composition of each voxel of the acquired grid.

    Attributes:
        fractions: uint8 (tissues + structures, X, Y, Z), 255 = the whole voxel.
        pvs_fraction: uint8 (X, Y, Z), partial-volume fraction of PVS, 255 = the whole voxel.
        pvs_index: int32 (P,), flat indices of the voxels with PVS.
        displaced: float16 (tissues + structures, P), fractions that PVS displace in these voxels.
        diameter: uint8 (X, Y, Z), diameter of the widest tube in a voxel, in units of ``DIAMETER_UNIT_MM``.
        regions: uint8 (X, Y, Z), ``NO_REGION`` to ``OTHER_BRAIN``.
        voxel_mm: Voxel spacing.
        histogram: (2, tissues) of the head model, to normalise a patch as part of its head.
        whole_head: Whether the head model has a skull.
    """

    fractions: Tensor
    pvs_fraction: Tensor
    pvs_index: Tensor
    displaced: Tensor
    diameter: Tensor
    regions: Tensor
    voxel_mm: Triple
    histogram: Tensor
    whole_head: bool

    @property
    def thickness_mm(self) -> float:
        """Slice thickness."""
        return max(self.voxel_mm)

    def label_by_fraction(self, threshold: float | None = None) -> Tensor:
        """Labels PVS by the coverage rule, bool (X, Y, Z); the default threshold depends on the slice thickness."""
        return self.pvs_fraction >= math.ceil((threshold or labelling_threshold(self.voxel_mm)) * 255)


def labelling_threshold(voxel_mm: Triple) -> float:
    """Returns the partial-volume fraction from which the coverage rule labels a voxel; lower for thick slices."""
    return LABELLING_THRESHOLD_THICK if is_thick(max(voxel_mm)) else LABELLING_THRESHOLD


def oversampling(voxel_mm: Triple) -> list[int]:
    """Returns the fine voxels per acquired voxel and axis; they are at most 0.56 mm, 0.75 mm across thick slices."""
    return [math.ceil(v / (0.75 if is_thick(v) else 0.56)) for v in voxel_mm]


def rotation(degrees: Triple) -> Tensor:
    """Computes the rotation matrix (3, 3) about x, then y, then z."""
    out = torch.eye(3, device="cpu")
    for axis, angle in enumerate(degrees):
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        plane = torch.eye(3, device="cpu")
        plane[i, i], plane[i, j], plane[j, i], plane[j, j] = c, -s, s, c
        out = plane @ out
    return out


def _centre_mm(params: SceneParams, head: HeadModel, generator: torch.Generator) -> Tensor:
    """Chooses the centre of the scene, in mm from the corner of the head model."""
    coarse = head.regions[::4, ::4, ::4]
    if params.target in ("whole", "head"):
        where = torch.nonzero(head.tissues[::4, ::4, ::4] > 0 if params.target == "head" else coarse > 0)
    else:
        masks = {"centrum": coarse == CENTRUM_SEMIOVALE, "basal": coarse == BASAL_GANGLIA, "brain": coarse > 0}
        where = torch.nonzero(masks[params.target])
    if params.target == "whole" or len(where) == 0:
        middle = (
            (where.amin(0) + where.amax(0) + 1).float() / 2
            if len(where)
            else torch.tensor(coarse.shape, device=where.device) / 2
        )
        return middle * 4 * VOXEL_MM
    chosen = int(torch.randint(len(where), (), generator=generator, device=generator.device))
    return (where[chosen].float() + 0.5) * 4 * VOXEL_MM


def _warp(
    params: SceneParams, head: HeadModel, fine: tuple[int, int, int], h: Tensor, generator: torch.Generator
) -> tuple[Callable[..., list[Tensor]], Tensor]:
    """Draws the transform from the scene to the head model.

    Returns:
        A function from an index range along x, and a step, to the positions of these fine voxels in the head model
        (3 maps, mm); and the matrix (3, 3) from scene to head directions.
    """
    device = head.tissues.device
    matrix = torch.zeros(3, 3, device="cpu")  # small ones are cheaper there
    for scene_axis, head_axis in enumerate(PLANES[params.plane]):
        matrix[head_axis, scene_axis] = 1.0
    matrix = rotation(params.rotation_deg) @ torch.diag(1 / torch.tensor(params.scale, device="cpu")) @ matrix
    if params.flip:
        matrix = torch.diag(torch.tensor([-1.0, 1.0, 1.0], device="cpu")) @ matrix
    matrix = matrix.to(device)
    centre = _centre_mm(params, head, generator).to(device)
    extent = torch.tensor(fine, device=device) * h
    cells = tuple(max(3, int(e / 22) + 2) for e in extent.tolist())
    elastic = artefacts.smooth_noise((3, *[max(2, int(e / 4)) for e in extent.tolist()]), cells, generator, device)  # type: ignore[arg-type]
    elastic = elastic * params.elastic_mm

    def positions(start: int, stop: int, step: int = 1) -> list[Tensor]:
        x = (torch.arange(start, stop, step, device=device) + 0.5) * h[0] - extent[0] / 2
        y = (torch.arange(0, fine[1], step, device=device) + 0.5) * h[1] - extent[1] / 2
        z = (torch.arange(0, fine[2], step, device=device) + 0.5) * h[2] - extent[2] / 2
        if step == 1 and (start, stop) == (0, fine[0]):
            move = F.interpolate(elastic[None], size=fine, mode="trilinear")[0]  # ten times faster
        else:
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


def _nearest(volume: Tensor, positions: list[Tensor], voxel_mm: float, outside: float = 0) -> Tensor:
    """Samples (C, X, Y, Z) or (X, Y, Z) at positions by nearest neighbour; ``outside`` beyond the array."""
    shape = volume.shape[-3:]
    flat = torch.zeros(positions[0].shape, dtype=torch.int32, device=volume.device)
    valid = torch.ones(positions[0].shape, dtype=torch.bool, device=volume.device)
    for n, p in zip(shape, positions, strict=True):
        index = (p / voxel_mm).floor().int()
        valid &= (index >= 0) & (index < n)
        flat = flat * n + index.clamp(0, n - 1)
    values = volume.flatten(-3)[..., flat]
    return torch.where(valid, values, torch.as_tensor(outside, dtype=values.dtype, device=values.device))


def render(params: SceneParams, head: HeadModel) -> Scene:
    """Renders a scene: warps the head model, draws PVS and mimics, and averages onto the acquired grid.

    Args:
        params: Parameters of the scene.
        head: Head model; its device is that of the scene.
    """
    device = head.tissues.device
    generator = torch.Generator(device=device).manual_seed(params.seed)
    factor = oversampling(params.voxel_mm)
    x, y, z = (n * f for n, f in zip(params.shape, factor, strict=True))
    h = torch.tensor([v / f for v, f in zip(params.voxel_mm, factor, strict=True)], device=device)
    positions, matrix = _warp(params, head, (x, y, z), h, generator)

    slab = max(factor[0], (MAX_VOXELS // max(1, y * z)) // factor[0] * factor[0])
    maps = torch.stack([head.tissues, head.regions])
    tissue, region = torch.cat(
        [_nearest(maps, positions(start, min(start + slab, x)), VOXEL_MM) for start in range(0, x, slab)], 1
    )
    field = _nearest(head.field, positions(0, x, STRIDE), FIELD_MM)
    direction = torch.einsum("as,axyz->sxyz", matrix, field[:3])
    direction = direction / (direction.norm(dim=0, keepdim=True) + 1e-6)

    structures = draw_structures(params, tissue, region, direction, field[3], h, STRIDE, generator)
    arrays = _average(tissue, region, structures, factor, params.shape)
    return Scene(*arrays, voxel_mm=params.voxel_mm, histogram=head.histogram, whole_head=head.whole_head)


def _average(
    tissue: Tensor, region: Tensor, structures: dict[str, Tensor], factor: list[int], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Averages over each acquired voxel. Returns the first six fields of ``Scene``."""
    window = (factor[0], factor[1], factor[2])

    def pool(x: Tensor) -> Tensor:
        return F.avg_pool3d(x[None, None].float(), window)[0, 0]

    covers = [
        (k, structures["pvs_signal" if name == "pvs" else name])
        for k, name in enumerate(STRUCTURES, len(TISSUES))
        if name in structures
    ]
    remaining = torch.ones(tissue.shape, device=tissue.device)
    fractions = torch.zeros(len(TISSUES) + len(STRUCTURES), *shape, dtype=torch.uint8, device=tissue.device)
    for k, cover in covers:
        fractions[k] = (pool(remaining * cover) * 255).round().to(torch.uint8)
        remaining = remaining * (1 - cover)
    fractions[: len(TISSUES)] = _tissue_fractions(tissue, remaining, factor)

    fraction = pool(structures["pvs"])
    signal = structures["pvs_signal"]
    index = torch.nonzero(pool(signal).flatten() > 0)[:, 0]
    displaced = torch.zeros(len(fractions), len(index), device=tissue.device)
    if len(index):
        below = _fine_voxels(signal, factor)[index]  # fraction of the fine voxels that PVS displace
        for k, cover in covers[1:]:
            part = below * _fine_voxels(cover, factor)[index]
            displaced[k] = part.mean(1)
            below = below - part
        displaced.scatter_add_(0, _fine_voxels(tissue, factor)[index].long().T, below.T / below.shape[1])
    diameter = F.max_pool3d(structures["pvs_diameter"][None, None], window)[0, 0]
    middle = region[factor[0] // 2 :: factor[0], factor[1] // 2 :: factor[1], factor[2] // 2 :: factor[2]]
    return (
        fractions,
        (fraction * 255).round().to(torch.uint8),
        index.to(torch.int32),
        displaced.half(),
        (diameter / DIAMETER_UNIT_MM).round().clamp(max=255).to(torch.uint8),
        middle.contiguous(),
    )


def _tissue_fractions(tissue: Tensor, remaining: Tensor, factor: list[int]) -> Tensor:
    """Computes the fraction of each tissue that no structure covers: uint8 (tissues, X, Y, Z), 255 = the whole voxel.

    Integers are summed, so that the result does not depend on the order of the summation.
    """
    x, y, z = (n // f for n, f in zip(tissue.shape, factor, strict=True))
    voxel = [torch.arange(n, device=tissue.device) // f for n, f in zip(tissue.shape, factor, strict=True)]
    index = (voxel[0][:, None, None] * y + voxel[1][:, None]) * z + voxel[2]
    index = index + tissue.long() * (x * y * z)
    weight = (remaining * 4080).round()
    added = torch.bincount(index.flatten(), weight.flatten(), minlength=len(TISSUES) * x * y * z)
    return (added.reshape(len(TISSUES), x, y, z) / (16.0 * math.prod(factor))).round().to(torch.uint8)


def _fine_voxels(fine: Tensor, factor: list[int]) -> Tensor:
    """Groups fine voxels by acquired voxel: (X fx, Y fy, Z fz) to (X Y Z, fx fy fz)."""
    x, y, z = (n // f for n, f in zip(fine.shape, factor, strict=True))
    split = fine.reshape(x, factor[0], y, factor[1], z, factor[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(x * y * z, -1)

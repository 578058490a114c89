"""Grows tubes along a direction field and voxelises them with partial volume."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Distance between consecutive points of a tube.
STEP_MM = 0.3


@dataclass(frozen=True)
class Tubes:
    """N tubes as P points each.

    Attributes:
        points_mm: (N, P, 3), mm from the corner of the first fine voxel of the patch.
        radius_mm: (N, P), 0 beyond the ends and in gaps.
        relative_contrast: (N, P), signal relative to the contrast between tissue and CSF, 0 to 1.
    """

    points_mm: Tensor
    radius_mm: Tensor
    relative_contrast: Tensor


def sample_field(grid: Tensor, points_mm: Tensor, voxel_mm: Tensor) -> Tensor:
    """Samples a grid (C, X, Y, Z) at points (..., 3) by nearest neighbour, borders replicated; returns (..., C)."""
    index = (points_mm / voxel_mm).floor().long()
    size = torch.tensor(grid.shape[1:], device=grid.device)
    index = torch.minimum(index.clamp_min(0), size - 1)
    flat = (index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2]
    return grid.flatten(1)[:, flat].movedim(0, -1)


def grow_tubes(
    seeds_mm: Tensor,
    length_mm: Tensor,
    directions: Tensor,
    directions_voxel_mm: Tensor,
    tortuosity: float,
    generator: torch.Generator,
    step_mm: float = STEP_MM,
) -> tuple[Tensor, Tensor]:
    """Grows centre lines from seeds along a direction field, to both sides.

    Args:
        seeds_mm: (N, 3) seed points.
        length_mm: (N,) lengths of the tubes.
        directions: (3, x, y, z) unit vectors; a zero vector keeps the direction.
        directions_voxel_mm: (3,) voxel size of ``directions``.
        tortuosity: Standard deviation of the direction's random walk per mm, and of its initial tilt.
        generator: Random generator.
        step_mm: Distance between points.

    Returns:
        Points (N, P, 3) in mm, and their position along the tube (N, P), which is within -1 to 1 inside it.
    """
    count = seeds_mm.shape[0]
    device = seeds_mm.device
    steps = int(torch.ceil(length_mm.max() / 2 / step_mm).item()) if count else 1

    def noise(scale: float) -> Tensor:
        return torch.randn(count, 3, generator=generator, device=device) * scale

    first = sample_field(directions, seeds_mm, directions_voxel_mm) + noise(0.25 + tortuosity)
    first = first / (first.norm(dim=-1, keepdim=True) + 1e-6)
    halves = []
    for sign in (1.0, -1.0):
        position, heading = seeds_mm, sign * first
        offset = noise(tortuosity)
        walk = [position]
        for _ in range(steps):
            preferred = sample_field(directions, position, directions_voxel_mm)
            flip = torch.where((preferred * heading).sum(-1, keepdim=True) < 0, -1.0, 1.0)
            offset = 0.9 * offset + noise(tortuosity * 0.45)
            heading = 0.8 * heading + 0.2 * flip * preferred + 0.35 * offset
            heading = heading / (heading.norm(dim=-1, keepdim=True) + 1e-6)
            position = position + step_mm * heading
            walk.append(position)
        halves.append(torch.stack(walk, 1))
    points = torch.cat([halves[1].flip(1)[:, :-1], halves[0]], 1)
    along = torch.arange(-steps, steps + 1, device=device) * step_mm
    return points, along[None] / (length_mm[:, None] / 2)


def radius_profile(along: Tensor, radius_mm: Tensor, taper: Tensor, beading: Tensor, phase: Tensor) -> Tensor:
    """Computes radii (N, P) that decrease towards the ends by ``taper`` (0 to 1) and vary by ``beading``."""
    tapered = 1 - taper[:, None] * along.abs().clamp(max=1) ** 2
    beads = 1 + beading[:, None] * torch.sin(6.0 * along + phase[:, None])
    return torch.where(along.abs() <= 1, radius_mm[:, None] * tapered * beads, torch.zeros_like(along))


def sine_waves(along_mm: Tensor, period_mm: Tensor, phase: Tensor) -> Tensor:
    """Evaluates one sine wave per tube at positions (N, P) in mm; returns (N, P), -1 to 1."""
    return torch.sin(2 * torch.pi * along_mm / period_mm[:, None] + phase[:, None])


def cut_outside(tubes: Tubes, allowed: Tensor, voxel_mm: Tensor) -> Tubes:
    """Ends each tube where it first leaves ``allowed``, bool (X, Y, Z), on the way from the seed."""
    inside = sample_field(allowed[None], tubes.points_mm, voxel_mm)[..., 0]
    middle = tubes.points_mm.shape[1] // 2
    forward = inside[:, middle:].to(torch.uint8).cumprod(1)
    backward = inside[:, : middle + 1].flip(1).to(torch.uint8).cumprod(1).flip(1)
    keep = torch.cat([backward[:, :-1], forward], 1).bool()
    return replace(tubes, radius_mm=torch.where(keep, tubes.radius_mm, torch.zeros_like(tubes.radius_mm)))


def voxelise(tubes: Tubes, shape: tuple[int, int, int], voxel_mm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the partial volume of tubes in each voxel.

    The fraction at distance d from the centre line is clamp((r + h/2 - d) / h, 0, 1) with the voxel size h. The radius
    r is reduced so that the cross-section has the exact area pi r^2 (the ramp alone adds pi h^2 / 12).

    Args:
        tubes: Tubes with positions on the grid.
        shape: (X, Y, Z) of the grid.
        voxel_mm: (3,) voxel size.

    Returns:
        Three float32 maps (X, Y, Z): partial-volume fraction, the same times the relative contrast, and the diameter
        in mm of the widest tube in the voxel, 0 without tubes.
    """
    device = tubes.points_mm.device
    fraction = torch.zeros(shape, device=device).flatten()
    weighted, diameter = torch.zeros_like(fraction), torch.zeros_like(fraction)
    h = float(voxel_mm.prod() ** (1 / 3))
    alive = tubes.radius_mm > 0
    points = tubes.points_mm[alive]
    radius = (tubes.radius_mm[alive] ** 2 - h * h / 12).clamp_min((0.15 * h) ** 2).sqrt()
    contrast, width = tubes.relative_contrast[alive], 2 * tubes.radius_mm[alive]
    size = torch.tensor(shape, device=device)
    for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 9.0)):
        chosen = (radius > low) & (radius <= high)
        if not chosen.any():
            continue
        top = float(radius[chosen].max())
        reach = [int((top + h / 2) / v) + 1 for v in voxel_mm.tolist()]
        offsets = torch.cartesian_prod(*(torch.arange(-n, n + 1, device=device) for n in reach))
        for p, r, c, d in zip(
            *(values[chosen].split(20000) for values in (points, radius, contrast, width)), strict=True
        ):
            index = (p / voxel_mm).floor().long()[:, None] + offsets
            distance = ((index + 0.5) * voxel_mm - p[:, None]).norm(dim=-1)
            filled = ((r[:, None] + h / 2 - distance) / h).clamp(0, 1)
            use = (filled > 0) & (index >= 0).all(-1) & (index < size).all(-1)
            flat = ((index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2])[use]
            fraction.scatter_reduce_(0, flat, filled[use], "amax")
            weighted.scatter_reduce_(0, flat, (filled * c[:, None])[use], "amax")
            diameter.scatter_reduce_(0, flat, d[:, None].expand_as(filled)[use], "amax")
    return fraction.view(shape), weighted.view(shape), diameter.view(shape)

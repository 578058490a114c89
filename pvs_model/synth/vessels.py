"""Tubes: curved, of varying width and signal, sometimes interrupted; painted with exact partial volume."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Distance between the points of a tube.
STEP_MM = 0.3


@dataclass(frozen=True)
class Tubes:
    """Points along N tubes, P points each.

    Attributes:
        points_mm: (N, P, 3) positions in the patch, mm from the corner of its first fine voxel.
        radius_mm: (N, P) radius; 0 where the tube has ended or is interrupted.
        strength: (N, P) signal along each tube as a share of the contrast from tissue to fluid, 0 to 1.
    """

    points_mm: Tensor
    radius_mm: Tensor
    strength: Tensor


def sample_field(grid: Tensor, points_mm: Tensor, voxel_mm: Tensor) -> Tensor:
    """Nearest value of a grid (C, X, Y, Z) at points (..., 3): (..., C). Outside, the border's value."""
    index = (points_mm / voxel_mm).floor().long()
    size = torch.tensor(grid.shape[1:], device=grid.device)
    index = torch.minimum(index.clamp_min(0), size - 1)
    flat = (index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2]
    return grid.flatten(1)[:, flat].movedim(0, -1)


def grow(
    seeds_mm: Tensor,
    length_mm: Tensor,
    directions: Tensor,
    directions_voxel_mm: Tensor,
    wander: float,
    generator: torch.Generator,
    step_mm: float = STEP_MM,
) -> tuple[Tensor, Tensor]:
    """Follow a direction field both ways from each seed.

    Args:
        seeds_mm: (N, 3).
        length_mm: (N,) full length of each tube.
        directions: (3, x, y, z) unit vectors; zero vectors keep the last direction.
        directions_voxel_mm: (3,) voxel size of ``directions``.
        wander: standard deviation of the direction's random walk per mm; also of its first tilt.
        generator: source of randomness.
        step_mm: distance between points.

    Returns:
        points (N, P, 3) in mm, and position along the tube (N, P) in -1..1, beyond which it has ended.
    """
    count = seeds_mm.shape[0]
    device = seeds_mm.device
    steps = int(torch.ceil(length_mm.max() / 2 / step_mm).item()) if count else 1

    def noise(scale: float) -> Tensor:
        return torch.randn(count, 3, generator=generator, device=device) * scale

    first = sample_field(directions, seeds_mm, directions_voxel_mm) + noise(0.25 + wander)
    first = first / (first.norm(dim=-1, keepdim=True) + 1e-6)
    halves = []
    for sign in (1.0, -1.0):
        position, heading = seeds_mm, sign * first
        offset = noise(wander)
        walk = [position]
        for _ in range(steps):
            wanted = sample_field(directions, position, directions_voxel_mm)
            flip = torch.where((wanted * heading).sum(-1, keepdim=True) < 0, -1.0, 1.0)
            offset = 0.9 * offset + noise(wander * 0.45)
            heading = 0.8 * heading + 0.2 * flip * wanted + 0.35 * offset
            heading = heading / (heading.norm(dim=-1, keepdim=True) + 1e-6)
            position = position + step_mm * heading
            walk.append(position)
        halves.append(torch.stack(walk, 1))
    points = torch.cat([halves[1].flip(1)[:, :-1], halves[0]], 1)
    along = torch.arange(-steps, steps + 1, device=device) * step_mm
    return points, along[None] / (length_mm[:, None] / 2)


def profile(along: Tensor, radius_mm: Tensor, taper: Tensor, beads: Tensor, phase: Tensor) -> Tensor:
    """Radius (N, P) along each tube: thinner to the ends by ``taper`` (0 to 1), waves of height ``beads``."""
    shape = 1 - taper[:, None] * along.abs().clamp(max=1) ** 2
    waves = 1 + beads[:, None] * torch.sin(6.0 * along + phase[:, None])
    return torch.where(along.abs() <= 1, radius_mm[:, None] * shape * waves, torch.zeros_like(along))


def waves(along_mm: Tensor, period_mm: Tensor, phase: Tensor) -> Tensor:
    """A sine wave along each tube: positions (N, P) in mm, periods and phases (N,); returns (N, P), -1 to 1."""
    return torch.sin(2 * torch.pi * along_mm / period_mm[:, None] + phase[:, None])


def end_outside(tubes: Tubes, allowed: Tensor, voxel_mm: Tensor) -> Tubes:
    """Cut every tube where it first leaves ``allowed`` (bool X, Y, Z) on its way out from the seed."""
    inside = sample_field(allowed[None], tubes.points_mm, voxel_mm)[..., 0]
    middle = tubes.points_mm.shape[1] // 2
    forward = inside[:, middle:].to(torch.uint8).cumprod(1)
    backward = inside[:, : middle + 1].flip(1).to(torch.uint8).cumprod(1).flip(1)
    keep = torch.cat([backward[:, :-1], forward], 1).bool()
    return Tubes(tubes.points_mm, torch.where(keep, tubes.radius_mm, torch.zeros_like(tubes.radius_mm)), tubes.strength)


def paint(tubes: Tubes, shape: tuple[int, int, int], voxel_mm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share of each fine voxel that the tubes fill, the same times their strength, and their diameter.

    A voxel at distance d from the centre line is filled by clamp((r + h/2 - d) / h, 0, 1), h the voxel
    size; r is reduced so that the cross-section's area is pi r^2 exactly (the ramp alone adds pi h^2 / 12).

    Args:
        tubes: N tubes.
        shape: (X, Y, Z) of the fine grid.
        voxel_mm: (3,) its voxel size.

    Returns:
        coverage and strength-weighted coverage, float32 (X, Y, Z), 0 to 1; and the diameter in mm of the widest
        tube that reaches the voxel, 0 where there is none.
    """
    device = tubes.points_mm.device
    coverage = torch.zeros(shape, device=device).flatten()
    weighted, diameter = torch.zeros_like(coverage), torch.zeros_like(coverage)
    h = float(voxel_mm.prod() ** (1 / 3))
    alive = tubes.radius_mm > 0
    points = tubes.points_mm[alive]
    radius = (tubes.radius_mm[alive] ** 2 - h * h / 12).clamp_min((0.15 * h) ** 2).sqrt()
    strength, width = tubes.strength[alive], 2 * tubes.radius_mm[alive]
    size = torch.tensor(shape, device=device)
    for low, high in ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 9.0)):
        chosen = (radius > low) & (radius <= high)
        if not chosen.any():
            continue
        top = float(radius[chosen].max())
        reach = [int((top + h / 2) / v) + 1 for v in voxel_mm.tolist()]
        offsets = torch.cartesian_prod(*(torch.arange(-n, n + 1, device=device) for n in reach))
        for p, r, s, d in zip(
            *(values[chosen].split(20000) for values in (points, radius, strength, width)), strict=True
        ):
            index = (p / voxel_mm).floor().long()[:, None] + offsets
            distance = ((index + 0.5) * voxel_mm - p[:, None]).norm(dim=-1)
            filled = ((r[:, None] + h / 2 - distance) / h).clamp(0, 1)
            use = (filled > 0) & (index >= 0).all(-1) & (index < size).all(-1)
            flat = ((index[..., 0] * size[1] + index[..., 1]) * size[2] + index[..., 2])[use]
            coverage.scatter_reduce_(0, flat, filled[use], "amax")
            weighted.scatter_reduce_(0, flat, (filled * s[:, None])[use], "amax")
            diameter.scatter_reduce_(0, flat, d[:, None].expand_as(filled)[use], "amax")
    return coverage.view(shape), weighted.view(shape), diameter.view(shape)

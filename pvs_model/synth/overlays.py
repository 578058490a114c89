"""What is painted over the tissues: perivascular spaces, and the look-alikes that are never labelled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.synth import artefacts, vessels
from pvs_model.synth.anatomy import (
    BASAL_GANGLIA,
    CENTRUM_SEMIOVALE,
    OTHER_BRAIN,
    PVS_HOSTS,
    TISSUES,
    tissue_ids,
)
from pvs_model.synth.params import SceneParams


def is_in(tissue: Tensor, *names: str) -> Tensor:
    """Where a tissue map (X, Y, Z) holds one of the named tissues, bool."""
    table = torch.zeros(len(TISSUES), dtype=torch.bool, device=tissue.device)
    table[tissue_ids(*names)] = True
    return table[tissue.long()]


def _within(mask: Tensor, distance_mm: float, h: Tensor) -> Tensor:
    """Voxels no further than a distance (along each axis) from a mask."""
    near = mask[None, None].float()
    for axis, step in enumerate(h.tolist()):
        reach = round(distance_mm / step)
        kernel, pad = [1, 1, 1], [0, 0, 0]
        kernel[axis], pad[axis] = 2 * reach + 1, reach
        near = F.max_pool3d(near, kernel, stride=1, padding=pad)
    return near[0, 0] > 0


def overlays(
    p: SceneParams,
    tissue: Tensor,
    region: Tensor,
    direction: Tensor,
    to_ventricle: Tensor,
    h: Tensor,
    stride: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Coverage (fine grid, 0 to 1) of everything painted over the tissues; "pvs" also as "pvs_signal"."""
    device = tissue.device
    shape = tissue.shape
    cm3 = float(h.prod()) / 1000
    coarse_h = h * stride

    def uniform(n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, device=device)

    def spread(n: int, sd: float) -> Tensor:
        return torch.exp(sd * torch.randn(n, generator=generator, device=device))

    thinned = (slice(None, None, 2),) * 3

    def seeds(where: Tensor, per_cm3: float, clustered: bool = True) -> Tensor:
        """Random points in ``where``, denser in some places than in others."""
        candidates = torch.nonzero(where[thinned])
        expected = len(candidates) * 8 * cm3 * per_cm3
        count = int(torch.poisson(torch.tensor(float(expected), device="cpu"), generator=cpu))
        if count == 0 or len(candidates) == 0:
            return torch.zeros(0, 3, device=device)
        chosen = candidates[torch.randint(len(candidates), (3 * count,), generator=generator, device=device)]
        if clustered:
            weight = vessels.sample_field(crowd, (chosen * 2 + 0.5) * h, coarse_h)[..., 0]
            keep = torch.rand(3 * count, generator=generator, device=device) < weight
            chosen = torch.cat([chosen[keep], chosen[~keep]])
        jitter = torch.rand(count, 3, generator=generator, device=device) * 2
        return (chosen[:count] * 2 + jitter) * h

    cpu = torch.Generator().manual_seed(p.seed + 1)
    extent = (torch.tensor(shape, device=device) * h).tolist()
    cells = tuple(max(2, int(e / 12)) for e in extent)
    crowd = torch.sigmoid(2 * artefacts.smooth_noise((1, *direction.shape[1:]), cells, generator, device))  # type: ignore[arg-type]

    def tubes(
        where: Tensor, per_cm3: float, diameter: float, spread_d: float, length: float, allowed: Tensor,
        wander: float, top_mm: float = 5.0, clustered: bool = True,
    ) -> vessels.Tubes:  # fmt: skip
        start = seeds(where, per_cm3, clustered)
        n = len(start)
        if n == 0:
            empty = torch.zeros(0, 1, device=device)
            return vessels.Tubes(empty[..., None].expand(0, 1, 3), empty, empty[:, 0])
        lengths = (length * spread(n, 0.5)).clamp(1.2, 25.0)
        points, along = vessels.grow(start, lengths, direction, coarse_h, wander, generator)
        radius = vessels.profile(
            along,
            (diameter / 2 * spread(n, spread_d)).clamp(0.22, top_mm / 2),
            taper=uniform(n, 0.0, 0.6),
            beads=uniform(n, 0.0, 0.3) * (uniform(n, 0, 1) < 0.4),
            phase=uniform(n, 0.0, 6.3),
        )
        strength = (p.pvs_strength * spread(n, p.pvs_strength_spread)).clamp(0.15, 1.0)
        return vessels.end_outside(vessels.Tubes(points, radius, strength), allowed, h)

    def painted(t: vessels.Tubes) -> tuple[Tensor, Tensor]:
        return vessels.paint(t, tuple(shape), h)  # type: ignore[arg-type]

    hosts = is_in(tissue, *PVS_HOSTS)
    out: dict[str, Tensor] = {}
    coverage, signal = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    for where, density, wander in (
        ((region == CENTRUM_SEMIOVALE) & hosts, p.pvs_centrum, p.pvs_wander),
        ((region == BASAL_GANGLIA) & hosts, p.pvs_basal, p.pvs_wander + 0.1),
        ((region == OTHER_BRAIN) & hosts, p.pvs_other, p.pvs_wander + 0.1),
    ):
        if density > 0:
            grown = tubes(where, density, p.pvs_diameter_mm, p.pvs_diameter_spread, p.pvs_length_mm, hosts, wander)
            c, s = painted(grown)
            coverage, signal = torch.maximum(coverage, c), torch.maximum(signal, s)
    inside = hosts.to(coverage.dtype)
    out["pvs"], out["pvs_signal"] = coverage * inside, signal * inside

    # Look-alikes, never labelled.
    cortex = is_in(tissue, "cortex", "cerebellum_gm", "csf", "hippocampus") if p.islands else None
    if cortex is not None:
        rim = is_in(tissue, "white_matter", "cerebellum_wm")
        c, _ = painted(tubes(cortex, p.islands, 1.1, 0.45, 3.0, cortex, 0.6, clustered=False))
        out["island"] = c * (~rim)
    if p.sheets > 0:
        # Label maps of 1 mm close narrow sulci. Their depths lie in cortex, far from white matter on both sides.
        far = is_in(tissue, "cortex") & ~_within(is_in(tissue, "white_matter"), p.sheet_depth_mm, h)
        cells = tuple(max(2, int(e / 6)) for e in extent)
        rough = artefacts.smooth_noise((1, *direction.shape[1:]), cells, generator, device)  # type: ignore[arg-type]
        field = F.interpolate(rough[None], size=shape, mode="trilinear")[0, 0]
        filled = ((field + 1.6 * (2 * p.sheets - 1)) / 0.4).clamp(0, 1) * far
        out["island"] = torch.maximum(out.get("island", torch.zeros_like(filled)), filled)
    cerebellum = is_in(tissue, "cerebellum_gm") if p.folia > 0 else None
    if cerebellum is not None and cerebellum.any():
        # Label maps hold the cerebellum as one lump: thin sheets of CSF between its folia, where a field crosses 0.
        cells = tuple(max(2, int(e / mm)) for e, mm in zip(extent, (12, 6, 3), strict=True))
        rough = artefacts.smooth_noise((1, *direction.shape[1:]), cells, generator, device)  # type: ignore[arg-type]
        field = F.interpolate(rough[None], size=shape, mode="trilinear")[0, 0]
        cleft = ((p.folia - field.abs()) / 0.15).clamp(0, 1) * cerebellum
        out["island"] = torch.maximum(out.get("island", torch.zeros_like(cleft)), cleft)
    white = is_in(tissue, "white_matter")
    if p.lacunes > 0:
        start = seeds(hosts, p.lacunes, clustered=False)
        if len(start):
            r = uniform(len(start), 1.5, 5.0)
            blob = vessels.Tubes(start[:, None], r[:, None], torch.ones(len(start), device=device))
            c, _ = painted(blob)
            rim_c, _ = painted(vessels.Tubes(start[:, None], (r + 1.3)[:, None], blob.strength))
            out["lacune"], out["lesion"] = c * inside, rim_c * inside
    if p.voids > 0:
        anywhere = tissue > 0
        c, _ = painted(tubes(is_in(tissue, "white_matter", "cortex", "csf"), p.voids, 0.9, 0.4, 8.0, anywhere, 0.4))
        out["flow_void"] = c
    if p.bridges > 0:
        capsule = (region == BASAL_GANGLIA) & white
        c, _ = painted(tubes(capsule, p.bridges, 1.6, 0.3, 5.0, capsule, 0.9, clustered=False))
        out["bridge"] = c * capsule
    if p.lesion_burden > 0:
        cells = tuple(max(2, int(e / 7)) for e in extent)
        rough = artefacts.smooth_noise((1, *direction.shape[1:]), cells, generator, device)  # type: ignore[arg-type]
        near = 2.2 * torch.exp(-to_ventricle / 4.0) - 2.6 + 1.8 * p.lesion_burden
        field = F.interpolate((0.8 * rough[0] + near)[None, None], size=shape, mode="trilinear")[0, 0]
        out["lesion"] = torch.maximum(out.get("lesion", torch.zeros_like(field)), (field / 0.5).clamp(0, 1) * white)
    if p.lesion_dots > 0:
        c, _ = painted(tubes(white, p.lesion_dots, 2.2, 0.4, 1.5, white, 0.5))
        out["lesion"] = torch.maximum(out.get("lesion", torch.zeros_like(c)), c)
    return out

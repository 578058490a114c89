"""What is painted over the tissues: perivascular spaces, and mimics, which are never labelled."""

from __future__ import annotations

from dataclasses import replace

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
    if not mask.any():
        return mask
    near = mask
    for axis, step in enumerate(h.tolist()):
        reach, n = round(distance_mm / step), mask.shape[axis]
        # Voxels of the mask among those from -reach to reach: a difference of sums, whatever the reach.
        before = near.cumsum(axis, dtype=torch.int32)
        last = (torch.arange(n, device=mask.device) + reach).clamp(max=n - 1)
        first = torch.arange(n, device=mask.device) - reach - 1
        counted = before.index_select(axis, last)
        inner = first >= 0
        left = before.index_select(axis, first.clamp_min(0))
        counted = counted - left * inner.reshape([-1 if a == axis else 1 for a in range(3)])
        near = counted > 0
    return near


def _cavities(
    p: SceneParams, where: Tensor, extent: list[float], h: Tensor, generator: torch.Generator, cpu: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Old strokes: irregular holes full of fluid, 8 to 25 mm wide, and the gliosis around them; coverage of both."""
    cm3 = float(where.sum()) * float(h.prod()) / 1000
    count = int(torch.poisson(torch.tensor(cm3 * p.cavities, device="cpu"), generator=cpu))
    places = torch.nonzero(where[::4, ::4, ::4]) if count else ()
    if not len(places):
        return None
    device = where.device
    cells = tuple(max(2, int(e / 5)) for e in extent)
    rough = artefacts.smooth_noise((1, *where.shape), cells, generator, device)[0]  # type: ignore[arg-type]
    axes = [(torch.arange(n, device=device) + 0.5) * step for n, step in zip(where.shape, h.tolist(), strict=True)]
    depth = torch.full(where.shape, -10.0, device=device)  # mm inside the nearest cavity
    for _ in range(count):
        chosen = int(torch.randint(len(places), (), generator=generator, device=device))
        centre = (places[chosen] * 4 + 0.5) * h
        radius = 4.0 + 8.5 * float(torch.rand((), generator=generator, device=device))
        x, y, z = ((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        depth = torch.maximum(depth, radius - (x[:, None, None] + y[:, None] + z).sqrt())
    depth = depth + 2.0 * rough
    return depth.clamp(0, 1), (depth + 3.0).clamp(0, 1)


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
    """Coverage (fine grid, 0 to 1) of everything painted over the tissues.

    Of PVS there are three maps: "pvs" is the share that is filled, "pvs_signal" the same times the relative contrast,
    "pvs_diameter" the width in mm.
    """
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
        start: Tensor, diameter: float, spread_d: float, length: float, spread_l: float, allowed: Tensor,
        wander: float, top_mm: float = 5.0,
    ) -> vessels.Tubes:  # fmt: skip
        """Tubes grown from seeds (N, 3), cut where they leave ``allowed``; equal along their length."""
        n = len(start)
        if n == 0:
            empty = torch.zeros(0, 1, device=device)
            return vessels.Tubes(empty[..., None].expand(0, 1, 3), empty, empty)
        lengths = (length * spread(n, spread_l)).clamp(1.2, 28.0)
        points, along = vessels.grow(start, lengths, direction, coarse_h, wander, generator)
        radius = vessels.profile(
            along,
            (diameter / 2 * spread(n, spread_d)).clamp(0.22, top_mm / 2),
            taper=uniform(n, 0.0, 0.6),
            beads=uniform(n, 0.0, 0.3) * (uniform(n, 0, 1) < 0.4),
            phase=uniform(n, 0.0, 6.3),
        )
        strength = (p.pvs_strength * spread(n, p.pvs_strength_spread)).clamp(0.15, 1.0)
        grown = vessels.Tubes(points, radius, strength[:, None].expand_as(radius))
        return vessels.end_outside(grown, allowed, h)

    def varied(t: vessels.Tubes) -> vessels.Tubes:
        """Tubes whose width and signal vary along their length, some with gaps."""
        n, count = t.radius_mm.shape
        if n == 0:
            return t
        along_mm = ((torch.arange(count, device=device) - count // 2) * vessels.STEP_MM)[None]
        signal, width, gap = (
            vessels.waves(along_mm, uniform(n, low, high), uniform(n, 0, 6.3))
            for low, high in ((4.0, 14.0), (3.0, 10.0), (3.0, 9.0))
        )
        open_ = (gap < uniform(n, 0.6, 0.95)[:, None]) | (uniform(n, 0, 1) >= p.pvs_gaps)[:, None]
        radius = t.radius_mm * (1 + p.pvs_variation * 0.6 * width) * open_
        return vessels.Tubes(t.points_mm, radius, (t.strength * (1 + p.pvs_variation * signal)).clamp(0.1, 1.0))

    def bundled(start: Tensor, where: Tensor) -> Tensor:
        """The same number of seeds in bundles of about ``pvs_bundle``, a few millimetres wide, within ``where``."""
        n = len(start)
        parents = max(1, round(n / p.pvs_bundle))
        chosen = torch.randint(parents, (n,), generator=generator, device=device)
        near = start[chosen] + 1.5 * torch.randn(n, 3, generator=generator, device=device)
        size = torch.tensor(shape, device=device) * h
        inside = ((near > 0) & (near < size)).all(-1) & vessels.sample_field(where[None], near, h)[..., 0]
        return torch.where(inside[:, None], near, start)

    def painted(t: vessels.Tubes) -> tuple[Tensor, Tensor, Tensor]:
        return vessels.paint(t, tuple(shape), h)  # type: ignore[arg-type]

    hosts = is_in(tissue, *PVS_HOSTS)
    out: dict[str, Tensor] = {}
    cavity = _cavities(p, hosts, extent, h, generator, cpu)
    if cavity is not None:
        fluid, rim = cavity
        out["lacune"], out["lesion"] = fluid * hosts, rim * hosts
        hosts = hosts & (fluid == 0)
    white_matter = (region == CENTRUM_SEMIOVALE) & hosts
    basal = (region == BASAL_GANGLIA) & hosts
    beside = white_matter & _within(is_in(tissue, "putamen"), 6.0, h) if p.pvs_subinsular else white_matter
    starts = [
        (seeds(white_matter, p.pvs_centrum), p.pvs_diameter_mm, p.pvs_wander),
        (seeds(beside, p.pvs_centrum * p.pvs_subinsular), p.pvs_diameter_mm, p.pvs_wander),
        (seeds(basal, p.pvs_basal), p.pvs_basal_diameter_mm, p.pvs_wander + 0.1),
        (seeds((region == OTHER_BRAIN) & hosts, p.pvs_other), p.pvs_diameter_mm, p.pvs_wander + 0.1),
    ]
    maps = [torch.zeros(shape, device=device)] * 3
    for k, (start, diameter, wander) in enumerate(starts):
        if len(start):
            begin = bundled(start, basal) if k == 2 else start
            grown = tubes(
                begin, diameter, p.pvs_diameter_spread, p.pvs_length_mm, p.pvs_length_spread, hosts, wander
            )
            maps = [torch.maximum(a, b) for a, b in zip(maps, painted(varied(grown)), strict=True)]
    inside = hosts.to(maps[0].dtype)
    out["pvs"], out["pvs_signal"], out["pvs_diameter"] = (m * inside for m in maps)

    # Mimics, never labelled.
    cortex = is_in(tissue, "cortex", "cerebellum_gm", "csf", "hippocampus") if p.islands else None
    if cortex is not None:
        rim = is_in(tissue, "white_matter", "cerebellum_wm")
        c = painted(tubes(seeds(cortex, p.islands, clustered=False), 1.1, 0.45, 3.0, 0.5, cortex, 0.6))[0]
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
        holes = tubes(seeds(hosts, p.lacunes, clustered=False), 4.5, 0.35, 4.0, 0.5, hosts, 0.9, top_mm=9.0)
        for name, wider in (("lacune", 0.0), ("lesion", 1.3)) if len(holes.points_mm) else ():
            c = painted(replace(holes, radius_mm=holes.radius_mm + wider * (holes.radius_mm > 0)))[0] * inside
            out[name] = torch.maximum(out.get(name, torch.zeros_like(c)), c)
    if p.voids > 0:
        anywhere = tissue > 0
        start = seeds(is_in(tissue, "white_matter", "cortex", "csf"), p.voids)
        out["flow_void"] = painted(tubes(start, 0.9, 0.4, 8.0, 0.5, anywhere, 0.4))[0]
    if p.bridges > 0:
        capsule = (region == BASAL_GANGLIA) & white
        start = seeds(capsule, p.bridges, clustered=False)
        out["bridge"] = painted(tubes(start, 1.6, 0.3, 5.0, 0.5, capsule, 0.9))[0] * capsule
    if p.lesion_burden > 0:
        cells = tuple(max(2, int(e / 7)) for e in extent)
        rough = artefacts.smooth_noise((1, *direction.shape[1:]), cells, generator, device)  # type: ignore[arg-type]
        near = 2.2 * torch.exp(-to_ventricle / 4.0) - 2.6 + 1.8 * p.lesion_burden
        field = F.interpolate((0.8 * rough[0] + near)[None, None], size=shape, mode="trilinear")[0, 0]
        out["lesion"] = torch.maximum(out.get("lesion", torch.zeros_like(field)), (field / 0.5).clamp(0, 1) * white)
    if p.lesion_dots > 0:
        c = painted(tubes(seeds(white, p.lesion_dots), 2.2, 0.4, 1.5, 0.5, white, 0.5))[0]
        out["lesion"] = torch.maximum(out.get("lesion", torch.zeros_like(c)), c)
    if "lesion" in out:  # no lesion is equally bright all over
        cells = tuple(max(2, int(e / 3)) for e in extent)
        rough = artefacts.smooth_noise((1, *shape), cells, generator, device)[0]  # type: ignore[arg-type]
        out["lesion"] = out["lesion"] * (0.75 + 0.3 * rough).clamp(0.2, 1.0)
    return out

"""Draws perivascular spaces into a scene, and mimics, which are never labelled.

Mimics: stroke cavities, CSF pockets in cortex, CSF in narrow sulci and cerebellar fissures, lacunes, flow
voids, grey-matter bridges across the internal capsule, and white-matter lesions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pvs_model.simulation import artefacts
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, OTHER_BRAIN, PVS_TISSUES, TISSUES, tissue_ids
from pvs_model.simulation.parameters import SceneParams
from pvs_model.simulation.tubes import (
    STEP_MM,
    Tubes,
    cut_outside,
    grow_tubes,
    radius_profile,
    sample_field,
    sine_waves,
    voxelise,
)
from pvs_model.types import Triple


@dataclass(frozen=True)
class TubeShape:
    """Distribution of the shape of tubes: medians, spreads of their logarithms, and tortuosity."""

    diameter_mm: float
    diameter_spread: float
    length_mm: float
    length_spread: float
    tortuosity: float
    max_diameter_mm: float = 5.0


CSF_POCKET = TubeShape(1.1, 0.45, 3.0, 0.5, 0.6)
LACUNE = TubeShape(4.5, 0.35, 4.0, 0.5, 0.9, max_diameter_mm=9.0)
FLOW_VOID = TubeShape(0.9, 0.4, 8.0, 0.5, 0.4)
GREY_MATTER_BRIDGE = TubeShape(1.6, 0.3, 5.0, 0.5, 0.9)
PUNCTATE_LESION = TubeShape(2.2, 0.4, 1.5, 0.5, 0.5)
#: Width of the gliosis around a lacune.
RIM_MM = 1.3


def is_in(tissue: Tensor, *names: str) -> Tensor:
    """Returns the mask of the named tissues in a tissue map (X, Y, Z)."""
    table = torch.zeros(len(TISSUES), dtype=torch.bool, device=tissue.device)
    table[tissue_ids(*names)] = True
    return table[tissue.long()]


def _within(mask: Tensor, distance_mm: float, h: Tensor) -> Tensor:
    """Dilates a mask by a distance along each axis."""
    if not mask.any():
        return mask
    near = mask
    for axis, step in enumerate(h.tolist()):
        reach, n = round(distance_mm / step), mask.shape[axis]
        # Mask voxels from -reach to reach as a difference of cumulative sums: its cost does not depend on the reach.
        before = near.cumsum(axis, dtype=torch.int32)
        last = (torch.arange(n, device=mask.device) + reach).clamp(max=n - 1)
        first = torch.arange(n, device=mask.device) - reach - 1
        inner = (first >= 0).reshape([-1 if a == axis else 1 for a in range(3)])
        near = before.index_select(axis, last) - before.index_select(axis, first.clamp_min(0)) * inner > 0
    return near


class _Sampler:
    """Draws seeds, tubes and random fields of one scene from its generators.

    Args:
        p: Parameters of the scene.
        tissue: (X, Y, Z) tissue map on the fine grid.
        direction: (3, x, y, z) unit vectors along PVS on the coarse grid.
        h: (3,) fine voxel size in mm.
        stride: Fine voxels per coarse voxel.
        generator: Random generator on the device of the scene.
    """

    def __init__(
        self, p: SceneParams, tissue: Tensor, direction: Tensor, h: Tensor, stride: int, generator: torch.Generator
    ) -> None:
        self.p, self.tissue, self.direction, self.h, self.generator = p, tissue, direction, h, generator
        self.device, self.shape = tissue.device, tissue.shape
        self.coarse_h = h * stride
        self.counts = torch.Generator().manual_seed(p.seed + 1)  # numbers of structures, drawn on the CPU
        self.extent_mm = (torch.tensor(self.shape, device=self.device) * h).tolist()
        self.density = torch.sigmoid(2 * self.coarse_field((12, 12, 12)))

    def uniform(self, n: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=self.generator, device=self.device)

    def lognormal(self, n: int, sd: float) -> Tensor:
        return torch.exp(sd * torch.randn(n, generator=self.generator, device=self.device))

    def poisson(self, expected: float) -> int:
        return int(torch.poisson(torch.tensor(expected, device="cpu"), generator=self.counts))

    def field(self, shape: tuple[int, ...], cell_mm: Triple) -> Tensor:
        """Draws a smooth random field (1, *shape) with cells of about ``cell_mm``."""
        x, y, z = (max(2, int(e / mm)) for e, mm in zip(self.extent_mm, cell_mm, strict=True))
        return artefacts.smooth_noise((1, *shape), (x, y, z), self.generator, self.device)

    def coarse_field(self, cell_mm: Triple) -> Tensor:
        """Draws a smooth random field on the coarse grid."""
        return self.field(tuple(self.direction.shape[1:]), cell_mm)

    def refine(self, coarse: Tensor) -> Tensor:
        """Interpolates a coarse field (1, x, y, z) to (X, Y, Z)."""
        return F.interpolate(coarse[None], size=self.shape, mode="trilinear")[0, 0]

    def seeds(self, mask: Tensor, per_cm3: float, clustered: bool = True) -> Tensor:
        """Draws seeds (N, 3) in mm within a mask, optionally more in some places than in others."""
        candidates = torch.nonzero(mask[::2, ::2, ::2])
        count = self.poisson(len(candidates) * 8 * (float(self.h.prod()) / 1000) * per_cm3)
        if count == 0 or len(candidates) == 0:
            return torch.zeros(0, 3, device=self.device)
        chosen = torch.randint(len(candidates), (3 * count,), generator=self.generator, device=self.device)
        places = candidates[chosen]
        if clustered:
            weight = sample_field(self.density, (places * 2 + 0.5) * self.h, self.coarse_h)[..., 0]
            keep = torch.rand(3 * count, generator=self.generator, device=self.device) < weight
            places = torch.cat([places[keep], places[~keep]])
        jitter = torch.rand(count, 3, generator=self.generator, device=self.device) * 2
        return (places[:count] * 2 + jitter) * self.h

    def bundles(self, seeds: Tensor, mask: Tensor) -> Tensor:
        """Gathers seeds in bundles of about ``pvs_bundle``, a few millimetres wide, within a mask."""
        n = len(seeds)
        parents = max(1, round(n / self.p.pvs_bundle))
        chosen = torch.randint(parents, (n,), generator=self.generator, device=self.device)
        near = seeds[chosen] + 1.5 * torch.randn(n, 3, generator=self.generator, device=self.device)
        size = torch.tensor(self.shape, device=self.device) * self.h
        inside = ((near > 0) & (near < size)).all(-1) & sample_field(mask[None], near, self.h)[..., 0]
        return torch.where(inside[:, None], near, seeds)

    def grow(self, seeds: Tensor, shape: TubeShape, allowed: Tensor) -> Tubes:
        """Grows one tube from each seed, up to the border of ``allowed``."""
        n = len(seeds)
        if n == 0:
            empty = torch.zeros(0, 1, device=self.device)
            return Tubes(empty[..., None].expand(0, 1, 3), empty, empty)
        lengths = (shape.length_mm * self.lognormal(n, shape.length_spread)).clamp(1.2, 28.0)
        points, along = grow_tubes(seeds, lengths, self.direction, self.coarse_h, shape.tortuosity, self.generator)
        radius = radius_profile(
            along,
            (shape.diameter_mm / 2 * self.lognormal(n, shape.diameter_spread)).clamp(0.22, shape.max_diameter_mm / 2),
            taper=self.uniform(n, 0.0, 0.6),
            beading=self.uniform(n, 0.0, 0.3) * (self.uniform(n, 0, 1) < 0.4),
            phase=self.uniform(n, 0.0, 6.3),
        )
        spread = self.lognormal(n, self.p.pvs_relative_contrast_spread)
        contrast = (self.p.pvs_relative_contrast * spread).clamp(0.15, 1.0)
        return cut_outside(Tubes(points, radius, contrast[:, None].expand_as(radius)), allowed, self.h)

    def vary(self, tubes: Tubes) -> Tubes:
        """Varies width and signal along each tube, and interrupts some tubes."""
        n, count = tubes.radius_mm.shape
        if n == 0:
            return tubes
        along_mm = ((torch.arange(count, device=self.device) - count // 2) * STEP_MM)[None]
        signal, width, gap = (
            sine_waves(along_mm, self.uniform(n, low, high), self.uniform(n, 0, 6.3))
            for low, high in ((4.0, 14.0), (3.0, 10.0), (3.0, 9.0))
        )
        filled = gap < self.uniform(n, 0.6, 0.95)[:, None]
        filled = filled | (self.uniform(n, 0, 1) >= self.p.pvs_gaps)[:, None]
        radius = tubes.radius_mm * (1 + self.p.pvs_variation * 0.6 * width) * filled
        contrast = (tubes.relative_contrast * (1 + self.p.pvs_variation * signal)).clamp(0.1, 1.0)
        return Tubes(tubes.points_mm, radius, contrast)

    def voxelise(self, tubes: Tubes) -> tuple[Tensor, Tensor, Tensor]:
        x, y, z = self.shape
        return voxelise(tubes, (x, y, z), self.h)


class _Maps(dict[str, Tensor]):
    """Partial-volume fractions by structure."""

    def add(self, name: str, fraction: Tensor) -> None:
        """Adds to a structure; where two overlap, the larger fraction counts."""
        self[name] = torch.maximum(self[name], fraction) if name in self else fraction


def draw_structures(
    p: SceneParams,
    tissue: Tensor,
    region: Tensor,
    direction: Tensor,
    to_ventricle: Tensor,
    h: Tensor,
    stride: int,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Draws PVS and mimics as partial-volume fractions on the fine grid.

    Args:
        p: Parameters of the scene.
        tissue: (X, Y, Z), index into ``TISSUES``.
        region: (X, Y, Z), ``NO_REGION`` to ``OTHER_BRAIN``.
        direction: (3, x, y, z) unit vectors along PVS on the coarse grid.
        to_ventricle: (x, y, z) distance to the ventricles in mm.
        h: (3,) fine voxel size in mm.
        stride: Fine voxels per coarse voxel.
        generator: Random generator on the device of the maps.

    Returns:
        Fractions (X, Y, Z), 0 to 1, by name. PVS have three maps: "pvs" is the fraction, "pvs_signal" the fraction
        times the relative contrast, "pvs_diameter" the diameter in mm.
    """
    sampler = _Sampler(p, tissue, direction, h, stride, generator)
    maps = _Maps()
    allowed = _draw_stroke_cavities(sampler, maps, is_in(tissue, *PVS_TISSUES))
    _draw_pvs(sampler, maps, region, allowed)
    _draw_csf_mimics(sampler, maps)
    _draw_tubular_mimics(sampler, maps, region, allowed)
    _draw_lesions(sampler, maps, to_ventricle)
    return maps


def _draw_stroke_cavities(s: _Sampler, maps: _Maps, allowed: Tensor) -> Tensor:
    """Draws old strokes: irregular cavities of 8 to 25 mm with a gliotic rim. Returns the tissue that is left."""
    cm3 = float(allowed.sum()) * float(s.h.prod()) / 1000
    count = s.poisson(cm3 * s.p.stroke_cavities)
    places = torch.nonzero(allowed[::4, ::4, ::4]) if count else ()
    if not len(places):
        return allowed
    rough = s.field(tuple(s.shape), (5, 5, 5))[0]
    axes = [(torch.arange(n, device=s.device) + 0.5) * step for n, step in zip(s.shape, s.h.tolist(), strict=True)]
    depth = torch.full(s.shape, -10.0, device=s.device)  # mm below the surface of the nearest cavity
    for _ in range(count):
        chosen = int(torch.randint(len(places), (), generator=s.generator, device=s.device))
        centre = (places[chosen] * 4 + 0.5) * s.h
        radius = 4.0 + 8.5 * float(torch.rand((), generator=s.generator, device=s.device))
        x, y, z = ((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        depth = torch.maximum(depth, radius - (x[:, None, None] + y[:, None] + z).sqrt())
    depth = depth + 2.0 * rough
    fluid = depth.clamp(0, 1)
    maps.add("lacune", fluid * allowed)
    maps.add("lesion", (depth + 3.0).clamp(0, 1) * allowed)
    return allowed & (fluid == 0)


def _draw_pvs(s: _Sampler, maps: _Maps, region: Tensor, allowed: Tensor) -> None:
    """Draws PVS of white matter, beside the putamen, of the basal ganglia and of the remaining brain."""
    p = s.p
    white_matter = (region == CENTRUM_SEMIOVALE) & allowed
    basal = (region == BASAL_GANGLIA) & allowed
    beside = white_matter & _within(is_in(s.tissue, "putamen"), 6.0, s.h) if p.pvs_subinsular else white_matter
    shape = TubeShape(p.pvs_diameter_mm, p.pvs_diameter_spread, p.pvs_length_mm, p.pvs_length_spread, p.pvs_tortuosity)
    basal_shape = replace(shape, diameter_mm=p.pvs_basal_diameter_mm, tortuosity=p.pvs_tortuosity + 0.1)
    groups = [
        (s.seeds(white_matter, p.pvs_centrum), shape),
        (s.seeds(beside, p.pvs_centrum * p.pvs_subinsular), shape),
        (s.seeds(basal, p.pvs_basal), basal_shape),
        (s.seeds((region == OTHER_BRAIN) & allowed, p.pvs_other), replace(shape, tortuosity=basal_shape.tortuosity)),
    ]
    fields = [torch.zeros(s.shape, device=s.device)] * 3
    for seeds, tube_shape in groups:
        if len(seeds):
            start = s.bundles(seeds, basal) if tube_shape is basal_shape else seeds
            drawn = s.voxelise(s.vary(s.grow(start, tube_shape, allowed)))
            fields = [torch.maximum(a, b) for a, b in zip(fields, drawn, strict=True)]
    inside = allowed.to(fields[0].dtype)
    for name, values in zip(("pvs", "pvs_signal", "pvs_diameter"), fields, strict=True):
        maps[name] = values * inside


def _draw_csf_mimics(s: _Sampler, maps: _Maps) -> None:
    """Draws CSF pockets in cortex, and CSF in sulci and cerebellar fissures that 1 mm label maps close."""
    p = s.p
    if p.csf_pockets:
        cortex = is_in(s.tissue, "cortex", "cerebellum_gm", "csf", "hippocampus")
        white = is_in(s.tissue, "white_matter", "cerebellum_wm")
        seeds = s.seeds(cortex, p.csf_pockets, clustered=False)
        maps.add("csf_pocket", s.voxelise(s.grow(seeds, CSF_POCKET, cortex))[0] * (~white))
    if p.sulcal_csf > 0:
        # The depths of sulci are cortex that is far from white matter on both sides.
        deep = is_in(s.tissue, "cortex") & ~_within(is_in(s.tissue, "white_matter"), p.sulcal_depth_mm, s.h)
        field = s.refine(s.coarse_field((6, 6, 6)))
        maps.add("csf_pocket", ((field + 1.6 * (2 * p.sulcal_csf - 1)) / 0.4).clamp(0, 1) * deep)
    if p.cerebellar_fissures > 0:
        cerebellum = is_in(s.tissue, "cerebellum_gm")
        if cerebellum.any():  # thin layers of CSF along the zero crossings of a random field
            field = s.refine(s.coarse_field((12, 6, 3)))
            maps.add("csf_pocket", ((p.cerebellar_fissures - field.abs()) / 0.15).clamp(0, 1) * cerebellum)


def _draw_tubular_mimics(s: _Sampler, maps: _Maps, region: Tensor, allowed: Tensor) -> None:
    """Draws lacunes with a gliotic rim, flow voids, and grey-matter bridges across the internal capsule."""
    p = s.p
    if p.lacunes > 0:
        holes = s.grow(s.seeds(allowed, p.lacunes, clustered=False), LACUNE, allowed)
        for name, margin in (("lacune", 0.0), ("lesion", RIM_MM)) if len(holes.points_mm) else ():
            wider = replace(holes, radius_mm=holes.radius_mm + margin * (holes.radius_mm > 0))
            maps.add(name, s.voxelise(wider)[0] * allowed.to(torch.float32))
    if p.flow_voids > 0:
        seeds = s.seeds(is_in(s.tissue, "white_matter", "cortex", "csf"), p.flow_voids)
        maps.add("flow_void", s.voxelise(s.grow(seeds, FLOW_VOID, s.tissue > 0))[0])
    if p.grey_matter_bridges > 0:
        capsule = (region == BASAL_GANGLIA) & is_in(s.tissue, "white_matter")
        seeds = s.seeds(capsule, p.grey_matter_bridges, clustered=False)
        maps.add("grey_matter_bridge", s.voxelise(s.grow(seeds, GREY_MATTER_BRIDGE, capsule))[0] * capsule)


def _draw_lesions(s: _Sampler, maps: _Maps, to_ventricle: Tensor) -> None:
    """Draws white-matter lesions, confluent ones mostly near the ventricles, and gives all lesions texture."""
    p = s.p
    white = is_in(s.tissue, "white_matter")
    if p.lesion_burden > 0:
        near = 2.2 * torch.exp(-to_ventricle / 4.0) - 2.6 + 1.8 * p.lesion_burden
        field = s.refine(0.8 * s.coarse_field((7, 7, 7)) + near)
        maps.add("lesion", (field / 0.5).clamp(0, 1) * white)
    if p.punctate_lesions > 0:
        seeds = s.seeds(white, p.punctate_lesions)
        maps.add("lesion", s.voxelise(s.grow(seeds, PUNCTATE_LESION, white))[0])
    if "lesion" in maps:
        rough = s.field(tuple(s.shape), (3, 3, 3))[0]
        maps["lesion"] = maps["lesion"] * (0.75 + 0.3 * rough).clamp(0.2, 1.0)

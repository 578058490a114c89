"""The regions of an anatomy in which the PVS of a mask are measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.burden.counts import SIDES, region_map
from pvs_model.burden.measure import measure
from pvs_model.burden.ratings import SLAB_MM
from pvs_model.burden.records import ALL, LEFT, RIGHT, Burden
from pvs_model.burden.subregions import CSO, WhiteMatterParts, white_matter_parts
from pvs_model.types import Affine, FloatArray, Grid, Mask, Region
from pvs_model.volume.geometry import to_ras_grid

#: Regions by their names in tables, in the order of their rows, with their names in the parcellation.
REGIONS = {
    "WM": "WM",
    **{region.table_name: region.value for region in (Region.BG, Region.HIPPOCAMPUS, Region.MIDBRAIN)},
}
#: Largest distance from a PVS voxel outside all regions to the region it is counted in, mm: PVS of the white matter
#: reach into the cortex, and one as bright as fluid may be labelled as fluid.
NEAR_MM = 2.0
NO_CSO = "The roofs of the lateral ventricles are not in the parcellation: the centrum semiovale (CSO) is not measured."


def burden_of(
    mask: Mask,
    affine: Affine,
    anatomy: Anatomy | None,
    pvs_fraction: FloatArray | None = None,
    parts: WhiteMatterParts | None = None,
) -> Burden:
    """Measures a mask in the regions of its anatomy and in the parts of its white matter.

    Without an anatomy it is measured in the whole image only.

    Args:
        mask: (x, y, z), PVS where not 0.
        affine: (4, 4), voxel index to RAS mm.
        anatomy: Parcellation on the same grid, or None.
        pvs_fraction: PVS fractions (x, y, z), 0 to 1, or None.
        parts: Those of the anatomy's white matter; computed if None.
    """
    if anatomy is None:
        return measure(mask, {}, affine, pvs_fraction=pvs_fraction)
    sides = np.zeros(mask.shape, np.uint8)
    for side, letter in ((LEFT, "L"), (RIGHT, "R")):
        sides[np.isin(anatomy.labels, values_of(f"{letter}-intracranial"))] = SIDES[side]
    where = regions_of(mask, affine, anatomy)
    regions = {name: where == value for value, name in enumerate(REGIONS, 1)}
    parts = parts or white_matter_parts(anatomy, affine)
    x, y, z = mask.shape
    section = parts.rated_section(max(SLAB_MM, to_ras_grid(Grid((x, y, z), affine))[0].spacing_mm[2]))
    burden = measure(
        mask,
        regions | {ALL: anatomy.mask("parenchyma") | (where > 0)},
        affine,
        anatomy.mask("intracranial"),
        sides,
        pvs_fraction,
        parts.masks(regions["WM"]),
        {} if section is None else {CSO: section},
    )
    return burden if parts.height_mm is not None else replace(burden, warnings=(*burden.warnings, NO_CSO))


def regions_of(mask: Mask, affine: Affine, anatomy: Anatomy) -> Mask:
    """Returns a map of ``REGIONS``, 1, 2, ... in their order, in which the PVS of a mask are counted."""
    where = region_map({name: anatomy.mask(region) for name, region in REGIONS.items()}, mask.shape)
    return nearest_region(mask, where, np.linalg.norm(affine[:3, :3], axis=0))


def nearest_region(mask: Mask, where: Mask, spacing_mm: FloatArray) -> Mask:
    """Assigns the voxels of a mask outside all regions to the nearest region within ``NEAR_MM``.

    Args:
        mask: uint8 (x, y, z), 0 and 1.
        where: Region map, uint8 (x, y, z), 0 outside all regions.
        spacing_mm: Voxel size, (3,).

    Returns:
        The extended region map.
    """
    out = where.copy()
    reach = [range(-int(NEAR_MM / s), int(NEAR_MM / s) + 1) for s in spacing_mm]
    offsets = np.stack(np.meshgrid(*reach, indexing="ij"), -1).reshape(-1, 3)
    distances = np.linalg.norm(offsets * spacing_mm, axis=1)
    order = np.argsort(distances, kind="stable")
    left = np.argwhere((mask != 0) & (where == 0))
    for offset in offsets[order[distances[order] <= NEAR_MM]]:
        neighbours = left + offset
        inside = ((neighbours >= 0) & (neighbours < where.shape)).all(1)
        values = np.zeros(len(left), where.dtype)
        values[inside] = where[tuple(neighbours[inside].T)]
        out[tuple(left[values > 0].T)] = values[values > 0]
        left = left[values == 0]
    return out

"""Measures the burden of one case from a mask, its regions and its grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pvs_model.burden.counts import SIDES, region_burden, region_map, region_of, side_of, voxels_by_region
from pvs_model.burden.morphology import shape_of, voxel_volume_mm3
from pvs_model.burden.ratings import estimate, slices_per_slab
from pvs_model.burden.records import ALL, BOTH, OTHER, Burden, Pvs, RegionBurden
from pvs_model.config import is_thick
from pvs_model.types import Affine, AnyArray, BoolArray, Grid
from pvs_model.volume.components import label_components
from pvs_model.volume.geometry import crop_to, to_ras_grid

#: Smallest PVS fraction that is part of the expected fluid. Networks leave less than this nearly everywhere, a fifth of
#: the sum; chosen on held-out simulated heads (docs/burden.md).
MIN_FRACTION = 0.002
#: Largest number of regions that a map of regions and sides holds in bytes.
_MAX_REGIONS = 84


def measure(
    mask: AnyArray,
    regions: Mapping[str, AnyArray],
    affine: Affine,
    intracranial: AnyArray | None = None,
    hemispheres: AnyArray | None = None,
    pvs_fraction: AnyArray | None = None,
    parts: Mapping[str, AnyArray] | None = None,
    potter_sections: Mapping[str, AnyArray] | None = None,
) -> Burden:
    """Counts, measures and rates the PVS of a mask. All arrays lie on one grid, in any order of its axes.

    Args:
        mask: (x, y, z), PVS where not 0; may be empty.
        regions: Names -> masks (x, y, z), in the order of the rows. "BG", "CSO", "WM" and "midbrain" get estimated
            scores.
            A mask named "all" only gives the volume of the whole: PVS are counted everywhere in any case.
        affine: (4, 4), voxel index to RAS mm.
        intracranial: (x, y, z), inside of the skull where not 0; None where it is unknown: then PVSnm is, too. An
            empty one counts as unknown.
        hemispheres: (x, y, z), 1 left, 2 right, 0 neither; None where sides are unknown: then rows of sides and
            Potter scores are left out.
        pvs_fraction: (x, y, z), share of each voxel that PVS fill, 0 to 1, as the networks estimate it; None where
            unknown: then volumes of fluid are left out.
        parts: Names -> masks (x, y, z) of parts of the regions, which may overlap; they have rows of their own after
            those of the regions. A PVS counts in every part that has at least half of its voxels.
        potter_sections: Names of regions or parts -> masks (x, y, z) of the section on which the Potter score counts
            the PVS of this region; without one it is the slab with most of them.

    Raises:
        ValueError: arrays of unequal shape or not of three axes, an affine that is not a finite, invertible (4, 4), a
            region without a name or named "other", or other values than 0, 1 and 2 for hemispheres.
    """
    parts, potter_sections = parts or {}, potter_sections or {}
    grid = _checked(mask, regions, affine, intracranial, hemispheres, pvs_fraction, parts, potter_sections)
    grid, reorientation = to_ras_grid(grid)
    names = [name for name in regions if name != ALL]
    oriented = {name: reorientation.apply(region) != 0 for name, region in regions.items()}
    arrays = _Arrays(
        mask=reorientation.apply(mask) != 0,
        names=names,
        regions=region_map({name: oriented[name] for name in names}, grid.shape),
        whole=oriented.get(ALL),
        sides=None if hemispheres is None else reorientation.apply(hemispheres).astype(np.uint8),
        pvs_fraction=None if pvs_fraction is None else reorientation.apply(pvs_fraction),
        parts={name: reorientation.apply(part) != 0 for name, part in parts.items()},
        sections={name: reorientation.apply(section) != 0 for name, section in potter_sections.items()},
    )
    voxel_mm3 = voxel_volume_mm3(grid.affine)
    intracranial_mm3 = None if intracranial is None else voxel_mm3 * int(np.count_nonzero(intracranial)) or None
    pvs = _every_pvs(arrays, grid.affine)
    slices, sides_known = slices_per_slab(grid.spacing_mm[2]), hemispheres is not None
    return Burden(
        pvs=pvs,
        regions=tuple(_rows(pvs, arrays, voxel_mm3, intracranial_mm3)),
        scores=estimate(pvs, [*names, *parts], slices, sides_known, tuple(potter_sections)),
        spacing_mm=grid.spacing_mm,
        slices_per_slab=slices,
        warnings=_warnings(grid, intracranial_mm3, sides_known),
    )


@dataclass(frozen=True)
class _Arrays:
    """The arrays (x, y, z) of a measurement, with RAS+ axes.

    Attributes:
        mask: PVS.
        names: Names of the regions.
        regions: Number of each voxel's region, 1, 2, ... in the order of names, 0 elsewhere.
        whole: Mask named ``ALL``, if any.
        sides: 1 left, 2 right, 0 neither; None where sides are unknown.
        pvs_fraction: Share of each voxel that PVS fill; None where unknown.
        parts: Masks of parts of the regions by name.
        sections: Masks of sections for the Potter score by name.
    """

    mask: BoolArray
    names: list[str]
    regions: npt.NDArray[np.uint8]
    whole: BoolArray | None
    sides: npt.NDArray[np.uint8] | None
    pvs_fraction: AnyArray | None
    parts: dict[str, BoolArray]
    sections: dict[str, BoolArray]


class _Volumes(NamedTuple):
    """Volumes of a region, mm3: of its PVS, its own, and of its expected fluid, each on neither side, left, right."""

    pvs: AnyArray
    region: AnyArray
    fluid: AnyArray


def _rows(
    pvs: tuple[Pvs, ...], arrays: _Arrays, voxel_mm3: float, intracranial_mm3: float | None
) -> Iterator[RegionBurden]:
    """Yields a row per region, part and ``ALL``, and per side where sides are known."""
    predicted = arrays.pvs_fraction is not None
    for name, volumes in _volumes(arrays, voxel_mm3).items():
        for side in (BOTH,) if arrays.sides is None else (BOTH, *SIDES):
            if side != BOTH and volumes.region.sum() > 0 and not volumes.region[1:].any():
                continue  # a region in the middle, of which no side is known
            columns = slice(None) if side == BOTH else SIDES[side]
            pvs_mm3, region_mm3, fluid_mm3 = (float(values[columns].sum()) for values in volumes)
            known_mm3 = None if np.isnan(region_mm3) else region_mm3
            # Without regions it would be a sum over the background, where small fractions are many.
            expected_mm3 = fluid_mm3 if predicted and arrays.names else None
            yield region_burden(pvs, name, side, pvs_mm3, known_mm3, intracranial_mm3, expected_mm3, predicted)


def _volumes(arrays: _Arrays, voxel_mm3: float) -> dict[str, _Volumes]:
    """Returns the volumes of every region, every part, and ``ALL``, by name."""
    inside, sides = np.nonzero(arrays.mask), arrays.sides
    sides_of_pvs = None if sides is None else sides[inside]

    def fluid(part: BoolArray) -> npt.NDArray[np.float64]:
        fraction = arrays.pvs_fraction
        return np.zeros(3) if fraction is None else voxel_mm3 * _expected_voxels(fraction, part, sides)

    of_pvs = voxel_mm3 * voxels_by_region(arrays.regions[inside], sides_of_pvs, arrays.names)
    of_region = voxel_mm3 * voxels_by_region(arrays.regions, sides, arrays.names)
    volumes = {
        name: _Volumes(of_pvs[number], of_region[number], fluid(arrays.regions == number))
        for number, name in enumerate(arrays.names, 1)
    }
    for name, part in arrays.parts.items():
        pvs_mm3 = voxel_mm3 * _voxels(part[inside], sides_of_pvs)
        volumes[name] = _Volumes(pvs_mm3, voxel_mm3 * _voxels(part, sides), fluid(part))
    of_all = np.full(3, np.nan) if arrays.whole is None else voxel_mm3 * _voxels(arrays.whole, sides)
    volumes[ALL] = _Volumes(of_pvs.sum(0), of_all, fluid(arrays.regions > 0))
    return volumes


def _every_pvs(arrays: _Arrays, affine: Affine) -> tuple[Pvs, ...]:
    """Returns the PVS of the mask; ``affine`` maps its voxels to RAS mm."""
    from scipy import ndimage

    if not arrays.mask.any():
        return ()
    box = crop_to(arrays.mask)
    labels, _ = label_components(box.apply(arrays.mask))
    corner = [part.start for part in box.slices]
    fraction, sides = arrays.pvs_fraction, arrays.sides
    volumes = None if fraction is None else _fluid_volumes(labels, fraction, corner, affine)
    pvs = []
    for number, part in enumerate(ndimage.find_objects(labels), 1):
        cluster = labels[part] == number
        first = np.array([low + s.start for low, s in zip(corner, part, strict=True)])
        placed = affine.astype(np.float64)
        placed[:3, 3] += placed[:3, :3] @ first
        here = tuple(slice(int(low), int(low) + n) for low, n in zip(first, cluster.shape, strict=True))
        pvs.append(
            Pvs(
                number,
                region=region_of(arrays.regions[here][cluster], arrays.names),
                hemisphere=None if sides is None else side_of(sides[here][cluster]),
                shape=shape_of(cluster, placed),
                slices=(int(first[2]), int(first[2]) + cluster.shape[2] - 1),
                fluid_mm3=None if volumes is None else float(volumes[number - 1]),
                parts=tuple(name for name, piece in arrays.parts.items() if piece[here][cluster].mean() >= 0.5),
                potter_sections=tuple(
                    name for name, section in arrays.sections.items() if section[here][cluster].any()
                ),
            )
        )
    return tuple(pvs)


def _fluid_volumes(labels: AnyArray, pvs_fraction: AnyArray, corner: list[int], affine: Affine) -> AnyArray:
    """Sums the PVS fraction over each cluster 1, 2, ... dilated by one voxel, in mm3.

    Part of a PVS lies in voxels that are not marked. Clusters are not dilated across thick slices, where the next voxel
    is too far away. A voxel that two clusters reach goes to the one with the larger number.

    Args:
        labels: (x, y, z), clusters within a box.
        pvs_fraction: PVS fractions of the whole grid.
        corner: First voxel of the box in the grid.
        affine: (4, 4), voxel index of the grid to RAS mm.
    """
    from scipy import ndimage

    reach = [int(not is_thick(spacing)) for spacing in np.linalg.norm(affine[:3, :3], axis=0)]
    low = [min(r, c) for r, c in zip(reach, corner, strict=True)]
    ends = [c + n for c, n in zip(corner, labels.shape, strict=True)]
    high = [min(r, n - end) for r, n, end in zip(reach, pvs_fraction.shape, ends, strict=True)]
    padded = np.pad(labels, list(zip(low, high, strict=True)))
    grown = np.where(padded > 0, padded, ndimage.maximum_filter(padded, [2 * r + 1 for r in reach], mode="constant"))
    box = tuple(slice(c - a, end + b) for c, a, end, b in zip(corner, low, ends, high, strict=True))
    sums = np.bincount(grown.ravel(), weights=pvs_fraction[box].ravel())
    volumes: AnyArray = sums[1:] * voxel_volume_mm3(affine)
    return volumes


def _voxels(whole: BoolArray, sides: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.int64]:
    """Counts the voxels of a mask by side: neither, left, right; all neither where sides are unknown."""
    return voxels_by_region(whole.astype(np.uint8), sides, [ALL])[1]


def _expected_voxels(
    pvs_fraction: AnyArray, part: BoolArray, sides: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.float64]:
    """Sums the PVS fraction in a part of the grid by side: neither, left, right; all neither where sides are unknown.

    The fraction is trained with a proper scoring rule, so its sum estimates the volume of PVS whether or not they reach
    the threshold of the mask.
    """
    counted = part & (pvs_fraction >= MIN_FRACTION)
    side = np.zeros(int(counted.sum()), np.uint8) if sides is None else sides[counted]
    return np.bincount(side, weights=pvs_fraction[counted], minlength=3).astype(np.float64)


def _warnings(grid: Grid, head: float | None, sides: bool) -> tuple[str, ...]:
    warnings = []
    thick = max(grid.spacing_mm)
    if is_thick(thick):
        warnings.append(f"Slices of {thick:g} mm: volumes and widths of PVS are overestimated, directions uncertain.")
    if not sides:
        warnings.append("Left and right are unknown: no estimated Potter scores of BG and CSO.")
    if head is None:
        warnings.append("The intracranial volume is unknown: no PVSnm.")
    return tuple(warnings)


def _checked(
    mask: AnyArray,
    regions: Mapping[str, AnyArray],
    affine: Affine,
    intracranial: AnyArray | None,
    hemispheres: AnyArray | None,
    pvs_fraction: AnyArray | None,
    parts: Mapping[str, AnyArray],
    potter_sections: Mapping[str, AnyArray],
) -> Grid:
    """Returns the grid of the mask after checking all arguments against it."""
    if mask.ndim != 3:
        raise ValueError(f"expected a mask (x, y, z), got {mask.ndim} axes")
    sections = {f"rated section of {name}": section for name, section in potter_sections.items()}
    whole = {"intracranial mask": intracranial, "map of hemispheres": hemispheres, "PVS fraction": pvs_fraction}
    arrays = {**regions, **parts, **sections, **whole}
    for name, array in arrays.items():
        if array is not None and array.shape != mask.shape:
            raise ValueError(f"{name}: expected the shape of the mask, {mask.shape}, got {array.shape}")
    if set(parts) & {*regions, ALL}:
        raise ValueError(f"expected parts with other names than the regions, got {', '.join(parts)}")
    if any(not name or name == OTHER for name in (*regions, *parts)) or len(regions) > _MAX_REGIONS:
        raise ValueError(f"expected up to {_MAX_REGIONS} regions with names, none of them {OTHER!r}")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or voxel_volume_mm3(affine) == 0:
        raise ValueError("expected a finite, invertible affine (4, 4)")
    if hemispheres is not None and (hemispheres != hemispheres.clip(0, 2).astype(np.uint8)).any():
        raise ValueError("expected 0, 1 (left) and 2 (right) as values of hemispheres")
    x, y, z = mask.shape
    return Grid((x, y, z), affine)

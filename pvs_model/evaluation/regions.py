"""Regions in which a case is scored: given masks, estimates of the anatomy network, or the challenge's boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.evaluation.file_matching import CaseFiles
from pvs_model.types import CHALLENGE_REGIONS, BoolArray, Region
from pvs_model.volume import io
from pvs_model.volume.masks import MaskImage, aligned, read_region

#: Sources of region masks besides a folder: the boxes of the challenge's script, or none.
BOXES, NO_REGIONS = "boxes", "none"
#: Regions in the order of tables; "all" is the whole image.
REGION_ORDER = (*CHALLENGE_REGIONS, "all")


@dataclass(frozen=True)
class Regions:
    """The source of region masks.

    Attributes:
        way: ``BOXES``, ``NO_REGIONS``, or None for the masks of each case.
        weights: Weights folder with the anatomy network, for cases without masks; None to do without.
    """

    way: str | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class RegionMasks:
    """Masks (x, y, z) in RAS+ order by region, and the image from which they were estimated, if any."""

    masks: Mapping[str, BoolArray]
    estimated_from: Path | None = None


def regions_of(case: CaseFiles, reference: MaskImage, regions: Regions) -> RegionMasks:
    """Returns the regions of a case on the grid of its reference mask; none without a source.

    Raises:
        PVSError: a mask cannot be read or lies on another grid, or the anatomy network finds no brain.
    """
    if regions.way == NO_REGIONS:
        return RegionMasks({})
    if regions.way == BOXES:
        stored = boxes(reference.grid.shape)
        return RegionMasks(
            {name: _on(reference, MaskImage(box, reference.grid, reference.source)) for name, box in stored.items()}
        )
    if case.regions:
        return RegionMasks({name: _on(reference, read_region(paths)) for name, paths in case.regions.items()})
    image = image_for_regions(case, reference, regions)
    if image is None or regions.weights is None:
        return RegionMasks({})
    from pvs_model.anatomy.inference import find_regions

    volume = io.read(image)
    anatomy = find_regions(volume, regions.weights)
    masks = {name: MaskImage(anatomy.mask(name), volume.grid, image) for name in CHALLENGE_REGIONS}
    return RegionMasks({name: _on(reference, mask) for name, mask in masks.items()}, image)


def image_for_regions(case: CaseFiles, reference: MaskImage, regions: Regions) -> Path | None:
    """Returns the image of a case on the grid of its reference mask, where there are weights to estimate regions."""
    if regions.weights is None:
        return None
    for path in case.images.values():
        try:
            grid = io.read_grid(path)
            _on(reference, MaskImage(np.broadcast_to(np.False_, grid.shape), grid, path))
        except VolumeError:
            continue
        return path
    return None


def boxes(shape: tuple[int, int, int]) -> dict[str, BoolArray]:
    """Returns the regions of the challenge's test script without an atlas: boxes of the stored array (x, y, z).

    BG is the middle seventh of x and y and the middle ninth of z, CSO the middle three sevenths and three ninths
    around it.
    """
    out = {}
    for region, low, high in ((Region.CSO.value, (2, 2, 3), (5, 5, 6)), (Region.BG.value, (3, 3, 4), (4, 4, 5))):
        out[region] = np.zeros(shape, bool)
        box = tuple(slice(a * n // p, b * n // p) for a, b, p, n in zip(low, high, (7, 7, 9), shape, strict=True))
        out[region][box] = True
    out[Region.CSO] &= ~out[Region.BG]
    return out


def _on(reference: MaskImage, mask: MaskImage) -> BoolArray:
    return aligned(mask, reference.grid, reference.source)

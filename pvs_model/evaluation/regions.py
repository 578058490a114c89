"""The regions that a case is scored in: masks of the user's, our anatomy network's, or the challenge's boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pvs_model.errors import VolumeError
from pvs_model.evaluation.metrics import Bool
from pvs_model.evaluation.pairs import Pair
from pvs_model.volume import io
from pvs_model.volume.masks import MaskImage, aligned, read_region

#: Where region masks come from, besides a folder: the boxes of the challenge's script, or nowhere.
BOXES, NO_REGIONS = "boxes", "none"
#: What is scored, in the order of tables; "all" is the whole image.
REGION_ORDER = ("CSO", "BG", "all")


@dataclass(frozen=True)
class Regions:
    """Where to take regions from.

    Attributes:
        way: ``BOXES``, ``NO_REGIONS``, or None for the masks of each case.
        weights: weights folder with the anatomy network, for cases without masks; None to do without.
    """

    way: str | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class Found:
    """Masks (x, y, z) in RAS+ order by region, and the image that they were estimated from, if they were."""

    masks: Mapping[str, Bool]
    estimated_from: Path | None = None


def regions_of(pair: Pair, true: MaskImage, regions: Regions) -> Found:
    """The regions of a case on the grid of its truth; none where there is nothing to take them from.

    Raises:
        PVSError: a mask cannot be read or lies on another grid, or the anatomy network finds no brain.
    """
    if regions.way == NO_REGIONS:
        return Found({})
    if regions.way == BOXES:
        stored = boxes(true.grid.shape)
        return Found({name: _on(true, MaskImage(box, true.grid, true.source)) for name, box in stored.items()})
    if pair.regions:
        return Found({name: _on(true, read_region(paths)) for name, paths in pair.regions.items()})
    image = can_be_estimated(pair, true, regions)
    if image is None:
        return Found({})
    from pvs_model.anatomy.predict import find_regions

    if regions.weights is None:
        return Found({})
    volume = io.read(image)
    anatomy = find_regions(volume, regions.weights)
    masks = {name: MaskImage(anatomy.mask(name), volume.grid, image) for name in ("CSO", "BG")}
    return Found({name: _on(true, mask) for name, mask in masks.items()}, image)


def can_be_estimated(pair: Pair, true: MaskImage, regions: Regions) -> Path | None:
    """The image of a case that lies on the grid of its truth, where there are weights to find regions with."""
    if regions.weights is None:
        return None
    for path in pair.images.values():
        try:
            grid = io.read_grid(path)
            _on(true, MaskImage(np.broadcast_to(np.False_, grid.shape), grid, path))
        except VolumeError:
            continue
        return path
    return None


def boxes(shape: tuple[int, int, int]) -> dict[str, Bool]:
    """The regions of the challenge's test script where it has no atlas: boxes of the stored array (x, y, z).

    BG is the middle seventh of x and y and the middle ninth of z, CSO the middle three sevenths and three ninths
    around it.
    """
    out = {}
    for region, low, high in (("CSO", (2, 2, 3), (5, 5, 6)), ("BG", (3, 3, 4), (4, 4, 5))):
        out[region] = np.zeros(shape, bool)
        box = tuple(slice(a * n // p, b * n // p) for a, b, p, n in zip(low, high, (7, 7, 9), shape, strict=True))
        out[region][box] = True
    out["CSO"] &= ~out["BG"]
    return out


def _on(true: MaskImage, mask: MaskImage) -> Bool:
    return aligned(mask, true.grid, true.source)

"""Records that every room of the house shares, and the names of sequences and regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: Order of the image channels, everywhere.
SEQUENCES = ("T1w", "T2w", "FLAIR")

#: Regions a prompt can ask for; the target of training follows it.
REGIONS = ("brain", "basal ganglia", "centrum semiovale")

FloatArray = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]


def spacing_of(affine: Affine) -> tuple[float, float, float]:
    """Voxel spacing in mm along each array axis of an affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an array lie: its shape and the map from voxel index to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Volume:
    """One image. ``data`` is float32 (x, y, z) as stored; ``affine`` maps voxel to RAS+ mm."""

    data: FloatArray
    affine: Affine
    source: Path | None = None

    @property
    def grid(self) -> Grid:
        x, y, z = self.data.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Case:
    """One subject's scan as a layout found it: image files by sequence, and where its mask goes.

    ``output`` is relative to the output folder. ``problem`` is set instead of a usable set of
    images when the layout found the case but it cannot be run (a sequence doubled, say).
    """

    name: str
    images: Mapping[str, Path]
    output: Path
    problem: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

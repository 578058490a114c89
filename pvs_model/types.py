"""Types, records and domain constants that all packages share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Affine = npt.NDArray[np.float64]
#: Masks (0 and 1) and label maps.
Mask = npt.NDArray[np.uint8]
#: Three numbers along x, y, z, such as a voxel spacing in mm.
Triple = tuple[float, float, float]

#: Order of the image channels.
SEQUENCES = ("T1w", "T2w", "FLAIR")
#: Array axes by plane: the two axes of its slices, then the slice axis.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


class Region(StrEnum):
    """A region of the brain in which PVS are counted. Its value is the suffix of its mask files.

    Attributes:
        full_name: Anatomical name, as in prompts.
        table_name: Name in tables and CSV files.
    """

    full_name: str
    table_name: str

    CSO = "CSO", "centrum semiovale", "CSO"
    BG = "BG", "basal ganglia", "BG"
    MIDBRAIN = "MID", "midbrain", "midbrain"
    HIPPOCAMPUS = "HIP", "hippocampus", "hippocampus"

    def __new__(cls, suffix: str, full_name: str, table_name: str) -> Region:
        member = str.__new__(cls, suffix)
        member._value_, member.full_name, member.table_name = suffix, full_name, table_name
        return member

    @property
    def display_name(self) -> str:
        """Name in headings: "basal ganglia (BG)", "midbrain"."""
        return self.full_name if self.full_name == self.table_name else f"{self.full_name} ({self.table_name})"


#: Regions of the challenge, in the order of its tables.
CHALLENGE_REGIONS = (Region.CSO.value, Region.BG.value)
#: Regions a prompt can ask for; the target of training follows it.
REGIONS = ("brain", Region.BG.full_name, Region.CSO.full_name)


def spacing_of(affine: Affine) -> Triple:
    """Returns the voxel spacing in mm along each array axis of an affine (4, 4)."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


@dataclass(frozen=True)
class Grid:
    """A voxel grid in space: its shape and the affine (4, 4) from voxel index to RAS+ mm."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing_mm(self) -> Triple:
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Volume:
    """One image: ``data`` float32 (x, y, z) in stored voxel order, ``affine`` from voxel index to RAS+ mm."""

    data: FloatArray
    affine: Affine
    source: Path | None = None

    @property
    def grid(self) -> Grid:
        x, y, z = self.data.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing_mm(self) -> Triple:
        return spacing_of(self.affine)


@dataclass(frozen=True)
class Case:
    """One scan session of a subject: its image files by sequence and the path of its mask.

    Attributes:
        name: Name in reports.
        images: Image files by sequence.
        output: Path of the mask relative to the output folder.
        problem: Reason why the case cannot be segmented, such as two files of a sequence; None if it can.
        extra: Further facts of the layout, by name.
    """

    name: str
    images: Mapping[str, Path]
    output: Path
    problem: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)

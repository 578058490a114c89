"""Defines the regions: names, values in label maps, and larger regions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvs_model.types import BoolArray, Mask


@dataclass(frozen=True)
class Structure:
    """One class of the network.

    Attributes:
        name: Anatomical name.
        abbreviation: For tables; prefixed with ``L-`` or ``R-`` for paired structures.
        colour: Red, green and blue, 0 to 255, in viewers. That of FreeSurfer where it has the structure.
        left: Value on the left, or of a midline structure. That of FreeSurfer where it has the structure.
        right: Value on the right; None for midline structures.
    """

    name: str
    abbreviation: str
    colour: tuple[int, int, int]
    left: int
    right: int | None = None


#: Structures in the order of the network's classes; class 0 is everything else.
STRUCTURES = (
    Structure("cerebral white matter", "WM", (245, 245, 245), 2, 41),
    Structure("cerebral cortex", "CTX", (205, 62, 78), 3, 42),
    Structure("caudate nucleus and accumbens", "CAU", (122, 186, 220), 11, 50),
    Structure("putamen", "PUT", (236, 13, 176), 12, 51),
    Structure("globus pallidus", "PAL", (12, 48, 255), 13, 52),
    Structure("thalamus", "THA", (0, 118, 14), 10, 49),
    Structure("internal capsule", "IC", (238, 59, 59), 155, 156),
    Structure("hippocampus", "HIP", (220, 216, 20), 17, 53),
    Structure("amygdala", "AMY", (103, 255, 255), 18, 54),
    Structure("ventral diencephalon", "VDC", (165, 42, 42), 28, 60),
    Structure("lateral ventricle", "LV", (120, 18, 134), 4, 43),
    Structure("third and fourth ventricle", "V34", (204, 182, 142), 14),
    Structure("midbrain", "MID", (242, 104, 76), 173),
    Structure("pons and medulla", "BST", (119, 159, 176), 16),
    Structure("cerebellum", "CBL", (230, 148, 34), 8, 47),
    Structure("other cerebrospinal fluid", "CSF", (60, 60, 60), 24),
)
#: Number of classes, including background.
CLASSES = len(STRUCTURES) + 1
#: Class of each structure by abbreviation.
CLASS = {structure.abbreviation: k for k, structure in enumerate(STRUCTURES, 1)}

#: Larger regions, by abbreviations of their structures.
REGIONS: dict[str, tuple[str, ...]] = {
    "CSO": ("WM",),  # the challenge's masks of this name; burden.subregions has the raters' centrum semiovale
    "BG": ("CAU", "PUT", "PAL", "THA", "IC"),
    "ventricles": ("LV", "V34"),
    "brainstem": ("MID", "BST"),
    "brain": tuple(s.abbreviation for s in STRUCTURES if s.abbreviation != "CSF"),
    "parenchyma": tuple(s.abbreviation for s in STRUCTURES if s.abbreviation not in ("CSF", "LV", "V34")),
    "intracranial": tuple(s.abbreviation for s in STRUCTURES),
    "PVS": ("WM", "CAU", "PUT", "PAL", "THA", "IC", "HIP", "AMY", "VDC", "MID", "BST"),  # tissue that bears PVS
}


@dataclass(frozen=True)
class Label:
    """Value of a label map."""

    value: int
    name: str
    abbreviation: str
    colour: tuple[int, int, int]


def label_table() -> list[Label]:
    """Lists all values of ``Anatomy.labels`` in rising order, background first."""
    rows = [Label(0, "background", "BKG", (0, 0, 0))]
    for s in STRUCTURES:
        if s.right is None:
            rows.append(Label(s.left, s.name, s.abbreviation, s.colour))
            continue
        rows.append(Label(s.left, f"left {s.name}", f"L-{s.abbreviation}", s.colour))
        rows.append(Label(s.right, f"right {s.name}", f"R-{s.abbreviation}", s.colour))
    return sorted(rows, key=lambda row: row.value)


def values_of(name: str) -> tuple[int, ...]:
    """Returns the values of a region.

    Args:
        name: Key of ``REGIONS`` or abbreviation of ``label_table``, with or without a side such as in ``L-BG``.

    Raises:
        KeyError: The name is unknown.
    """
    side, _, bare = name.rpartition("-")
    if side not in ("", "L", "R") or (bare not in REGIONS and bare not in CLASS):
        raise KeyError(f"expected a region, one of {', '.join((*REGIONS, *CLASS))}, got {name!r}")
    parts = [STRUCTURES[CLASS[part] - 1] for part in REGIONS.get(bare, (bare,))]
    if side:
        parts = [s for s in parts if s.right is not None]
        if not parts:
            raise KeyError(f"expected a region with two sides, got {name!r}")
    values: list[int] = []
    for s in parts:
        if side != "R":
            values.append(s.left)
        if side != "L" and s.right is not None:
            values.append(s.right)
    return tuple(values)


def to_labels(classes: npt.NDArray[np.integer], right: BoolArray) -> Mask:
    """Converts classes of the network and sides to values of the label table; any shape."""
    table = np.zeros((2, CLASSES), np.uint8)
    for k, s in enumerate(STRUCTURES, 1):
        table[:, k] = s.left, s.left if s.right is None else s.right
    return table[right.astype(np.intp), classes]


@dataclass(frozen=True)
class Anatomy:
    """Brain and regions of one scan, on its grid and in the stored order of its voxels.

    Attributes:
        labels: uint8 (x, y, z), values of ``label_table``.
        brain: bool (x, y, z), parenchyma and ventricles without holes; contains every region except CSF.
    """

    labels: Mask
    brain: BoolArray

    def mask(self, name: str) -> BoolArray:
        """Mask of a region, bool (x, y, z).

        Args:
            name: "brain" for the attribute itself, else as in ``values_of``: "BG", "WM", "HIP", "MID", "L-BG", ...

        Raises:
            KeyError: The name is unknown.
        """
        if name == "brain":
            return self.brain
        table = np.zeros(256, bool)
        table[list(values_of(name))] = True
        return table[self.labels]

"""The small brain that every input of the corpus is made from, and how masks of it are compared."""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from pvs_model.types import SEQUENCES

#: Most of it has no annotations.
nib: Any = nibabel

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (48, 56, 40)
Affine = npt.NDArray[np.float64]

#: Every order of the axes with every choice of their signs.
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def turn(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Affine:
    """A rotation (4, 4) by degrees about the three axes, one after the other."""
    out = np.eye(4)
    for axis, degrees in enumerate((x, y, z)):
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        one = np.eye(4)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        out = one @ out
    return out


@dataclass(frozen=True)
class Base:
    """Three sequences (x, y, z) of one brain on one grid of 1 mm, 0 around it.

    Values are even whole numbers from 0 to some hundreds: every integer type, and a slope of 2, keeps them as they are.
    """

    images: dict[str, npt.NDArray[np.int16]]
    affine: Affine

    @cached_property
    def files(self) -> dict[str, bytes]:
        """The NIfTI files of the sequences, not compressed."""
        return {name: nib.Nifti1Image(data, self.affine).to_bytes() for name, data in self.images.items()}

    @cached_property
    def packed(self) -> dict[str, bytes]:
        """The same, compressed."""
        return {name: gzip.compress(raw, 1, mtime=0) for name, raw in self.files.items()}


@cache
def base() -> Base:
    """Simulate it: the toy head of the tests, made small, with many PVS."""
    from pvs_model.datasets.simulated_cases import plain_scan
    from pvs_model.simulation.head import build_head_model
    from pvs_model.simulation.parameters import draw_scene
    from pvs_model.simulation.subject import simulate
    from tests.conftest import toy_labels

    scene = replace(
        draw_scene(3, SHAPE, (1.0, 1.0, 1.0), target="whole", empty_share=0.0),
        scale=(0.65, 0.65, 0.65), elastic_mm=0.0, pvs_centrum=12.0, pvs_basal=12.0, pvs_relative_contrast=1.0,
        pvs_diameter_mm=0.9, pvs_basal_diameter_mm=0.9, pvs_variation=0.0, pvs_gaps=0.0, pvs_bundle=1.0,
        pvs_subinsular=0.0, pvs_relative_contrast_spread=0.0, sulcal_csf=0.0,
    )  # fmt: skip
    case = simulate(build_head_model(toy_labels(), "toy"), 3, (1.0, 1.0, 1.0), scene=scene, scan=plain_scan(3, 3))
    images = {
        name: (2 * np.round(image / 2)).astype(np.int16) for name, image in zip(SEQUENCES, case.images, strict=True)
    }
    affine = np.eye(4)
    affine[:3, 3] = (-21.0, -30.0, 12.0)
    return Base(images, affine)


def turned(data: npt.NDArray[Any], affine: Affine, axes: Any, signs: Any) -> tuple[npt.NDArray[Any], Affine]:
    """The same image stored in another orientation: its voxel axis k is the old ``axes[k]``, against it where -1."""
    step = np.zeros((4, 4))
    step[3, 3] = 1.0
    for new, (old, sign) in enumerate(zip(axes, signs, strict=True)):
        step[old, new] = sign
        step[old, 3] = 0.0 if sign > 0 else data.shape[old] - 1.0
    flipped = data.transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    return np.ascontiguousarray(flipped), affine @ step


def dice(first: Any, second: Any, moved: Affine | None = None) -> float:
    """Dice of two masks (array, affine) of 1 mm voxels in physical space.

    Args:
        first: the one to compare with.
        second: the other, on any grid.
        moved: where the other's brain was moved to: from mm of the first to mm of the second.
    """
    (a, a_affine), (b, b_affine) = first, second
    way = np.linalg.inv(b_affine) @ (np.eye(4) if moved is None else moved) @ a_affine
    where = np.rint(np.argwhere(a) @ way[:3, :3].T + way[:3, 3]).astype(int)
    there = where[((where >= 0) & (where < b.shape)).all(1)]
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(b[tuple(there.T)])) / max(1, total)


#: Thresholds by which the random networks of ``quick_weights`` mark a hundredth of the base.
THRESHOLDS = {"3d": 0.0336, "2d": 0.0336}


def quick_weights(folder: Path) -> Path:
    """Small random networks, so that a case takes a part of a second and no release changes what is measured."""
    import torch

    from pvs_model.config import TRAINED_RANGE
    from pvs_model.inference.settings import EnsembleSettings
    from pvs_model.nets import checkpoint
    from pvs_model.nets.model import build
    from pvs_model.training.release import release
    from tests.conftest import TINY

    folder.mkdir()
    facts = {"training": json.dumps({"batch": 1, "patch": 16, "seed": 0}), "facts": json.dumps({"steps": 0})}
    for kind, config in TINY.items():
        torch.manual_seed(101)
        checkpoint.save(folder / "random", build(config), facts)
        settings = EnsembleSettings(THRESHOLDS[kind], 48, 0.25, *TRAINED_RANGE[kind])
        release(folder, kind, [folder / "random"], settings, "none: random weights", {})
    (folder / "random").unlink()
    return folder

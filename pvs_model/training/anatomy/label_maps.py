"""Prepares label maps with FreeSurfer ids for training: signal class, target class and side of each voxel.

The internal capsule follows ``simulation.head.region_map``, the midbrain the rules of ``class_targets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pvs_model.anatomy.regions import CLASS
from pvs_model.errors import VolumeError
from pvs_model.simulation.head import BASAL_GANGLIA, INDEX, fill_outer_csf, region_map, to_tissues

Ids = npt.NDArray[np.integer]

#: Sides of a structure.
NO_SIDE, LEFT, RIGHT = 0, 1, 2

#: FreeSurfer ids of each class; cortical and white matter parcels (from 1000) are added by ``class_targets``.
TARGET_IDS = {
    "WM": (2, 41, 25, 57, 77, 78, 79, 192, 250, 251, 252, 253, 254, 255),
    "CTX": (3, 42),
    "CAU": (11, 26, 50, 58),
    "PUT": (12, 51),
    "PAL": (13, 52),
    "THA": (9, 10, 48, 49),
    "HIP": (17, 53),
    "AMY": (18, 54),
    "VDC": (28, 60, 85),
    "LV": (4, 5, 31, 43, 44, 63, 136, 137, 163, 164),
    "V34": (14, 15, 72),
    "BST": (16,),
    "CBL": (7, 8, 46, 47),
    "CSF": (24, 257),
}
#: Vessels in and below the putamen, labelled like what mostly surrounds them.
VESSELS = (30, 62)
LEFT_IDS = (2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 17, 18, 25, 26, 28, 30, 31, 78, 136, 137)
RIGHT_IDS = (41, 42, 43, 44, 46, 47, 48, 49, 50, 51, 52, 53, 54, 57, 58, 60, 62, 63, 79, 163, 164)
#: Ids outside the brain, each with its own signal.
EXTRA_CEREBRAL = (29, 61, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530)

#: Going up from its thickest slice, the brainstem is midbrain once its section falls below this fraction: there the
#: peduncles, which FreeSurfer counts as ventral diencephalon, leave the pons.
MIDBRAIN_SECTION = 0.75
MAMILLARY_MM = 5

_TABLE = 20000
#: Number of signal classes: tissues of the simulator, then the extra-cerebral ids.
SIGNALS = len(INDEX) + len(EXTRA_CEREBRAL)


@dataclass(frozen=True)
class LabelMap:
    """Label map prepared for simulation.

    Attributes:
        name: Name of the file.
        codes: uint8 (x, y, z) RAS+, 1 mm: index into the tables below.
        signal: int64 (codes,), signal class, below ``SIGNALS``.
        target: uint8 (codes,), class of the network.
        side: uint8 (codes,), ``NO_SIDE``, ``LEFT`` or ``RIGHT``.
        centre: Centre of the brain's bounding box, voxels (3,).
        whole_head: Whether skull and scalp are included.
        frame: Where a face is drawn (``face.add_face``), float32 (4, 3) in voxels: the point between the eyes, the
            vector from there to the right eye, and unit vectors forward and up. None for no face.
    """

    name: str
    codes: Tensor
    signal: Tensor
    target: Tensor
    side: Tensor
    centre: Tensor
    whole_head: bool
    frame: Tensor | None = None


def class_targets(ids: Ids, name: str = "labels") -> npt.NDArray[np.uint8]:
    """Converts FreeSurfer ids (x, y, z) at about 1 mm, RAS+, to classes of the network.

    * Internal capsule: white matter within the closed hull of the deep nuclei, as in the simulator's basal ganglia.
    * Midbrain: the brainstem above the slice where its section falls below ``MIDBRAIN_SECTION`` of the largest, and
      the peduncles and the substantia nigra, which FreeSurfer counts as ventral diencephalon: the part of it below the
      plane from the top of the brainstem (about the posterior commissure) to ``MAMILLARY_MM`` above the front of the
      pons (about the mamillary bodies).
    * Other CSF ends with the brainstem: below is the spinal canal.

    Raises:
        VolumeError: The ids are not those of FreeSurfer.
    """
    table = np.zeros(_TABLE, np.uint8)
    for key, members in TARGET_IDS.items():
        table[list(members)] = CLASS[key]
    for low, high, key in ((1000, 3000, "CTX"), (3000, 5003, "WM"), (11100, 13000, "CTX")):
        table[low:high] = CLASS[key]
    tissues = to_tissues(ids, name)
    ids = np.clip(ids, 0, _TABLE - 1)
    out = table[ids]
    vessels = np.isin(ids, VESSELS)
    out[vessels] = CLASS["WM"]
    tissues[vessels] = INDEX["white_matter"]
    white = out == CLASS["WM"]
    out[white & (region_map(tissues) == BASAL_GANGLIA)] = CLASS["IC"]
    stem = out == CLASS["BST"]
    if stem.any():
        _split_brainstem(out, stem)
    return out


def _split_brainstem(out: npt.NDArray[np.uint8], stem: npt.NDArray[np.bool_]) -> None:
    section = stem.sum((0, 1))
    levels = np.flatnonzero(section)
    thickest = int(section.argmax())
    above = np.flatnonzero(section[thickest:] < MIDBRAIN_SECTION * section[thickest])
    first = thickest + int(above[0]) if len(above) else out.shape[2]
    upper = stem.copy()
    upper[:, :, :first] = False
    out[upper] = CLASS["MID"]
    top = int(levels[-1])
    behind = float(np.flatnonzero(stem[:, :, top - 3 :].any((0, 2))).mean())
    front = float(np.flatnonzero(stem.any((0, 2)))[-1])
    slope = (top - first - MAMILLARY_MM) / max(1.0, front - behind)
    y, z = np.ogrid[: out.shape[1], : out.shape[2]]
    out[(out == CLASS["VDC"]) & (z < top - slope * (y - behind))] = CLASS["MID"]
    canal = out[:, :, : levels[0]]
    canal[canal == CLASS["CSF"]] = 0


def sides(ids: Ids) -> npt.NDArray[np.uint8]:
    """Converts FreeSurfer ids to ``NO_SIDE``, ``LEFT`` or ``RIGHT``."""
    table = np.zeros(_TABLE, np.uint8)
    table[list(LEFT_IDS)], table[list(RIGHT_IDS)] = LEFT, RIGHT
    for low, high, side in ((1000, 2000, LEFT), (2000, 3000, RIGHT), (3000, 4000, LEFT), (4000, 5000, RIGHT)):
        table[low:high] = side
    table[5001], table[5002] = LEFT, RIGHT
    table[11100:12000], table[12100:13000] = LEFT, RIGHT
    return table[np.clip(ids, 0, _TABLE - 1)]


def prepare(ids: Ids, name: str) -> LabelMap:
    """Prepares a label map (x, y, z) with FreeSurfer ids, 1 mm isotropic, RAS+.

    Raises:
        VolumeError: The ids are not those of FreeSurfer, or there is no brain.
    """
    tissues = to_tissues(ids, name)
    whole_head = bool(np.count_nonzero(tissues >= INDEX["soft_tissue"]) > 0.2 * np.count_nonzero(tissues))
    if np.count_nonzero(tissues == INDEX["csf"]) < 0.02 * np.count_nonzero(tissues):
        ids = np.pad(ids, 4)
        tissues = fill_outer_csf(np.pad(tissues, 4))
        ids = np.where((ids == 0) & (tissues == INDEX["csf"]), 24, ids)
    target = class_targets(ids, name)
    if not target.any():
        raise VolumeError(f"{name}: expected a brain in the label map, got none")
    signal = tissues.astype(np.int64)
    for k, label in enumerate(EXTRA_CEREBRAL):
        signal[ids == label] = len(INDEX) + k
    side = sides(ids)
    box = [np.flatnonzero((target > 0).any(tuple(b for b in range(3) if b != a))) for a in range(3)]
    keys, codes = np.unique((signal * 64 + target) * 4 + side, return_inverse=True)
    if len(keys) > 256:
        raise VolumeError(f"{name}: expected at most 256 kinds of voxels, got {len(keys)}")
    return LabelMap(
        name=name,
        codes=torch.from_numpy(codes.reshape(ids.shape).astype(np.uint8)),
        signal=torch.from_numpy(keys // 256),
        target=torch.from_numpy((keys // 4 % 64).astype(np.uint8)),
        side=torch.from_numpy((keys % 4).astype(np.uint8)),
        centre=torch.tensor([(b[0] + b[-1]) / 2 for b in box], dtype=torch.float32),
        whole_head=whole_head,
    )


def load_label_map(path: Path) -> LabelMap:
    """Loads a label map from a file of FreeSurfer ids, of any orientation and 1 mm isotropic.

    Raises:
        VolumeError: The file cannot be read, has another spacing, or holds no FreeSurfer ids.
    """
    from pvs_model.volume.geometry import to_ras
    from pvs_model.volume.io import read

    volume, _ = to_ras(read(path))
    if not np.allclose(volume.spacing_mm, 1.0, atol=0.02):
        raise VolumeError(f"{path}: expected a label map of 1 mm, got {volume.spacing_mm}")
    return prepare(np.rint(volume.data).astype(np.int32), path.name)

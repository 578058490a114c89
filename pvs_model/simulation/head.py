"""Builds head models for the simulator: tissues on a 0.5 mm grid, regions, and the course of PVS.

A head model is built from a label map with FreeSurfer ids (``build_head_model``), real or from ``phantom_labels``.
Arrays are in RAS+ order. Positions in mm are measured from the corner of the first voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from pvs_model.errors import VolumeError
from pvs_model.simulation.artefacts import blur

#: Tissue classes in the order of their index.
TISSUES = (
    "air", "ventricle", "csf", "cortex", "white_matter", "caudate", "putamen", "pallidum", "thalamus",
    "hippocampus", "ventral_dc", "brainstem", "cerebellum_gm", "cerebellum_wm", "choroid", "vessel", "wmh",
    "soft_tissue", "skin", "bone", "marrow", "other",
)  # fmt: skip
INDEX = {name: k for k, name in enumerate(TISSUES)}

#: Smoothing of label borders in refinement (sigma in voxels of the map). Layers one voxel thick survive it.
REFINEMENT_SIGMA = 0.55
#: Increased when the construction of head models changes; part of the names of cached ones.
BUILD_VERSION = 2

#: FreeSurfer ids of each tissue. 136, 137, 163 and 164 are choroid plexus; ids from 501 are outside the brain.
FREESURFER = {
    "ventricle": (4, 5, 14, 15, 43, 44, 72),
    "csf": (24, 257),
    "cortex": (3, 42),
    "white_matter": (2, 41, 85, 192, 250, 251, 252, 253, 254, 255),
    "caudate": (11, 26, 50, 58),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "thalamus": (9, 10, 48, 49),
    "hippocampus": (17, 18, 53, 54),
    "ventral_dc": (28, 60),
    "brainstem": (16,),
    "cerebellum_gm": (8, 47),
    "cerebellum_wm": (7, 46),
    "choroid": (31, 63, 136, 137, 163, 164),
    "vessel": (30, 62),
    "wmh": (25, 57, 77, 78, 79),
    "soft_tissue": (507,),
    "skin": (511,),
    "bone": (515,),
    "marrow": (516,),
    "other": (29, 61, 502, 506, 508, 509, 512, 514, 530),
}

#: Tissues that can contain PVS; a tube ends where it leaves them.
PVS_TISSUES = (
    "white_matter",
    "caudate",
    "putamen",
    "pallidum",
    "thalamus",
    "hippocampus",
    "ventral_dc",
    "brainstem",
    "wmh",
)
DEEP_NUCLEI = ("caudate", "putamen", "pallidum", "thalamus")
PARENCHYMA = tuple(TISSUES[k] for k in range(3, 14)) + ("wmh", "choroid")
INTRACRANIAL = PARENCHYMA + ("ventricle", "csf", "vessel")

#: Values of ``HeadModel.regions``.
NO_REGION, BASAL_GANGLIA, CENTRUM_SEMIOVALE, OTHER_BRAIN = 0, 1, 2, 3

VOXEL_MM = 0.5
FIELD_MM = 2.0  # voxel size of ``HeadModel.field``


def tissue_ids(*names: str) -> list[int]:
    """Returns the indices of tissues."""
    return [INDEX[name] for name in names]


def is_tissue(tissues: npt.NDArray[np.uint8], *names: str) -> npt.NDArray[np.bool_]:
    """Returns the mask of the named tissues in a tissue map."""
    table = np.zeros(len(TISSUES), bool)
    table[tissue_ids(*names)] = True
    return table[tissues]


@dataclass(frozen=True)
class HeadModel:
    """Tissues, regions and PVS directions of one head.

    Attributes:
        name: Name of the source, such as the file of the label map.
        tissues: uint8 (X, Y, Z), index into ``TISSUES``, 0.5 mm voxels.
        regions: uint8 (X, Y, Z), ``NO_REGION`` to ``OTHER_BRAIN``, 0.5 mm voxels.
        field: float32 (4, x, y, z) on a 2 mm grid: unit vector along PVS, then distance to the ventricles in mm.
        histogram: float32 (2, tissues), fraction of each tissue in the intracranial space and in the head.
        whole_head: Whether skull and scalp are included.
    """

    name: str
    tissues: Tensor
    regions: Tensor
    field: Tensor
    histogram: Tensor
    whole_head: bool

    def to(self, device: torch.device | str) -> HeadModel:
        """Returns the head model with its tensors on another device."""
        tissues, regions, field, histogram = (
            t.to(device) for t in (self.tissues, self.regions, self.field, self.histogram)
        )
        return HeadModel(self.name, tissues, regions, field, histogram, self.whole_head)


def to_tissues(labels: npt.NDArray[np.integer], name: str = "labels") -> npt.NDArray[np.uint8]:
    """Converts FreeSurfer ids to tissue indices; ids 1000 to 2999 are cortex, 3000 to 5002 white matter.

    Raises:
        VolumeError: Fewer than a tenth of the labelled voxels have a known id.
    """
    table = np.full(20000, INDEX["other"], np.uint8)
    table[0] = INDEX["air"]
    for tissue, ids in FREESURFER.items():
        table[list(ids)] = INDEX[tissue]
    for low, high, tissue in ((1000, 3000, "cortex"), (3000, 5003, "white_matter"), (11100, 13000, "cortex")):
        table[low:high] = INDEX[tissue]
    out = table[np.clip(labels, 0, len(table) - 1)]
    labelled = np.count_nonzero(labels)
    if labelled == 0 or np.count_nonzero((out > 0) & (out < INDEX["soft_tissue"])) < 0.1 * labelled:
        raise VolumeError(f"{name}: expected a label map with FreeSurfer ids, got ids {np.unique(labels)[:8].tolist()}")
    return out


def fill_outer_csf(tissues: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Fills the space inside the closed brain surface with CSF, for maps without labels in the sulci."""
    brain = tissues > 0
    closed = ndimage.binary_fill_holes(_close(brain, radius=6))
    out = tissues.copy()
    out[closed & ~brain] = INDEX["csf"]
    return out


def region_map(tissues: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Derives regions from a 1 mm tissue map.

    Deep nuclei and the white matter between them are basal ganglia, other white matter is centrum semiovale.
    """
    regions = np.where(is_tissue(tissues, *PARENCHYMA), OTHER_BRAIN, NO_REGION).astype(np.uint8)
    white = is_tissue(tissues, "white_matter", "wmh")
    regions[white] = CENTRUM_SEMIOVALE
    nuclei = is_tissue(tissues, *DEEP_NUCLEI)
    if nuclei.any():
        box = ndimage.find_objects(nuclei.astype(np.uint8))[0]
        closed = np.zeros_like(nuclei)
        closed[box] = _close(nuclei[box], radius=5)
        regions[nuclei | (closed & white)] = BASAL_GANGLIA
    return regions


def _close(mask: npt.NDArray[np.bool_], radius: float) -> npt.NDArray[np.bool_]:
    """Closes a mask with a ball, by distance transforms: a ball as kernel would cost radius^3."""
    pad = int(radius) + 2
    padded = np.pad(mask, pad)
    grown = ndimage.distance_transform_edt(~padded) <= radius
    shrunk = ndimage.distance_transform_edt(grown) > radius
    inner = slice(pad, -pad)
    return np.asarray(shrunk[inner, inner, inner] | mask)


def pvs_directions(tissues: npt.NDArray[np.uint8], regions: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Computes ``HeadModel.field`` from 1 mm maps.

    Directions run from cortex to ventricle in white matter, and upwards in the other tissues.
    """
    t = tuple(n // 2 for n in tissues.shape)
    corners = [(i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)]
    distances = []
    for name in ("ventricle", "cortex"):
        target = is_tissue(tissues, name)
        near = np.maximum.reduce([target[i::2, j::2, k::2][: t[0], : t[1], : t[2]] for i, j, k in corners])
        d = 2 * ndimage.distance_transform_edt(~near) if near.any() else np.full(t, 50.0)
        distances.append(ndimage.gaussian_filter(d, 0.8))
    to_ventricle, to_cortex = distances
    potential = ndimage.gaussian_filter(to_ventricle / (to_ventricle + to_cortex + 1e-3), 1.0)
    direction = np.stack(np.gradient(potential)).astype(np.float32)
    coarse = regions[::2, ::2, ::2][: t[0], : t[1], : t[2]]
    ascending = (coarse == BASAL_GANGLIA) | (coarse == OTHER_BRAIN)
    direction[:, ascending] = np.array([0.15, 0.2, 1.0], np.float32)[:, None]
    direction /= np.linalg.norm(direction, axis=0, keepdims=True) + 1e-6
    return np.concatenate([direction, to_ventricle[None]]).astype(np.float32)


def build_head_model(labels: npt.NDArray[np.integer], name: str, margin_mm: int = 20) -> HeadModel:
    """Builds a head model from a label map.

    Args:
        labels: (x, y, z) FreeSurfer ids, 1 mm isotropic, RAS+.
        name: Name of the source.
        margin_mm: Margin that is kept around the brain.

    Raises:
        VolumeError: The ids are not those of FreeSurfer.
    """
    tissues = to_tissues(labels, name)
    whole_head = np.count_nonzero(tissues >= INDEX["soft_tissue"]) > 0.2 * np.count_nonzero(tissues)
    if np.count_nonzero(tissues == INDEX["csf"]) < 0.02 * np.count_nonzero(tissues):
        tissues = fill_outer_csf(np.pad(tissues, 4))
    box = ndimage.find_objects(is_tissue(tissues, *PARENCHYMA).astype(np.uint8))[0]
    box = tuple(slice(max(0, s.start - margin_mm), s.stop + margin_mm) for s in box)
    tissues = tissues[box]
    regions = region_map(tissues)
    field = pvs_directions(tissues, regions)
    intracranial = np.isin(np.arange(len(TISSUES)), tissue_ids(*INTRACRANIAL))
    counts = np.bincount(tissues.ravel(), minlength=len(TISSUES)).astype(np.float32)
    counts[INDEX["air"]] = 0
    histogram = np.stack([np.where(intracranial, counts, 0), counts])
    histogram /= histogram.sum(1, keepdims=True)
    return HeadModel(
        name=name,
        tissues=_refine(tissues),
        regions=_refine(regions),
        field=torch.from_numpy(field),
        histogram=torch.from_numpy(histogram.astype(np.float32)),
        whole_head=bool(whole_head),
    )


def _refine(labels: npt.NDArray[np.uint8]) -> Tensor:
    """Refines labels from 1 mm to 0.5 mm: each voxel gets the label with the largest smoothed trilinear weight."""
    source = torch.from_numpy(np.ascontiguousarray(labels))
    best_weight: Tensor | None = None
    best = torch.zeros([2 * n for n in labels.shape], dtype=torch.uint8)
    for value in torch.unique(source).tolist():
        where = torch.nonzero(source == value)
        low = (where.amin(0) - 3).clamp_min(0).tolist()
        high = (where.amax(0) + 4).tolist()
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        weight = blur((source[box] == value)[None].float(), (REFINEMENT_SIGMA,) * 3)
        weight = F.interpolate(weight[None], scale_factor=2, mode="trilinear")[0, 0]
        if best_weight is None:
            best_weight = torch.zeros(best.shape)
        fine = tuple(slice(2 * a, 2 * a + n) for a, n in zip(low, weight.shape, strict=True))
        better = weight > best_weight[fine]
        best[fine] = torch.where(better, torch.tensor(value, dtype=torch.uint8), best[fine])
        best_weight[fine] = torch.maximum(weight, best_weight[fine])
    return best

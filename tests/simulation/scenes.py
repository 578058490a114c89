"""Scenes and scans that the tests of the simulation share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pvs_model.simulation.head import TISSUES
from pvs_model.simulation.parameters import ScanParams, SceneParams, draw_scan, draw_scene
from pvs_model.simulation.tissue_contrast import STRUCTURES

SHAPE = (20, 22, 24)
PVS = len(TISSUES) + STRUCTURES.index("pvs")
EMPTY = {
    "pvs_centrum": 0.0, "pvs_basal": 0.0, "pvs_other": 0.0, "lesion_burden": 0.0, "punctate_lesions": 0.0,
    "lacunes": 0.0, "stroke_cavities": 0.0, "csf_pockets": 0.0, "sulcal_csf": 0.0, "cerebellar_fissures": 0.0,
    "flow_voids": 0.0, "grey_matter_bridges": 0.0,
}  # fmt: skip
MANY_PVS = {"pvs_centrum": 8.0, "pvs_basal": 8.0, "pvs_other": 4.0, "pvs_diameter_mm": 1.5}
MIMICS = {
    "lesion_burden": 1.0, "punctate_lesions": 2.0, "lacunes": 1.0, "stroke_cavities": 0.05, "csf_pockets": 8.0,
    "sulcal_csf": 0.5, "cerebellar_fissures": 0.3, "flow_voids": 2.0, "grey_matter_bridges": 40.0,
}  # fmt: skip


def scene_params(seed: int = 1, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> SceneParams:
    """A 1 mm patch around the middle of the brain, PVS and mimics as drawn unless changed."""
    voxel = changes.pop("voxel_mm", (1.0, 1.0, 1.0))
    return replace(draw_scene(seed, shape, voxel, target="whole", empty_share=0.0), **changes)


def clean_scan(seed: int = 0, **changes: Any) -> ScanParams:
    """A fair scan without jitter of the scale, stripped, all sequences."""
    calm: dict[str, Any] = {
        "skull_stripped": True, "acquired": ((1.0,) * 3,) * 3, "noise": (0.02,) * 3, "kspace_fraction": (1.0,) * 3,
        "gamma": (1.0,) * 3, "mean_jitter": (0.0,) * 3, "scale_jitter": (1.0,) * 3, "bias": (0.05,) * 3,
        "mask_threshold": 0.5, "mask_smooth_mm": 0.8,
    }  # fmt: skip
    return replace(draw_scan(seed, 3, complete=True), **calm | changes)


def same(a: Any, b: Any) -> bool:
    """Whether two records of tensors are equal bit for bit."""
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if not (torch.equal(x, y) if isinstance(x, Tensor) else x == y):
            return False
    return True


def rebuilt(record: Any) -> Any:
    """A record by way of JSON."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    values = json.loads(json.dumps(dataclasses.asdict(record), allow_nan=False))
    return type(record)(**{name: tuples(value) for name, value in values.items()})

"""Checks that tissue contrast matches the declared sequence (T1w, T2w, FLAIR)."""

from __future__ import annotations

import numpy as np

from pvs_model.anatomy.regions import Anatomy
from pvs_model.types import FloatArray

#: Minimum number of voxels of a tissue.
_MIN_VOXELS = 200
#: Minimum difference of two tissues, as a fraction of their sum, for one to be brighter.
_CLEARLY = 0.03
#: Difference that contradicts the declared sequence: fluid 1.2 times as bright as white matter, or the reverse.
CONTRADICTS = 0.1


def contrast_warning(name: str, data: FloatArray, anatomy: Anatomy, least: float = _CLEARLY) -> str | None:
    """Warning if the contrast is not that of the sequence; None if it is, or cannot be judged.

    Fluid is darker than white matter in T1w and FLAIR and brighter in T2w; cortex is darker in T1w.

    Args:
        name: "T1w", "T2w" or "FLAIR".
        data: (x, y, z) on the grid of the anatomy, with background 0.
        anatomy: Tissues of the scan.
        least: Minimum difference of two tissues, as a fraction of their sum.
    """
    fluid, white, grey = (_median(data, anatomy, region) for region in ("ventricles", "WM", "CTX"))
    if fluid is None or white is None:
        return None
    if name == "T2w" and _brighter(white, fluid, least):
        return "T2w shows fluid darker than white matter: is it a T2w, and not inverted?"
    if name in ("T1w", "FLAIR") and _brighter(fluid, white, least):
        return f"{name} shows fluid brighter than white matter: is it a {name}, and not inverted?"
    if name == "T1w" and grey is not None and _brighter(grey, white, least):
        return "T1w shows cortex brighter than white matter: is it a T1w?"
    return None


def _median(data: FloatArray, anatomy: Anatomy, region: str) -> float | None:
    values = data[anatomy.mask(region) & (data != 0)]
    return float(np.median(values)) if len(values) >= _MIN_VOXELS else None


def _brighter(a: float, b: float, least: float) -> bool:
    return a - b > least * (abs(a) + abs(b))

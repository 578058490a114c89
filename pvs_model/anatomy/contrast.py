"""Does a sequence look like what its name says? Fluid, white matter and cortex tell T1w, T2w and FLAIR apart."""

from __future__ import annotations

import numpy as np

from pvs_model.anatomy.regions import Anatomy
from pvs_model.types import FloatArray

#: Fewer voxels than this of a tissue say nothing.
_LEAST = 200
#: A tissue counts as brighter than another from this share of their sum.
_CLEARLY = 0.03
#: From this share a sequence cannot be what its name says: fluid 1.2 times as bright as white matter, or the reverse.
CONTRADICTS = 0.1


def contrast_warning(name: str, data: FloatArray, anatomy: Anatomy, least: float = _CLEARLY) -> str | None:
    """One sentence where the contrast is not that of the sequence; None where it is, or cannot be judged.

    In T1w fluid is darker than white matter and so is the cortex; in T2w fluid is brighter; in FLAIR it is darker.

    Args:
        name: "T1w", "T2w" or "FLAIR".
        data: (x, y, z) on the anatomy's grid, its background 0.
        least: difference of two tissues that counts, as a share of their sum.
    """
    fluid, white, grey = (_median(data, anatomy, region) for region in ("ventricles", "CSO", "CTX"))
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
    return float(np.median(values)) if len(values) >= _LEAST else None


def _brighter(a: float, b: float, least: float) -> bool:
    return a - b > least * (abs(a) + abs(b))

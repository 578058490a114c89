"""Sequences that do not look like what their names say."""

from __future__ import annotations

import numpy as np
import pytest

from pvs_model.anatomy.contrast_check import contrast_warning
from pvs_model.anatomy.regions import Anatomy, values_of

LABELS = np.zeros((30, 20, 20), np.uint8)
for _start, _name in ((0, "L-LV"), (10, "L-WM"), (20, "L-CTX")):
    LABELS[_start : _start + 10] = values_of(_name)[0]
ANATOMY = Anatomy(LABELS, LABELS > 0)


def scan(fluid: float, white: float, grey: float) -> np.ndarray:
    out = np.empty(LABELS.shape, np.float32)
    out[:10], out[10:20], out[20:] = fluid, white, grey
    return out


T1W, T2W, FLAIR = scan(20, 100, 70), scan(300, 80, 120), scan(30, 90, 110)


@pytest.mark.parametrize(("name", "data"), [("T1w", T1W), ("T2w", T2W), ("FLAIR", FLAIR)])
def test_what_it_says_it_is(name: str, data: np.ndarray) -> None:
    assert contrast_warning(name, data, ANATOMY) is None


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("T1w", T2W, "T1w shows fluid brighter than white matter"),
        ("T2w", T1W, "T2w shows fluid darker than white matter"),
        ("T2w", FLAIR, "T2w shows fluid darker than white matter"),
        ("FLAIR", T2W, "FLAIR shows fluid brighter than white matter"),
        ("T1w", FLAIR, "T1w shows cortex brighter than white matter"),
        ("T1w", 300 - T1W, "T1w shows fluid brighter than white matter"),
    ],
)
def test_what_it_is_not(name: str, data: np.ndarray, words: str) -> None:
    warning = contrast_warning(name, data, ANATOMY)
    assert warning is not None and warning.startswith(words)


def test_too_little_to_judge() -> None:
    assert contrast_warning("T1w", scan(0, 100, 70), ANATOMY) is None  # no fluid in the field of view
    assert contrast_warning("T2w", T1W, Anatomy(LABELS * 0, LABELS > 0)) is None
    assert contrast_warning("T2w", scan(100, 101, 100), ANATOMY) is None

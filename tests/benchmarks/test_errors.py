"""Errors of a mask by their place, against figures counted by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays

from benchmarks.errors import errors


def test_errors_by_their_place() -> None:
    """Along a line: a PVS of 3 voxels shifted by one, one of 2 missed, a faint PVS marked, and a voxel without PVS."""
    reference, mask, pvs = np.zeros((3, 20, 1, 1), bool)
    reference[1:4], mask[2:5] = True, True
    reference[7:9] = True
    pvs[11:13], mask[11:14] = True, True
    mask[17] = True
    counts = errors(mask, reference, pvs | reference)
    assert counts == {"missed": 2, "too small": 1, "too large": 1, "unlabelled PVS": 3, "no PVS": 1}


bools = arrays(np.bool_, (6, 5, 1))


@given(bools, bools, bools)
def test_every_wrong_voxel_has_one_class(mask: np.ndarray, reference: np.ndarray, faint: np.ndarray) -> None:
    counts = errors(mask, reference, reference | faint)
    assert counts["missed"] + counts["too small"] == (reference & ~mask).sum()
    assert sum(counts[key] for key in ("too large", "unlabelled PVS", "no PVS")) == (mask & ~reference).sum()

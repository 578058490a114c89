"""Contrast of clusters over their surroundings, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.contrast import contrasts, summary
from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.errors import VolumeError

WHITE, FLUID = values_of("WM")[0], values_of("ventricles")[0]


@pytest.mark.parametrize("fluid", [200.0, 20.0])  # T2w, and T1w or FLAIR
def test_the_peak_over_the_median_of_the_surroundings(fluid: float) -> None:
    labels = np.full((40, 40, 3), WHITE, np.uint8)
    labels[:8] = FLUID
    image = np.where(labels == FLUID, fluid, 100.0).astype(np.float32)
    mask = np.zeros(labels.shape, np.uint8)
    mask[20, 20:22, 1] = mask[30, 10, 0] = mask[30, 10, 2] = 1  # the last two are clusters of their own
    image[20, 20, 1] += 0.3 * (fluid - 100)
    image[20, 21, 1] += 0.2 * (fluid - 100)
    image[30, 10, 0] += 0.05 * (fluid - 100)
    values = contrasts(mask, image, Anatomy(labels, labels > 0), (0.5, 0.5, 4.0))
    np.testing.assert_allclose(np.sort(values), [0.0, 0.05, 0.3], atol=1e-6)
    measured = summary(0.5, values)
    assert (measured["clusters"], measured["from 0.1 on"], measured["below 0.05"], measured["50 %"]) == (3, 1, 1, 0.05)


def test_neighbours_are_no_surroundings() -> None:
    labels = np.full((30, 30, 1), WHITE, np.uint8)
    labels[:4] = FLUID
    image = np.where(labels == FLUID, 200.0, 100.0).astype(np.float32)
    mask = np.zeros(labels.shape, np.uint8)
    mask[15, 15], mask[10:15, 17:20], mask[16:21, 17:20] = 1, 1, 1
    image[mask > 0] = 150
    values = contrasts(mask, image, Anatomy(labels, labels > 0), (0.8, 0.8, 3.0))
    np.testing.assert_allclose(values, 0.5, atol=1e-6)


def test_a_scan_without_ventricles_has_no_contrast() -> None:
    labels = np.full((4, 4, 4), WHITE, np.uint8)
    with pytest.raises(VolumeError, match="expected white matter and ventricles"):
        contrasts(labels, labels.astype(np.float32), Anatomy(labels, labels > 0), (1.0, 1.0, 3.0))
    assert np.isnan(summary(0.5, np.zeros(0, np.float32))["50 %"])

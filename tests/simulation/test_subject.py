"""Whole subjects: one grid in RAS+ order, replayed from their records."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scenes import clean_scan, rebuilt

from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, HeadModel
from pvs_model.simulation.subject import simulate, whole_scene


@pytest.mark.parametrize(
    ("plane", "voxel", "spacing"),
    [
        ("axial", (1.0, 1.1, 4.0), (1.0, 1.1, 4.0)),
        ("coronal", (1.0, 1.1, 4.0), (1.0, 4.0, 1.1)),
        ("sagittal", (1.0, 1.1, 4.0), (4.0, 1.0, 1.1)),
        ("axial", (1.2, 1.2, 1.2), (1.2, 1.2, 1.2)),
    ],
)
def test_a_simulated_case_lies_on_one_ras_grid(
    anatomy: HeadModel, plane: str, voxel: tuple[float, float, float], spacing: tuple[float, float, float]
) -> None:
    scene = replace(whole_scene(anatomy, 0, voxel, plane), flip=False, scale=(1.0, 1.0, 1.0), elastic_mm=0.0)
    scene = replace(scene, pvs_centrum=6.0, pvs_diameter_mm=1.6)
    case = simulate(anatomy, 0, voxel, plane, scene=scene, scan=clean_scan())
    shape = case.reference.shape
    assert case.images.shape == (3, *shape) and case.images.dtype == np.float32
    for mask in (case.reference, case.basal_ganglia, case.centrum_semiovale):
        assert mask.shape == shape and mask.dtype == np.uint8 and mask.any() and mask.max() == 1
    np.testing.assert_allclose(np.diag(case.affine), (*spacing, 1))
    np.testing.assert_allclose(case.affine[:3, :3] @ ((np.array(shape) - 1) / 2) + case.affine[:3, 3], 0, atol=1e-9)
    # Regions lie where the anatomy has them, in mm from the middle of the brain.
    fine = anatomy.regions.numpy()
    coarse = np.argwhere(fine[::4, ::4, ::4])
    middle = (coarse.min(0) + coarse.max(0) + 1) / 2 * 2.0
    for value, mask in ((BASAL_GANGLIA, case.basal_ganglia), (CENTRUM_SEMIOVALE, case.centrum_semiovale)):
        expected = (np.argwhere(fine == value).mean(0) + 0.5) * 0.5 - middle
        centre = case.affine[:3, :3] @ np.argwhere(mask).mean(0) + case.affine[:3, 3]
        np.testing.assert_allclose(centre, expected, atol=0.8)
        # The same number of mm3, within what thick slices leave of it.
        assert mask.sum() * np.prod(spacing) == pytest.approx((fine == value).sum() / 8, rel=0.15)
    assert not (case.basal_ganglia & case.centrum_semiovale).any()
    assert (case.images[:, case.reference > 0] > 0).all()


def test_a_simulated_case_is_replayed_from_its_records(anatomy: HeadModel) -> None:
    case = simulate(anatomy, 4, (1.5, 1.5, 1.5))
    again = simulate(anatomy, 99, (1.5, 1.5, 1.5), scene=rebuilt(case.scene), scan=rebuilt(case.scan))
    np.testing.assert_array_equal(case.images, again.images)
    np.testing.assert_array_equal(case.reference, again.reference)

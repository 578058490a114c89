"""Which region of a report a voxel of a PVS belongs to, where the anatomy gives it none."""

from __future__ import annotations

import numpy as np
import pytest

from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.burden.records import OTHER
from pvs_model.burden.regions import NEAR_MM, burden_of, nearest_region
from pvs_model.reports.folder import view_of
from pvs_model.reports.regions import OTHER_WM
from pvs_model.types import Grid

LEFT_WM, LEFT_CORTEX, FLUID = values_of("L-WM")[0], values_of("L-CTX")[0], values_of("CSF")[0]


def anatomy() -> Anatomy:
    """White matter below x = 10, cortex beyond, fluid around."""
    labels = np.full((20, 12, 12), FLUID, np.uint8)
    labels[2:10, 2:10, 2:10] = LEFT_WM
    labels[10:16, 2:10, 2:10] = LEFT_CORTEX
    return Anatomy(labels, labels != FLUID)


@pytest.mark.parametrize(("at", "region"), [(5, "WM"), (10, "WM"), (11, "WM"), (12, OTHER), (15, OTHER)])
def test_a_pvs_in_the_cortex_counts_where_white_matter_is_near(at: int, region: str) -> None:
    mask = np.zeros((20, 12, 12), np.uint8)
    mask[at, 4:8, 5] = 1
    burden = burden_of(mask, np.eye(4), anatomy())
    assert [pvs.region for pvs in burden.pvs] == [region]
    assert burden.row("WM").volume_mm3 == (4.0 if region == "WM" else 0.0)
    assert burden.row("all").volume_mm3 == 4.0


def test_a_pvs_taken_for_fluid_counts_as_what_surrounds_it() -> None:
    around = anatomy()
    around.labels[5, 4:8, 5] = FLUID
    mask = np.zeros((20, 12, 12), np.uint8)
    mask[5, 4:8, 5] = 1
    assert burden_of(mask, np.eye(4), around).row("WM").volume_mm3 == 4.0


def test_nearness_is_in_millimetres() -> None:
    where = np.zeros((9, 9, 9), np.uint8)
    where[0] = 1
    mask = np.ones((9, 9, 9), np.uint8)
    for spacing in (0.5, 1.0, 3.0):
        nearest = nearest_region(mask, where, np.array([spacing, 1.0, 1.0]))
        assert (nearest[:, 4, 4] > 0).sum() == 1 + int(NEAR_MM / spacing)
    assert np.array_equal(nearest_region(mask * 0, where, np.ones(3)), where)


def test_the_nearest_of_two_regions_wins() -> None:
    where = np.zeros((4, 1, 1), np.uint8)
    where[0], where[3] = 1, 2
    assert nearest_region(np.ones_like(where), where, np.ones(3)).ravel().tolist() == [1, 1, 2, 2]


def test_the_page_shows_the_regions_in_which_pvs_are_counted() -> None:
    """A PVS beside a region is counted in it, and the page colours it so."""
    parcellation = anatomy()
    mask = np.zeros(parcellation.labels.shape, np.uint8)
    outside = np.argwhere(~np.isin(parcellation.labels, values_of("WM")))
    inside = np.argwhere(np.isin(parcellation.labels, values_of("WM")))
    distance = np.linalg.norm(outside[:, None] - inside[None], axis=2).min(1)
    place = tuple(outside[np.flatnonzero(distance == 1)[0]])
    mask[place] = 1
    grid = Grid(mask.shape, np.eye(4))
    view = view_of("a", {"T2w": np.ones(mask.shape, np.float32)}, mask, grid, parcellation, {})
    (pvs,) = view.burden.pvs
    assert pvs.region == "WM"
    shown = [name for name, region in view.regions.items() if region[place]]
    assert shown and set(shown) <= {"WM", "CSO", OTHER_WM}

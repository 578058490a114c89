"""Named acquisitions: the values of Table 2 of the challenge's paper, and the grids that they give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pvs_model.datasets.simulated_cases import plain_scan, simulate_protocol
from pvs_model.errors import PVSError
from pvs_model.simulation.head import HeadModel
from pvs_model.simulation.protocols import PROTOCOLS, TABLE_2, on_grid, protocol_named
from pvs_model.simulation.subject import simulate, whole_scene

#: Table 2 as printed: reference sequence, then T1w, T2w, T2-FLAIR as "x y z" in mm.
PRINTED = {
    "edinburgh_ge_1x1x2": ("T2w", "1 1 1.3", "1 1 2", "1 1 4"),
    "edinburgh_prisma_0.9": ("T2w", "1 1 1", "0.9 0.9 0.9", "1 1 1"),
    "edinburgh_philips_0.5": ("T2w", "1 1 1", "0.5 0.5 0.5", "0.94 0.94 1"),
    "edinburgh_prisma_0.5": ("T2w", "1 1 1", "0.5 0.5 0.5", "1 1 1"),
    "sg70": ("T1w", "1 1 1", "1 1 3", "1 1 1"),
    "macc": ("T1w", "1 1 1", "1 1 3", "1 1 3"),
    "shanghai_aera": ("T2w", "0.45 0.45 7.8", "0.72 0.72 7.2", "0.9 0.9 7.8"),
    "shanghai_avanto": ("T2w", "0.9 0.9 7.5", "0.36 0.36 7.5", "0.45 0.45 7.5"),
    "shanghai_skyra": ("T2w", "0.72 0.72 6", "0.72 0.72 6", "0.9 0.9 6"),
    "shanghai_ge": ("T2w", "0.47 0.47 6.5", "0.47 0.47 6.5", "0.47 0.47 6.5"),
    "shanghai_philips": ("T2w", "0.53 0.53 6", "0.36 0.36 6", "0.6 0.6 6"),
}


def triple(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split()))


def test_every_row_of_the_table_is_there_with_its_values() -> None:
    assert [protocol.name for protocol in TABLE_2] == list(PRINTED)
    for protocol in TABLE_2:
        reference, *printed = PRINTED[protocol.name]
        assert [protocol.t1w_mm, protocol.t2w_mm, protocol.flair_mm] == [triple(p) for p in printed]
        assert protocol.grid_mm == (protocol.t1w_mm if reference == "T1w" else protocol.t2w_mm)
        assert protocol.dimensions == (2 if protocol.name.startswith("shanghai") else 3)
        assert protocol.site.startswith({"e": "University of Ed", "s": "", "m": "NUS-MACC"}[protocol.name[0]])
    assert PROTOCOLS["1mm"].acquired() == ((1.0, 1.0, 1.0),) * 3 and set(PROTOCOLS) == {*PRINTED, "1mm"}


def test_acquired_voxels_by_hand() -> None:
    # T1w is finer than the grid of 1 x 1 x 2 and is averaged onto it; FLAIR is twice as thick.
    assert PROTOCOLS["edinburgh_ge_1x1x2"].acquired() == ((1, 1, 1), (1, 1, 1), (1, 1, 2))
    assert PROTOCOLS["sg70"].acquired() == ((1, 1, 1), (1, 1, 3), (1, 1, 1))
    t1w, t2w, flair = PROTOCOLS["shanghai_aera"].acquired()
    assert t1w == pytest.approx((1, 1, 7.8 / 7.2)) and t2w == (1, 1, 1)
    assert flair == pytest.approx((0.9 / 0.72, 0.9 / 0.72, 7.8 / 7.2))
    assert all(ratio >= 1 for protocol in TABLE_2 for channel in protocol.acquired() for ratio in channel)


def test_a_grid_of_ones_own_is_a_protocol() -> None:
    assert on_grid((0.5, 0.5, 2.5)).dimensions == 2 and on_grid((0.5, 0.5, 2.49)).dimensions == 3
    assert on_grid((0.5, 0.5, 2.5)).name == "0.5 x 0.5 x 2.5 mm"


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(PVSError, match=r"protocol 'sg71': expected one of edinburgh_ge_1x1x2, .*shanghai_philips, 1mm"):
        protocol_named("sg71")


@pytest.mark.parametrize("name", ["shanghai_aera", "edinburgh_ge_1x1x2"])
def test_a_case_by_protocol_has_its_grid(anatomy: HeadModel, name: str) -> None:
    protocol = PROTOCOLS[name]
    case = simulate_protocol(anatomy, 3, protocol)
    np.testing.assert_allclose(np.diag(case.affine)[:3], protocol.grid_mm)
    assert case.scan.acquired == protocol.acquired() and case.present == (True, True, True)


def test_coarser_sequences_are_blurred_along_the_axis_that_is_coarser(anatomy: HeadModel) -> None:
    protocol = PROTOCOLS["macc"]
    scene = whole_scene(anatomy, 3, protocol.grid_mm)
    flat: dict[str, Any] = dict.fromkeys(("noise", "texture", "fine_texture", "bias"), (0.0,) * 3)
    sharp, taken = (
        simulate(anatomy, 3, protocol.grid_mm, scene=scene, scan=replace(plain_scan(3, 3, ratios), **flat)).images
        for ratios in (None, protocol.acquired())
    )
    np.testing.assert_array_equal(sharp[0], taken[0])  # T1w, the grid's own
    inside = (sharp != 0).all(0)

    def rough(image: np.ndarray, axis: int) -> float:
        """Mean step between neighbours inside the brain."""
        both = inside & np.roll(inside, -1, axis)
        return float(np.abs(image - np.roll(image, -1, axis))[both].mean())

    for channel in (1, 2):
        x, z = (rough(taken[channel], axis) / rough(sharp[channel], axis) for axis in (0, 2))
        assert z < 0.95 and z < 0.98 * x

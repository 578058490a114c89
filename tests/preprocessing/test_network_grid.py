"""The configuration for a scan, and the way onto the network's grid and back.

The networks are replaced by a function of the standardised image: it finds the bright ball of the body
(conftest.py), so a mask that lands elsewhere in space shows an error of geometry.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tqdm import tqdm

from pvs_model import pipeline
from pvs_model.config import TRAINED_RANGE
from pvs_model.inference import sliding_window
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.postprocess import to_mask
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.preprocessing.network_grid import axis_order, choose_configuration, target_spacing
from pvs_model.preprocessing.prepare import prepare
from pvs_model.types import Grid

CPU = torch.device("cpu")
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
#: As the shipped ensembles, without networks.
ENSEMBLES = {kind: Ensemble(kind, (), EnsembleSettings(0.5, 32, 0.25, *TRAINED_RANGE[kind])) for kind in ("3d", "2d")}
T1, T2, FLAIR = range(3)


def grid(*spacing_mm: float) -> Grid:
    return Grid((10, 10, 10), np.diag([*spacing_mm, 1.0]))


# ---- choices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize(
    ("thickness", "kind"), [(0.5, "3d"), (2.4, "3d"), (2.499, "3d"), (2.5, "2d"), (3.0, "2d"), (8.0, "2d")]
)
def test_the_network_follows_the_largest_spacing(order: tuple[int, ...], thickness: float, kind: str) -> None:
    spacing = np.array([0.5, 0.45, thickness])[list(order)]
    assert choose_configuration(grid(*spacing)) == kind


def test_two_and_a_half_mm_is_thick_in_float32_and_tilted(body: Any) -> None:
    for tilt in (0.0, 7.3, 33.0):
        affine = body.grid((0.7, 0.7, 2.5), tilt_deg=tilt)[1].astype(np.float32).astype(np.float64)
        assert choose_configuration(Grid((4, 4, 4), affine)) == "2d"


def test_slices_come_last() -> None:
    assert axis_order((1, 1, 5), 2) == (0, 1, 2)
    assert axis_order((1, 5, 1), 2) == (0, 2, 1)
    assert axis_order((5, 1, 1), 2) == (1, 2, 0)
    assert axis_order((2, 1, 1), 3) == (1, 2, 0)
    # Isotropic scans stay as they are; for the 2D network they are axial.
    assert axis_order((1, 1, 1), 3) == axis_order((1.1, 1, 1), 3) == (0, 1, 2)
    assert axis_order((3, 3, 3), 2) == (0, 1, 2)


@pytest.mark.parametrize(
    ("kind", "spacing", "wanted"),
    [
        ("3d", (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
        ("3d", (0.45, 0.45, 2.4), (0.45, 0.45, 2.4)),
        ("3d", (0.44, 1.26, 0.45), (0.44, 1.26, 0.45)),  # a hair outside is inside
        ("3d", (0.3, 0.3, 1.0), (0.45, 0.45, 1.0)),
        ("3d", (0.3, 0.3, 0.3), (0.45, 0.45, 0.45)),
        ("3d", (1.5, 2.0, 1.0), (1.25, 2.0, 1.0)),
        ("3d", (2.0, 2.0, 2.0), (1.25, 1.25, 2.0)),
        ("3d", (2.0, 1.9999, 2.0001), (1.25, 1.25, 2.0001)),
        ("2d", (0.5, 0.5, 6.0), (0.5, 0.5, 6.0)),
        ("2d", (0.2, 6.0, 0.2), (0.34, 6.0, 0.34)),
        ("2d", (12.0, 1.5, 1.5), (12.0, 1.1, 1.1)),  # slices are never made up
        ("2d", (3.0, 3.0, 3.0), (1.1, 1.1, 3.0)),
    ],
)
def test_only_spacings_outside_the_trained_range_are_changed(
    kind: str, spacing: tuple[float, float, float], wanted: tuple[float, float, float]
) -> None:
    assert target_spacing(spacing, int(kind[0]), *TRAINED_RANGE[kind]) == wanted


# ---- predict: crop, turn, respace, and back ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    return {}


@pytest.fixture(scope="module", autouse=True)
def find_the_ball(seen: dict[str, Any]) -> Any:
    """In place of the networks: the probability of being brighter than 2.5 deviations in T2w."""

    def find(ensemble: Ensemble, image: Tensor, text: Any, device: Any, **options: Any) -> Tensor:
        seen.update(shape=tuple(image.shape), **options)
        return ((image[T2] - 2.5) * 4).sigmoid()[None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding_window, "predict_maps", find)
        yield


def located(mask: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Centre of a mask in mm."""
    return affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]


SPACINGS = {
    "3d": [(1.0, 1.0, 1.0), (0.8, 1.2, 0.9), (1.0, 1.0, 2.2), (0.9, 2.4, 1.0), (2.0, 2.0, 2.0), (1.6, 1.0, 1.0)],
    "2d": [(1.0, 1.0, 3.0), (1.0, 3.0, 1.0), (3.0, 0.8, 1.0), (1.6, 1.6, 2.5)],
}


@given(
    st.sampled_from(ORIENTATIONS),
    st.sampled_from([(kind, spacing) for kind, spacings in SPACINGS.items() for spacing in spacings]),
    st.sampled_from([0.0, 11.0]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_mask_lies_on_the_ball(
    body: Any, orientation: tuple[Any, Any], kind_spacing: tuple[str, tuple[float, float, float]], tilt: float
) -> None:
    kind, spacing = kind_spacing
    scan = body.volume("T2w", axes=orientation[0], signs=orientation[1], spacing_mm=spacing, tilt_deg=tilt)
    prepared = prepare({"T2w": scan})
    assert choose_configuration(prepared.grid) == kind
    probability = pipeline.predict_probability(prepared, ENSEMBLES[kind], None, CPU)
    assert probability.shape == prepared.grid.shape
    mask = prepared.reorientation.invert(to_mask(probability, 0.5, prepared.foreground))
    assert mask.shape == scan.data.shape
    ball = scan.data == 900
    dice = 2 * (mask & ball).sum() / (mask.sum() + ball.sum())
    respaced = target_spacing(prepared.grid.spacing_mm, int(kind[0]), *TRAINED_RANGE[kind]) != prepared.grid.spacing_mm
    assert dice > 0.85 if respaced else dice == 1
    np.testing.assert_allclose(located(mask, scan.affine), body.ball_mm, atol=max(spacing) / 2)


@pytest.mark.parametrize("thick", [0, 1, 2])
@pytest.mark.parametrize("kind", ["2d", "3d"])
def test_the_network_gets_the_crop_with_slices_last(body: Any, seen: dict[str, Any], thick: int, kind: str) -> None:
    spacing = [0.8, 0.9, 1.0]
    spacing[thick] = 3.0 if kind == "2d" else 2.2
    scan = body.volume("T2w", spacing_mm=tuple(spacing), margin_mm=15.0)
    prepared = prepare({"T2w": scan})
    pipeline.predict_probability(prepared, ENSEMBLES[kind], None, CPU)
    order = {0: (1, 2, 0), 1: (0, 2, 1), 2: (0, 1, 2)}[thick]
    # The box of the body and a margin of 4 voxels, as far as the scan reaches.
    box = []
    for axis in order:
        where = np.flatnonzero(prepared.foreground.any(tuple(a for a in range(3) if a != axis)))
        box.append(min(prepared.grid.shape[axis], where[-1] + 5) - max(0, where[0] - 4))
    assert seen["shape"] == (3, *box)
    assert seen["shape"] != (3, *(prepared.grid.shape[a] for a in order))


def test_fine_grids_are_seen_more_coarsely_and_restored(body: Any, seen: dict[str, Any]) -> None:
    small = type(body)(radii_mm=(8.0, 9.0, 7.0), ball_mm=(5.0, -7.0, 4.0), ball_radius_mm=2.0)
    scan = small.volume("T2w", spacing_mm=(0.3, 0.3, 0.3), margin_mm=2.0)
    prepared = prepare({"T2w": scan})
    probability = pipeline.predict_probability(prepared, ENSEMBLES["3d"], None, CPU)
    box = [min(n, 4 + 1 + w[-1]) - max(0, w[0] - 4) for n, w in
           ((prepared.grid.shape[a], np.unique(np.nonzero(prepared.foreground)[a])) for a in range(3))]  # fmt: skip
    assert seen["shape"][1:] == tuple(round(n * 0.3 / 0.45) for n in box)
    mask, ball = probability >= 0.5, scan.data == 900
    assert 2 * (mask & ball).sum() / (mask.sum() + ball.sum()) > 0.9
    np.testing.assert_allclose(located(mask, scan.affine), small.ball_mm, atol=0.1)


def test_options_reach_the_networks(body: Any, seen: dict[str, Any]) -> None:
    prepared = prepare({"T2w": body.volume("T2w")})
    with tqdm(disable=True) as bar:
        pipeline.predict_probability(prepared, ENSEMBLES["3d"], None, CPU, mirror=True, bar=bar)
        assert seen["mirror"] is True and seen["progress"] == bar.update
    pipeline.predict_probability(prepared, ENSEMBLES["3d"], None, CPU)
    assert seen["mirror"] is False and seen["progress"] is None

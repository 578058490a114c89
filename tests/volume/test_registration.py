"""Whether sequences lie on each other: measured without a threshold on contrast, reported, and corrected."""

from __future__ import annotations

import math
import threading

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pvs_model.preprocessing.alignment import align
from pvs_model.types import Volume
from pvs_model.volume import registration
from pvs_model.volume.itk import ITK_LOCK, one_itk_thread
from pvs_model.volume.registration import (
    RigidFit,
    agreement,
    check_alignment,
    register,
    register_symmetric,
    transformed,
)


def scene(seed: int = 0) -> npt.NDArray[np.float32]:
    """Blobs of three tissues in an ellipsoid of 72 x 88 x 64 voxels of 2 mm; 0 around it."""
    rng = np.random.default_rng(seed)
    shape = (72, 88, 64)
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    tissue = np.digitize(ndimage.gaussian_filter(rng.normal(size=shape), 4) * 30, (-0.5, 0.5)) + 1
    return np.where((x / 0.8) ** 2 + (y / 0.85) ** 2 + (z / 0.75) ** 2 < 1, tissue, 0).astype(np.float32)


def image(values: tuple[float, float, float], noise: float = 0.05, seed: int = 1) -> Volume:
    """The scene with a signal per tissue."""
    tissue = scene()
    out = np.choose(tissue.astype(int), (0.0, *values)).astype(np.float32)
    out += np.random.default_rng(seed).normal(0, noise, out.shape).astype(np.float32) * (tissue > 0)
    return Volume(out, np.diag([2.0, 2.0, 2.0, 1.0]))


FIRST, SECOND = image((0.3, 0.6, 1.0)), image((1.0, 0.8, 0.2), seed=2)


def shift(*mm: float) -> npt.NDArray[np.float64]:
    out = np.eye(4)
    out[:3, 3] = mm
    return out


def turn(degrees: float) -> npt.NDArray[np.float64]:
    """About the line through the middle of the scene from foot to head."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    out = np.eye(4)
    out[:2, :2] = [[c, -s], [s, c]]
    middle = np.array([71.0, 87.0])
    out[:2, 3] = middle - out[:2, :2] @ middle
    return out


def test_agreement_of_known_tables() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 8, 20_000).astype(np.float64)
    assert agreement(a, a) == pytest.approx(2.0)
    assert agreement(a, -3 * a + 5) == pytest.approx(2.0)  # any contrast, as long as one tells the other
    assert agreement(a, rng.integers(0, 8, 20_000).astype(np.float64)) == pytest.approx(1.0, abs=0.005)
    assert agreement(a, np.ones_like(a)) == 1.0
    # Two fair bits, one of which is shared: H = 1 + 1 + 1 bits over (2 bits each): (2 + 2) / 3.
    bits = rng.integers(0, 2, (3, 200_000))
    assert agreement(2.0 * bits[0] + bits[1], 2.0 * bits[0] + bits[2]) == pytest.approx(4 / 3, abs=0.001)


@settings(max_examples=10, deadline=None)
@given(st.tuples(*[st.floats(-2, 2)] * 3), st.floats(0.1, 1000), st.booleans())
def test_registered_images_are_never_told_not_to_be(mm: tuple[float, ...], gain: float, inverted: bool) -> None:
    other = Volume(SECOND.data * np.float32(-gain if inverted else gain), SECOND.affine)
    assert not check_alignment(FIRST, transformed(other, shift(*mm))).misaligned


@pytest.mark.parametrize(
    ("transform", "displacement"),
    [
        (shift(12, 0, 0), "moved 8 mm left"),
        (shift(0, -14, 0), "moved 8 mm forwards"),
        (shift(0, 0, 16), "moved 8 mm down"),
        (turn(14), "turned by 10 degrees about the axis from foot to head"),
    ],
)
def test_a_gross_mismatch_is_reported_with_its_way(transform: npt.NDArray[np.float64], displacement: str) -> None:
    alignment = check_alignment(FIRST, transformed(SECOND, transform))
    assert alignment.misaligned and alignment.displacement == displacement and alignment.best > alignment.agreement


def test_grids_of_another_orientation_and_spacing_agree_as_well() -> None:
    thick = SECOND.data[::-1].reshape(72, 88, 32, 2).mean(3).transpose(1, 2, 0)
    affine = np.array([[0, 0, -2.0, 142.0], [2.0, 0, 0, 0], [0, 4.0, 0, 1.0], [0, 0, 0, 1.0]])
    assert not check_alignment(FIRST, Volume(np.ascontiguousarray(thick), affine)).misaligned


def test_next_to_nothing_in_common_is_not_judged() -> None:
    alignment = check_alignment(FIRST, transformed(SECOND, shift(140, 0, 0)))
    assert math.isnan(alignment.agreement) and not alignment.misaligned


@pytest.mark.parametrize("transform", [shift(12, -6, 4), turn(12) @ shift(3, 3, 3)])
def test_a_fit_brings_it_back_and_twice_the_same(transform: npt.NDArray[np.float64]) -> None:
    fit = register(FIRST, transformed(SECOND, transform))
    again = register(FIRST, transformed(SECOND, transform))
    assert fit.accepted and np.array_equal(fit.transform, again.transform)
    corners = np.array([[x, y, z, 1] for x in (20, 120) for y in (20, 150) for z in (20, 100)], float)
    off = (corners @ (fit.transform @ transform).T - corners)[:, :3]
    assert np.linalg.norm(off, axis=1).max() < 1.0  # half a voxel
    assert not check_alignment(FIRST, transformed(transformed(SECOND, transform), fit.transform)).misaligned


def test_a_symmetric_fit_is_the_middle_of_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registrations are given: 4 mm forwards, -6 mm backwards; exchanging the images inverts the result."""
    given = {id(FIRST): shift(4, 0, 0), id(SECOND): shift(-6, 0, 0)}
    monkeypatch.setattr(
        registration,
        "register",
        lambda fixed, moving: RigidFit(given[id(fixed)], before=1.0, after=1.1, displacement_mm=4),
    )
    there, back = register_symmetric(FIRST, SECOND), register_symmetric(SECOND, FIRST)
    np.testing.assert_allclose(there.transform, shift(5, 0, 0), atol=1e-9)
    np.testing.assert_allclose(back.transform, shift(-5, 0, 0), atol=1e-9)
    assert there.disagreement_mm == pytest.approx(2.0)


def test_a_fit_that_does_not_help_is_not_kept() -> None:
    assert not register(FIRST, SECOND).accepted


def test_one_thread_is_limited_to_its_block_and_excludes_others() -> None:
    threads = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads
    before, acquired = threads(), []
    with pytest.raises(RuntimeError, match="within"), one_itk_thread(), one_itk_thread():  # re-entrant
        assert threads() == 1
        other = threading.Thread(target=lambda: acquired.append(ITK_LOCK.acquire(blocking=False)))
        other.start()
        other.join()
        raise RuntimeError("within")
    assert threads() == before and acquired == [False]


# ---- in the pipeline -----------------------------------------------------------------------------------------------


def test_the_pipeline_tells_and_mends() -> None:
    away = transformed(SECOND, shift(12, -6, 4))
    same, warnings, agreements = align({"T2w": FIRST, "T1w": away})
    assert same["T1w"] is away and set(agreements) == {"T1w"}
    assert len(warnings) == 1 and "T1w fits T2w better moved 8 mm left" in warnings[0] and "--register" in warnings[0]
    mended, warnings, better = align({"T2w": FIRST, "T1w": away}, register=True)
    assert len(warnings) == 1 and "T1w was moved by up to 1" in warnings[0]
    assert np.allclose(mended["T1w"].affine, SECOND.affine, atol=0.5) and better["T1w"] > agreements["T1w"]
    assert mended["T1w"].data is away.data  # interpolated once, later, onto the reference's grid


def test_the_pipeline_leaves_what_is_registered() -> None:
    volumes = {"T2w": FIRST, "FLAIR": SECOND}
    for register_them in (False, True):
        aligned, warnings, agreements = align(volumes, register_them)
        assert not warnings and aligned == volumes and agreements["FLAIR"] > 1.3

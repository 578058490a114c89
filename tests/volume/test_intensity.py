"""Foreground, standardisation and bias field on made-up heads whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pvs_model.types import FloatArray, Volume
from pvs_model.volume.intensity import correct_bias, foreground, standardise

N = 48
GRID = np.stack(np.mgrid[:N, :N, :N]) - (N - 1) / 2
RADIUS = np.sqrt((GRID**2).sum(0))
BRAIN, SKULL, SCALP = RADIUS < 16, (RADIUS >= 16) & (RADIUS < 18), (RADIUS >= 18) & (RADIUS < 21)
HEAD = RADIUS < 21
VENTRICLE = RADIUS < 5


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def head(air: float = 0.0) -> FloatArray:
    """Bright scalp, dark skull, brain with a dark ventricle; Rician noise of deviation ``air``."""
    rng = np.random.default_rng(0)
    clean = 400.0 * SCALP + 20.0 * SKULL + 250.0 * BRAIN - 230.0 * VENTRICLE
    noisy = np.hypot(clean + rng.normal(0, 1, clean.shape) * air, rng.normal(0, 1, clean.shape) * air)
    return noisy.astype(np.float32)


def stripped() -> FloatArray:
    rng = np.random.default_rng(1)
    rim = BRAIN & (RADIUS > 14.5)  # dark CSF, far below half of Otsu's threshold
    clean = 250.0 - 200.0 * VENTRICLE - 235.0 * rim + rng.normal(0, 3, BRAIN.shape)
    return np.where(BRAIN, clean, 0).astype(np.float32)


@pytest.mark.parametrize("air", [5.0, 15.0])
def test_head_in_noise(air: float) -> None:
    data = head(air)
    assert dice(foreground(data), HEAD) > 0.97
    assert dice(foreground(data + 100), HEAD) > 0.97  # noise that does not start at 0
    assert foreground(data)[VENTRICLE].all()  # holes are filled


def test_head_in_exact_zeros() -> None:
    assert dice(foreground(head()), HEAD) == 1.0


def test_skull_stripped() -> None:
    assert dice(foreground(stripped()), BRAIN) > 0.999


def test_skull_stripped_and_interpolated() -> None:
    data = stripped()
    rng = np.random.default_rng(2)
    outside = rng.choice(np.flatnonzero(~BRAIN), 300, replace=False)
    data.flat[outside] = rng.normal(0, 0.5, 300)  # just around 0, on both sides
    assert dice(foreground(data), BRAIN) > 0.999


def test_skull_stripped_and_standardised() -> None:
    data = stripped()
    z = np.where(BRAIN, (data - data[BRAIN].mean()) / data[BRAIN].std(), 0).astype(np.float32)
    assert dice(foreground(z), BRAIN) > 0.98  # the brain's values lie on both sides of 0
    whole = ((data - data.mean()) / data.std()).astype(np.float32)
    assert dice(foreground(whole), BRAIN) > 0.999  # the background is negative


def test_only_the_largest_component() -> None:
    data = head(5.0)
    data[:3, :3, :3] = 400
    assert not foreground(data)[:3, :3, :3].any()


def test_brain_without_margin() -> None:
    data = head(5.0)[14:34, 14:34, 14:34]
    assert foreground(np.rint(data / 20).astype(np.float32)).mean() > 0.95


@pytest.mark.parametrize("place", [(0, 0, 0), (4, 5, 3)])
def test_never_empty(place: tuple[int, int, int]) -> None:
    data = np.zeros((8, 8, 8), np.float32)
    data[place] = 1
    assert foreground(data).sum() == 1
    assert foreground(-data).sum() == 1


def test_standardise() -> None:
    data, mask = head(5.0), HEAD
    z = standardise(data, mask)
    assert z.dtype == np.float32 and (z[~mask] == 0).all()
    assert abs(float(z[mask].mean())) < 0.02 and abs(float(z[mask].std()) - 1) < 0.02
    np.testing.assert_allclose(standardise(3 * data + 70, mask), z, atol=1e-4)
    data[tuple(np.argwhere(mask)[0])] = 1e9  # one wild voxel changes itself only
    wild = standardise(data, mask)
    assert wild.max() == 8.0
    np.testing.assert_allclose(np.sort(wild[mask])[:-1], np.delete(np.sort(z[mask]), -1), atol=0.2)


def test_standardise_by_hand() -> None:
    data = np.array([[[0, 2, 4, 99]]], np.float32)
    mask = np.array([[[True, True, True, False]]])
    # Percentiles 0.5 and 99.5 of (0, 2, 4) are 0.02 and 3.98: mean 2, variance 2/3 * 1.98^2.
    one = 2 / (1.98 * np.sqrt(2 / 3))
    np.testing.assert_allclose(standardise(data, mask), [[[-one, 0, one, 0]]], rtol=1e-6)
    assert (standardise(np.full((2, 2, 2), 0.1, np.float32), np.ones((2, 2, 2), bool)) == 0).all()
    assert (standardise(data, mask & False) == 0).all()
    with pytest.raises(ValueError, match="expected a mask of shape"):
        standardise(data, mask[0])


def test_bias_field_is_taken_out() -> None:
    rng = np.random.default_rng(3)  # 2 mm voxels, so that the fit is on 24^3 of them
    tissue = 100 + 30 * (np.sin(GRID[0]) > 0) + rng.normal(0, 1, BRAIN.shape)
    field = np.exp(0.02 * GRID[0] + 0.01 * GRID[2])
    data = np.where(BRAIN, tissue * field, 0).astype(np.float32)
    volume = Volume(data, np.diag([2.0, 2, 2, 1]))
    corrected = correct_bias(volume, BRAIN)

    def spread(values: FloatArray) -> float:
        ratio = values[BRAIN] / tissue[BRAIN]
        return float(ratio.std() / ratio.mean())

    assert spread(data) > 0.1 and spread(corrected.data) < 0.01
    np.testing.assert_array_equal(correct_bias(volume, BRAIN).data, corrected.data)
    assert corrected.data.dtype == np.float32 and (corrected.data[~BRAIN] == 0).all()


def test_too_little_to_fit_a_field_to() -> None:
    volume = Volume(stripped(), np.diag([1.0, 1, 1, 1]))
    assert correct_bias(volume, RADIUS < 1) is volume
    with pytest.raises(ValueError, match="expected a mask of shape"):
        correct_bias(volume, BRAIN[1:])

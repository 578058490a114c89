"""Borders between regions are drawn by the scan's own signal, and only where the network is in doubt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.anatomy.inference import resample_labels
from pvs_model.anatomy.label_refinement import fit, refine_labels
from pvs_model.anatomy.regions import CLASS, CLASSES
from pvs_model.types import Grid, Volume

WHITE, GREY = CLASS["WM"], CLASS["CTX"]
SHAPE = (24, 20, 16)


def halves(uncertain: float = 3.0, middle: float = 11.5) -> torch.Tensor:
    """White matter on the left, cortex on the right, with a soft border between; (classes + 1, x, y, z)."""
    x = torch.arange(SHAPE[0], dtype=torch.float32)
    white = torch.sigmoid((middle - x) / uncertain)[:, None, None].expand(SHAPE)
    probability = torch.zeros((CLASSES + 1, *SHAPE))
    probability[WHITE], probability[GREY] = white, 1 - white
    return probability


def scan(border: int, noise: float = 0.02) -> npt.NDArray[np.float32]:
    image = np.full(SHAPE, 100.0, np.float32)
    image[border:] = 60.0
    return image + np.random.default_rng(0).normal(0, 100 * noise, SHAPE).astype(np.float32)


def labels_of(probability: torch.Tensor, signal: npt.NDArray[np.float32] | None) -> npt.NDArray[np.bool_]:
    """Where white matter was found; everything else must be cortex."""
    refined = refine_labels(probability, np.eye(4), Grid(SHAPE, np.eye(4)), signal)
    assert set(np.unique(refined)) <= {2, 3}
    return refined == 2


@pytest.mark.parametrize("border", [8, 10, 12, 14])
def test_the_border_lies_where_the_signal_has_it(border: int) -> None:
    white = labels_of(halves(), scan(border))
    expected = np.zeros(SHAPE, bool)
    expected[:border] = True
    assert np.mean(white != expected) < 0.002
    assert np.array_equal(labels_of(halves(), None)[:, 0, 0], np.arange(SHAPE[0]) <= 11)


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(1e-3, 1e4), inverted=st.booleans())
def test_units_and_contrast_do_not_matter(gain: float, inverted: bool) -> None:
    image = scan(9)
    if inverted:
        image = 200 - image
    assert np.array_equal(labels_of(halves(), (image * gain).astype(np.float32)), labels_of(halves(), scan(9)))


def test_a_lesion_keeps_the_label_of_what_surrounds_it() -> None:
    image = scan(12)
    image[3:6, 8:11, 6:9] = 60.0  # as dark as cortex, in the midst of white matter
    assert labels_of(halves(1.0), image)[3:6, 8:11, 6:9].all()


def test_without_contrast_the_network_decides() -> None:
    image = np.full(SHAPE, 80.0, np.float32)
    image[0, 0, 0] = 81.0
    moved = labels_of(halves(), image) != labels_of(halves(), None)
    assert np.mean(moved) <= 1 / SHAPE[0]  # one plane, where it is even


def test_a_mixture_finds_means_and_the_coils_field() -> None:
    rng = np.random.default_rng(3)
    n = 60_000
    place = torch.from_numpy(rng.uniform(0, 160, (3, n)).astype(np.float32))
    truth = torch.from_numpy(rng.integers(0, 2, n))
    field = 1 + 0.25 * torch.sin(place[0] / 160 * 3.14159)
    signal = torch.where(truth == 1, 0.8, 0.5) * field + 0.02 * torch.from_numpy(rng.normal(size=n).astype(np.float32))
    prior = torch.full((n, CLASSES), 1e-4)
    prior[torch.arange(n), torch.where(truth == 1, WHITE, GREY)] = 0.7
    prior[torch.arange(n), torch.where(truth == 1, GREY, WHITE)] = 0.3
    mixture = fit(signal, prior.log(), place, (160.0, 160.0, 160.0))
    assert float(mixture.mean[WHITE] / mixture.mean[GREY]) == pytest.approx(1.6, rel=0.03)
    relative = mixture.at(place) / field
    assert float(relative.std() / relative.mean()) < 0.03
    wrong = mixture.log_likelihood(signal, place)[:, [GREY, WHITE]].argmax(1) != truth
    assert float(wrong.float().mean()) < 0.01


def test_half_millimetre_voxels_get_the_labels_of_a_millimetre() -> None:
    volume = Volume(np.repeat(np.repeat(scan(9), 2, 0), 2, 1)[:-1], np.diag([0.5, 0.5, 1.0, 1.0]))
    resampled = resample_labels(halves(), np.array(np.diag([1.0, 1.0, 1.0, 1.0])), volume, volume.grid)
    assert resampled.shape == volume.data.shape
    assert (resampled[:17, 1] == 2).mean() > 0.99 and (resampled[19:, 1] == 3).mean() > 0.99


def test_labels_on_the_grid_of_another_scan() -> None:
    volume = Volume(scan(9), np.eye(4))
    other = Grid((12, 20, 16), np.diag([2.0, 1.0, 1.0, 1.0]))
    resampled = resample_labels(halves(), np.eye(4), volume, other)
    assert resampled.shape == other.shape
    assert (resampled[:4] == 2).mean() > 0.99 and (resampled[5:] == 3).mean() > 0.99

"""Artefacts of the scanner: exact laws of blur, shift, slices, ringing and noise."""

from __future__ import annotations

import math

import pytest
import torch

from pvs_model.simulation import artefacts


def test_blur_keeps_constants_and_mass() -> None:
    for sigma in ((0.6, 1.0, 0.7), (2.0, 0.0, 0.8)):
        constant = torch.full((2, 9, 8, 7), 3.5)
        torch.testing.assert_close(artefacts.blur(constant, sigma), constant)
        spot = torch.zeros(1, 21, 21, 21)
        spot[0, 10, 10, 10] = 1.0
        spread = artefacts.blur(spot, sigma)
        assert float(spread.sum()) == pytest.approx(1.0, abs=1e-5)
        for axis, s in enumerate(sigma):
            t = torch.arange(21) - 10.0
            others = tuple(a + 1 for a in range(3) if a != axis)
            width = float((spread.sum(others)[0] * t**2).sum()) ** 0.5
            assert width == pytest.approx(s, abs=0.08)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_by_whole_voxels_is_exact(axis: int) -> None:
    image = torch.randn(2, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    for by in (-3, -1, 1, 2):
        voxels = [0.0, 0.0, 0.0]
        voxels[axis] = float(by)
        moved = artefacts.shift(image, tuple(voxels))  # type: ignore[arg-type]
        n = image.shape[axis + 1]
        source = (torch.arange(n) - by).clamp(0, n - 1)
        torch.testing.assert_close(moved, image.index_select(axis + 1, source), rtol=0, atol=0)
    half = artefacts.shift(image, (0.5, 0.0, 0.0))
    torch.testing.assert_close(half[:, 1:], (image[:, 1:] + image[:, :-1]) / 2)


@pytest.mark.parametrize("factor", [7.8 / 7.2, 1.3, 2.0, 3.7])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_larger_voxels_keep_constants_places_and_blur_the_rest(factor: float, axis: int) -> None:
    for n in (1, 3, 19):  # a clinical scan may have 19 slices
        shape = [6, 7, 8]
        shape[axis] = n
        constant = torch.full((1, *shape), 1.5)
        torch.testing.assert_close(artefacts.regrid(constant, factor, factor / 2, axis), constant)
    long = [60 if a == axis else 6 for a in range(3)]
    image = torch.randn(1, *long, generator=torch.Generator().manual_seed(0))
    assert float(artefacts.regrid(image, factor, factor / 2, axis).std()) < 0.9 * float(image.std())
    assert torch.equal(artefacts.regrid(image, 1.0, 0.5, axis), image)
    # Averaging and interpolating leave a ramp what it is, wherever the acquired voxels lie: nothing is misplaced
    # by more than the steps of the ramp bring, an eighth of a voxel.
    ramp = torch.arange(60.0).reshape([60 if a == axis + 1 else 1 for a in range(4)]).expand(1, *long)
    for offset in (factor / 2, 0.0, 0.3):
        taken = artefacts.regrid(ramp, factor, offset, axis).narrow(axis + 1, 8, 44)
        torch.testing.assert_close(taken, ramp.narrow(axis + 1, 8, 44), rtol=0, atol=0.126)


def test_larger_voxels_by_hand() -> None:
    # Voxels 2 long over 1 2 | 3 5 | 8 0: means 1.5, 4, 4 at 0.5, 2.5, 4.5, then linearly between them.
    line = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0, 0.0])
    expected = torch.tensor([1.375, 2.125, 3.375, 4.0, 4.0, 3.0])  # beyond the ends: means of the border, 1 and 0
    for axis in range(3):
        shape = [1, 1, 1, 1]
        shape[axis + 1] = 6
        torch.testing.assert_close(artefacts.regrid(line.reshape(shape), 2.0, 0.5, axis).flatten(), expected)
    # 1.5 long, the first from the middle of the first voxel: 0.5 of it and all of the second, and so on.
    means = torch.tensor([(0.5 * 1 + 2) / 1.5, (3 + 0.5 * 5) / 1.5, (0.5 * 5 + 8) / 1.5])  # at 0.75, 2.25, 3.75
    taken = artefacts.regrid(line.reshape(1, 6, 1, 1), 1.5, 0.75, 0).flatten()
    torch.testing.assert_close(taken[1], means[0] + (means[1] - means[0]) / 6)
    torch.testing.assert_close(taken[3], (means[1] + means[2]) / 2)


def test_noise_on_nothing_is_rayleigh() -> None:
    for correlation in (0.0, 0.6):
        noisy = artefacts.rician(torch.zeros(1, 48, 48, 48), 2.0, correlation, torch.Generator().manual_seed(0))
        assert float(noisy.mean()) == pytest.approx(2.0 * math.sqrt(math.pi / 2), rel=0.02)
        assert float(noisy.var()) == pytest.approx((2 - math.pi / 2) * 4.0, rel=0.05)


def test_noise_on_strong_signal_is_gaussian() -> None:
    noisy = artefacts.rician(torch.full((1, 40, 40, 40), 50.0), 1.0, 0.0, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(1.0, rel=0.03)
    assert float(noisy.mean()) == pytest.approx(50.0 + 1 / 100, abs=0.02)


def test_smooth_noise_is_smooth_and_of_unit_variance_at_its_nodes() -> None:
    noise = artefacts.smooth_noise((3, 40, 44, 48), (8, 8, 8), torch.Generator().manual_seed(0))
    again = artefacts.smooth_noise((3, 40, 44, 48), (8, 8, 8), torch.Generator().manual_seed(0))
    assert noise.shape == (3, 40, 44, 48) and torch.equal(noise, again)
    assert float(noise.diff(dim=1).abs().max()) < 1.2
    nodes = artefacts.smooth_noise((1, 30, 30, 30), (30, 30, 30), torch.Generator().manual_seed(1))
    assert float(nodes.std()) == pytest.approx(1.0, rel=0.03) and float(nodes.mean()) == pytest.approx(0.0, abs=0.03)
    # One node along an axis would leave nothing to interpolate between: two are the least.
    assert artefacts.smooth_noise((1, 5, 5, 5), (1, 1, 1), torch.Generator()).isfinite().all()


def test_ringing_keeps_the_mean_and_what_is_smooth() -> None:
    x = torch.arange(32.0)
    wave = (2 + torch.cos(2 * math.pi * 3 * x / 32)).reshape(1, 32, 1, 1).expand(1, 32, 4, 5)
    torch.testing.assert_close(artefacts.ring(wave, 0.6, 0), wave, rtol=0, atol=1e-5)
    edge = (x > 15).float().reshape(1, 32, 1, 1).expand(1, 32, 4, 5)
    rung = artefacts.ring(edge, 0.6, 0)
    assert float(rung.mean()) == pytest.approx(float(edge.mean()), abs=1e-5)
    assert float(rung.max()) > 1.03 and rung.shape == edge.shape
    assert artefacts.ring(torch.rand(1, 7, 9, 5), 0.7, 1).shape == (1, 7, 9, 5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("factor", "offset"), [(2.0, 1.0), (3.0, 0.0), (4.0, 2.0), (2.5, 0.0)])
def test_noise_of_larger_voxels_keeps_its_variance_where_they_lie(factor: float, offset: float, axis: int) -> None:
    shape = [60 if a == axis else 30 for a in range(3)]
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    interpolated = artefacts.interpolate_noise(noise, factor, offset, axis)
    assert interpolated.shape == noise.shape
    # Between two acquired voxels, at the share w of the way, the variance is w^2 + (1 - w)^2.
    position = (torch.arange(8, 52) - offset) / factor
    w = position - position.floor()
    variance = interpolated.var(dim=[a for a in range(4) if a != axis + 1])[8:52]
    torch.testing.assert_close(variance, w**2 + (1 - w) ** 2, rtol=0.25, atol=0)
    torch.testing.assert_close(variance.mean(), (w**2 + (1 - w) ** 2).mean(), rtol=0.04, atol=0)
    # And what lies between them is between them.
    ends = interpolated.movedim(axis + 1, 0)[8:52][w < 1e-6]
    source = noise.movedim(axis + 1, 0)[8:52][w < 1e-6]
    torch.testing.assert_close(ends, source)


def test_noise_of_the_grids_own_voxels_is_left_alone() -> None:
    noise = torch.randn(1, 5, 6, 7)
    assert artefacts.interpolate_noise(noise, 1.0, 0.5, 1) is noise


def test_a_scan_of_larger_voxels_is_as_noisy_in_them_as_was_asked_for() -> None:
    flat = torch.full((1, 40, 40, 40), 50.0)
    noisy = artefacts.rician(flat, 1.5, 0.0, torch.Generator().manual_seed(0), (2.0, 1.0, 3.0))[0]
    # Along the first axis acquired voxels lie at 1, 3, 5, ...; along the last at 1.5, 4.5, ...: 1 and 2 are a sixth of
    # the way from them to the next.
    between = math.sqrt((5 / 6) ** 2 + (1 / 6) ** 2)
    assert float(noisy[1::2, :, 1::3].std()) == pytest.approx(1.5 * between, rel=0.04)
    assert float(noisy[2::2, :, 1::3].std()) == pytest.approx(1.5 * between * math.sqrt(0.5), rel=0.04)
    plain = artefacts.rician(flat, 1.5, 0.0, torch.Generator().manual_seed(0))
    assert float(plain.std()) == pytest.approx(1.5, rel=0.02)

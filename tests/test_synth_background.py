"""PVS mixed into a real scan: partial volume as by hand, nothing outside the hosts, the same from the same record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pvs_model.synth.anatomy import CENTRUM_SEMIOVALE, INDEX, NO_REGION
from pvs_model.synth.background import Background, MixParams, draw_mix, grow, local_tissue, mix, mix_as
from pvs_model.synth.engine import LABEL_COVERAGE, LABEL_COVERAGE_THICK

SHAPE = (26, 24, 20)
FLUID = (20.0, 400.0, 10.0)
TISSUE = (200.0, 100.0, 130.0)


def background(voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), noise: float = 0.0) -> Background:
    """A block of white matter between a ventricle below and cortex above, all of one intensity."""
    tissues = np.full(SHAPE, INDEX["cortex"], np.uint8)
    tissues[2:-2, 2:-2, 2:-3] = INDEX["white_matter"]
    tissues[9:17, 8:16, 2:6] = INDEX["ventricle"]
    hosts = tissues == INDEX["white_matter"]
    hosts[:, :, :3] = False
    images = np.broadcast_to(np.array(TISSUE, np.float32)[:, None, None, None], (3, *SHAPE)).copy()
    images += np.random.default_rng(0).normal(0, 1, images.shape).astype(np.float32) * np.float32(noise)
    regions = np.where(tissues == INDEX["white_matter"], CENTRUM_SEMIOVALE, NO_REGION).astype(np.uint8)
    return Background("block", images, (True, True, True), tissues, regions, hosts, FLUID, np.diag([*voxel_mm, 1.0]))


def many(of: Background, contrast: tuple[float, float], **changes: object) -> MixParams:
    """Many wide tubes, no point spread unless asked for."""
    drawn = draw_mix(of, 1, contrast)
    scene = replace(drawn.scene, pvs_centrum=9.0, pvs_diameter_mm=3.2, pvs_diameter_spread=0.3, pvs_length_mm=9.0)
    return replace(drawn, scene=scene, **{"psf": (0.0, 0.0, 0.0), **changes})  # type: ignore[arg-type]


def test_no_contrast_changes_nothing() -> None:
    scan = background(noise=3.0)
    case = mix_as(scan, many(scan, (0.0, 0.0), psf=(0.4, 0.4, 0.4)))
    np.testing.assert_array_equal(case.images, scan.images)
    assert case.truth.sum() > 20  # there are tubes, only they cannot be seen


@pytest.mark.parametrize("strength", [0.2, 0.55, 1.0])
def test_a_full_voxel_takes_its_share_of_the_contrast(strength: float) -> None:
    scan = background()
    params = many(scan, (strength, strength))
    coverage, _ = grow(scan, params)
    full = coverage > 1 - 1e-6
    assert full.sum() > 10
    case = mix_as(scan, params)
    for channel in range(3):
        expected = TISSUE[channel] + strength * (FLUID[channel] - TISSUE[channel])
        np.testing.assert_allclose(case.images[channel][full], expected, rtol=1e-5)
        # And every other voxel its share of that.
        partly = TISSUE[channel] + strength * coverage * (FLUID[channel] - TISSUE[channel])
        np.testing.assert_allclose(case.images[channel], partly, rtol=1e-5)


def test_strengths_lie_within_the_range_asked_for() -> None:
    scan = background()
    coverage, signal = grow(scan, many(scan, (0.2, 0.7)))
    ratio = signal[coverage > 0.05] / coverage[coverage > 0.05]
    assert 0.2 - 1e-5 <= ratio.min() < 0.95 * ratio.max() <= 0.7 * 0.95 + 1e-5


def test_tubes_stay_in_their_hosts() -> None:
    scan = background()
    params = many(scan, (0.5, 0.5))
    coverage, _ = grow(scan, params)
    case = mix_as(scan, params)
    assert coverage[scan.hosts].max() == 1.0
    assert not coverage[~scan.hosts].any() and not case.truth[~scan.hosts].any()
    np.testing.assert_array_equal(case.images[:, ~scan.hosts], scan.images[:, ~scan.hosts])
    # A point spread smears what is bright, by a voxel or two, and moves no truth.
    spread = mix_as(scan, replace(params, psf=(0.4, 0.4, 0.4)))
    np.testing.assert_array_equal(spread.truth, case.truth)
    assert (spread.images[1][~scan.hosts] > scan.images[1][~scan.hosts]).any()


@pytest.mark.parametrize(
    ("voxel", "share"), [((1.0, 1.0, 2.0), LABEL_COVERAGE), ((0.8, 0.8, 5.0), LABEL_COVERAGE_THICK)]
)
def test_truth_follows_the_coverage_rule(voxel: tuple[float, float, float], share: float) -> None:
    scan = background(voxel)
    params = many(scan, (0.3, 0.6))
    coverage, _ = grow(scan, params)
    truth = mix_as(scan, params).truth > 0
    np.testing.assert_array_equal(truth, coverage >= share)
    assert truth.any() and ((coverage > 0) & ~truth).any()


def test_noise_is_left_as_it_is() -> None:
    scan = background(noise=4.0)
    params = many(scan, (1.0, 1.0))
    full = grow(scan, params)[0] > 1 - 1e-6
    case = mix_as(scan, params)
    # At full contrast nothing of the tissue is left, yet the voxel is as noisy as before.
    assert float(case.images[1][full].std()) == pytest.approx(float(scan.images[1][full].std()), rel=0.15)
    assert float(case.images[1][full].mean()) == pytest.approx(FLUID[1], abs=1.5)


def test_contrast_is_against_the_tissue_around() -> None:
    hosts = np.zeros((21, 9, 9), bool)
    hosts[2:-2, 2:-2, 2:-2] = True
    image = np.full(hosts.shape, 999.0, np.float32)  # what is no host does not count
    image[hosts] = 80.0
    around = local_tissue(image, hosts, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(around[hosts], 80.0, rtol=1e-5)


def test_a_missing_sequence_stays_missing() -> None:
    scan = background()
    images = scan.images.copy()
    images[2] = 0
    case = mix(replace(scan, images=images, present=(True, True, False)), 4)
    assert case.present == (True, True, False) and not case.images[2].any()


def test_a_scan_without_hosts_is_left_alone() -> None:
    scan = background()
    case = mix(replace(scan, hosts=np.zeros_like(scan.hosts)), 4)
    assert not case.truth.any()
    np.testing.assert_array_equal(case.images, scan.images)


def test_equal_seeds_and_equal_records_give_equal_mixes() -> None:
    scan = background(noise=3.0)
    first, again, other = mix(scan, 5), mix(scan, 5), mix(scan, 6)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.truth, mix_as(scan, first.mix).truth)
    assert first.mix != other.mix and (first.images != other.images).any()
    assert first.mix.contrast == (0.2, 0.7) and 0.2 <= first.mix.scene.pvs_strength <= 0.7
    # No look-alike is painted: the scan has its own.
    scene = first.mix.scene
    assert scene.islands == scene.sheets == scene.folia == scene.lesion_burden == scene.lacunes == scene.voids == 0

"""PVS mixed into a real scan: partial volume as by hand, nothing outside the hosts, the same from the same record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from pvs_model.synth.anatomy import CENTRUM_SEMIOVALE, INDEX, NO_REGION
from pvs_model.synth.background import Background, MixParams, draw_mix, grow, local_tissue, mix, mix_as, noise_of
from pvs_model.synth.engine import LEAST_NOISE
from pvs_model.synth.visibility import HIDDEN, VISIBLE, label_visible

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
    # There are tubes, only they cannot be seen: neither labelled nor ignored.
    assert (case.pvs.fluid > 0).sum() > 20 and (case.pvs.diameter_mm > 0).sum() > 20
    assert not case.pvs.cnr.any() and not case.truth.any() and not case.pvs.ignore.any()


@pytest.mark.parametrize("strength", [0.2, 0.55, 1.0])
def test_a_full_voxel_takes_its_share_of_the_contrast(strength: float) -> None:
    scan = background()
    params = many(scan, (strength, strength))
    coverage, _, _ = grow(scan, params)
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
    coverage, signal, _ = grow(scan, many(scan, (0.2, 0.7)))
    ratio = signal[coverage > 0.05] / coverage[coverage > 0.05]
    assert 0.2 - 1e-5 <= ratio.min() < 0.95 * ratio.max() <= 0.7 * 0.95 + 1e-5


def test_tubes_stay_in_their_hosts() -> None:
    scan = background()
    params = many(scan, (0.5, 0.5))
    coverage, _, diameter = grow(scan, params)
    case = mix_as(scan, params)
    np.testing.assert_array_equal(diameter > 0, coverage > 0)
    assert coverage[scan.hosts].max() == 1.0
    assert not coverage[~scan.hosts].any() and not case.truth[~scan.hosts].any()
    np.testing.assert_array_equal(case.images[:, ~scan.hosts], scan.images[:, ~scan.hosts])
    # A point spread smears what is bright, by a voxel or two, and the fluid stays where it is.
    spread = mix_as(scan, replace(params, psf=(0.4, 0.4, 0.4)))
    np.testing.assert_array_equal(spread.pvs.fluid, coverage)
    beyond = (spread.truth > 0) & (ndimage.maximum_filter(coverage, 3) == 0)
    assert not beyond.any(), "a label lies no further than a voxel from its tube"
    assert (spread.images[1][~scan.hosts] > scan.images[1][~scan.hosts]).any()


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 2.0), (0.8, 0.8, 5.0)])
def test_labels_follow_what_can_be_seen(voxel: tuple[float, float, float]) -> None:
    # Contrast and noise of every channel are known, and no point spread is in the way: T1w 180 and 12, T2w 300 and 30,
    # FLAIR 120 and 60, so that a voxel's signal s has a contrast-to-noise ratio of 15, 10 and 2 times s.
    scan = background(voxel)
    rng = np.random.default_rng(3)
    images = scan.images + rng.normal(0, 1, scan.images.shape) * np.array([12, 30, 60])[:, None, None, None]
    scan = replace(scan, images=images.astype(np.float32))
    params = many(scan, (0.1, 0.3), psf=(0.0, 0.0, 0.0))
    coverage, signal, diameter = grow(scan, params)
    case = mix_as(scan, params)
    for found, kept in ((case.pvs.fluid, coverage), (case.pvs.diameter_mm, diameter)):
        np.testing.assert_array_equal(found, kept)
    inside = signal > 0.02
    assert inside.any() and not case.pvs.cnr[signal == 0].any()
    np.testing.assert_allclose(case.pvs.cnr[inside] / signal[inside], 15.0, rtol=0.2)  # the best channel's
    label, ignore = (mask.numpy() for mask in label_visible(torch.from_numpy(case.pvs.cnr), voxel))
    np.testing.assert_array_equal(case.truth > 0, label)
    np.testing.assert_array_equal(case.pvs.ignore > 0, ignore)
    assert label.any() and (case.pvs.cnr[label] >= VISIBLE / 2).all()
    assert (case.pvs.cnr[ignore] > HIDDEN / 2).all() and (case.pvs.cnr[ignore] < VISIBLE).all()

    # Without its best channel fewer are seen, without any contrast in the others none.
    dark = replace(scan, present=(False, True, True))
    np.testing.assert_allclose(mix_as(dark, params).pvs.cnr[inside] / signal[inside], 10.0, rtol=0.2)
    none = replace(scan, present=(False, False, False))
    assert not mix_as(none, params).pvs.cnr.any() and not mix_as(none, params).truth.any()


def test_a_scan_without_noise_has_the_least_there_is() -> None:
    scan = background()
    params = many(scan, (0.3, 0.3))
    _, signal, _ = grow(scan, params)
    np.testing.assert_allclose(mix_as(scan, params).pvs.cnr, signal / LEAST_NOISE, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sd", [1.0, 25.0])
def test_the_noise_of_white_noise_is_its_deviation(sd: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(300.0, sd, (40, 36, 30)).astype(np.float32)
    hosts = np.zeros(image.shape, bool)
    hosts[3:-3, 2:-2, 1:-1] = True
    assert noise_of(image, hosts) == pytest.approx(sd, rel=0.03)
    # A slope, however steep, and what lies outside the hosts are no noise; a few outliers hardly count.
    other = image + 5 * sd * np.arange(40, dtype=np.float32)[:, None, None]
    other[~hosts] = 1e4
    other[10:12, 5:9, 5:9] += 100 * sd
    assert noise_of(other, hosts) == pytest.approx(sd, rel=0.04)
    assert noise_of(image, np.zeros_like(hosts)) == 0.0


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
    assert scene.cavities == scene.lesion_dots == scene.bridges == 0


def test_a_mix_of_thin_subjects_has_thinner_tubes_than_one_of_wide_ones() -> None:
    scan = background()
    thin, wide = ([draw_mix(scan, seed, subject=kind).scene for seed in range(60)] for kind in ("thin", "wide"))
    assert np.median([s.pvs_diameter_mm for s in thin]) < 0.8 * np.median([s.pvs_diameter_mm for s in wide])
    assert np.median([s.pvs_centrum for s in thin]) > 2 * np.median([s.pvs_centrum for s in wide])

"""PVS inserted into a real scan: partial volume by hand, nothing outside the insertion sites, replay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from pvs_model.simulation.acquisition import MIN_NOISE
from pvs_model.simulation.head import CENTRUM_SEMIOVALE, INDEX, NO_REGION
from pvs_model.simulation.insertion import (
    InsertionParams,
    RealScan,
    draw_insertion,
    estimate_noise,
    grow_pvs,
    insert_pvs,
    insert_with,
    local_mean,
)
from pvs_model.simulation.parameters import without_mimics
from pvs_model.simulation.visibility import HIDDEN, VISIBLE, label_visible

SHAPE = (26, 24, 20)
FLUID = (20.0, 400.0, 10.0)
TISSUE = (200.0, 100.0, 130.0)


def block(voxel_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), noise: float = 0.0) -> RealScan:
    """A block of white matter between a ventricle below and cortex above, all of one intensity."""
    tissues = np.full(SHAPE, INDEX["cortex"], np.uint8)
    tissues[2:-2, 2:-2, 2:-3] = INDEX["white_matter"]
    tissues[9:17, 8:16, 2:6] = INDEX["ventricle"]
    sites = tissues == INDEX["white_matter"]
    sites[:, :, :3] = False
    images = np.broadcast_to(np.array(TISSUE, np.float32)[:, None, None, None], (3, *SHAPE)).copy()
    images += np.random.default_rng(0).normal(0, 1, images.shape).astype(np.float32) * np.float32(noise)
    regions = np.where(tissues == INDEX["white_matter"], CENTRUM_SEMIOVALE, NO_REGION).astype(np.uint8)
    return RealScan("block", images, (True, True, True), tissues, regions, sites, FLUID, np.diag([*voxel_mm, 1.0]))


def many(scan: RealScan, contrast: tuple[float, float], **changes: object) -> InsertionParams:
    """Many wide tubes, no point spread unless asked for."""
    drawn = draw_insertion(scan, 1, contrast)
    scene = replace(drawn.scene, pvs_centrum=9.0, pvs_diameter_mm=3.2, pvs_diameter_spread=0.3, pvs_length_mm=9.0)
    return replace(drawn, scene=scene, **{"psf": (0.0, 0.0, 0.0), **changes})  # type: ignore[arg-type]


def test_no_contrast_changes_nothing() -> None:
    scan = block(noise=3.0)
    case = insert_with(scan, many(scan, (0.0, 0.0), psf=(0.4, 0.4, 0.4)))
    np.testing.assert_array_equal(case.images, scan.images)
    # There are tubes, but they are invisible: neither labelled nor ignored.
    assert (case.pvs.pvs_fraction > 0).sum() > 20 and (case.pvs.diameter_mm > 0).sum() > 20
    assert not case.pvs.cnr.any() and not case.reference.any() and not case.pvs.ignore.any()


@pytest.mark.parametrize("relative", [0.2, 0.55, 1.0])
def test_a_full_voxel_takes_its_share_of_the_contrast(relative: float) -> None:
    scan = block()
    params = many(scan, (relative, relative))
    fraction, _, _ = grow_pvs(scan, params)
    full = fraction > 1 - 1e-6
    assert full.sum() > 10
    case = insert_with(scan, params)
    for channel in range(3):
        expected = TISSUE[channel] + relative * (FLUID[channel] - TISSUE[channel])
        np.testing.assert_allclose(case.images[channel][full], expected, rtol=1e-5)
        # And every other voxel its share of that.
        partly = TISSUE[channel] + relative * fraction * (FLUID[channel] - TISSUE[channel])
        np.testing.assert_allclose(case.images[channel], partly, rtol=1e-5)


def test_contrasts_lie_within_the_range_asked_for() -> None:
    scan = block()
    fraction, signal, _ = grow_pvs(scan, many(scan, (0.2, 0.7)))
    ratio = signal[fraction > 0.05] / fraction[fraction > 0.05]
    assert 0.2 - 1e-5 <= ratio.min() < 0.95 * ratio.max() <= 0.7 * 0.95 + 1e-5


def test_tubes_stay_within_insertion_sites() -> None:
    scan = block()
    params = many(scan, (0.5, 0.5))
    fraction, _, diameter = grow_pvs(scan, params)
    case = insert_with(scan, params)
    np.testing.assert_array_equal(diameter > 0, fraction > 0)
    assert fraction[scan.insertion_sites].max() == 1.0
    assert not fraction[~scan.insertion_sites].any() and not case.reference[~scan.insertion_sites].any()
    np.testing.assert_array_equal(case.images[:, ~scan.insertion_sites], scan.images[:, ~scan.insertion_sites])
    # The point spread blurs the image by a voxel or two; the PVS fraction does not change.
    spread = insert_with(scan, replace(params, psf=(0.4, 0.4, 0.4)))
    np.testing.assert_array_equal(spread.pvs.pvs_fraction, fraction)
    beyond = (spread.reference > 0) & (ndimage.maximum_filter(fraction, 3) == 0)
    assert not beyond.any(), "a label lies no further than a voxel from its tube"
    assert (spread.images[1][~scan.insertion_sites] > scan.images[1][~scan.insertion_sites]).any()


@pytest.mark.parametrize("voxel", [(1.0, 1.0, 2.0), (0.8, 0.8, 5.0)])
def test_labels_follow_what_can_be_seen(voxel: tuple[float, float, float]) -> None:
    # Contrast and noise of every channel are known, and no point spread is in the way: T1w 180 and 12, T2w 300 and 30,
    # FLAIR 120 and 60, so that a voxel's signal s has a contrast-to-noise ratio of 15, 10 and 2 times s.
    scan = block(voxel)
    rng = np.random.default_rng(3)
    images = scan.images + rng.normal(0, 1, scan.images.shape) * np.array([12, 30, 60])[:, None, None, None]
    scan = replace(scan, images=images.astype(np.float32))
    params = many(scan, (0.1, 0.3), psf=(0.0, 0.0, 0.0))
    fraction, signal, diameter = grow_pvs(scan, params)
    case = insert_with(scan, params)
    for actual, expected in ((case.pvs.pvs_fraction, fraction), (case.pvs.diameter_mm, diameter)):
        np.testing.assert_array_equal(actual, expected)
    inside = signal > 0.02
    assert inside.any() and not case.pvs.cnr[signal == 0].any()
    np.testing.assert_allclose(case.pvs.cnr[inside] / signal[inside], 15.0, rtol=0.2)  # the best channel's
    label, ignore = (mask.numpy() for mask in label_visible(torch.from_numpy(case.pvs.cnr), voxel))
    np.testing.assert_array_equal(case.reference > 0, label)
    np.testing.assert_array_equal(case.pvs.ignore > 0, ignore)
    assert label.any() and (case.pvs.cnr[label] >= VISIBLE / 2).all()
    assert (case.pvs.cnr[ignore] > HIDDEN / 2).all() and (case.pvs.cnr[ignore] < VISIBLE).all()

    # Without its best channel fewer are seen, without any contrast in the others none.
    dark = replace(scan, present=(False, True, True))
    np.testing.assert_allclose(insert_with(dark, params).pvs.cnr[inside] / signal[inside], 10.0, rtol=0.2)
    none = replace(scan, present=(False, False, False))
    assert not insert_with(none, params).pvs.cnr.any() and not insert_with(none, params).reference.any()


def test_a_scan_without_noise_has_the_least_there_is() -> None:
    scan = block()
    params = many(scan, (0.3, 0.3))
    _, signal, _ = grow_pvs(scan, params)
    np.testing.assert_allclose(insert_with(scan, params).pvs.cnr, signal / MIN_NOISE, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sd", [1.0, 25.0])
def test_the_noise_of_white_noise_is_its_deviation(sd: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(300.0, sd, (40, 36, 30)).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[3:-3, 2:-2, 1:-1] = True
    assert estimate_noise(image, mask) == pytest.approx(sd, rel=0.03)
    # A slope, however steep, and values outside the mask are no noise; a few outliers hardly count.
    other = image + 5 * sd * np.arange(40, dtype=np.float32)[:, None, None]
    other[~mask] = 1e4
    other[10:12, 5:9, 5:9] += 100 * sd
    assert estimate_noise(other, mask) == pytest.approx(sd, rel=0.04)
    assert estimate_noise(image, np.zeros_like(mask)) == 0.0


def test_noise_is_left_as_it_is() -> None:
    scan = block(noise=4.0)
    params = many(scan, (1.0, 1.0))
    full = grow_pvs(scan, params)[0] > 1 - 1e-6
    case = insert_with(scan, params)
    # At full contrast nothing of the tissue is left, yet the voxel is as noisy as before.
    assert float(case.images[1][full].std()) == pytest.approx(float(scan.images[1][full].std()), rel=0.15)
    assert float(case.images[1][full].mean()) == pytest.approx(FLUID[1], abs=1.5)


def test_contrast_is_against_the_tissue_around() -> None:
    mask = np.zeros((21, 9, 9), bool)
    mask[2:-2, 2:-2, 2:-2] = True
    image = np.full(mask.shape, 999.0, np.float32)  # outside the mask, which does not count
    image[mask] = 80.0
    around = local_mean(image, mask, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(around[mask], 80.0, rtol=1e-5)


def test_a_missing_sequence_stays_missing() -> None:
    scan = block()
    images = scan.images.copy()
    images[2] = 0
    case = insert_pvs(replace(scan, images=images, present=(True, True, False)), 4)
    assert case.present == (True, True, False) and not case.images[2].any()


def test_a_scan_without_insertion_sites_is_unchanged() -> None:
    scan = block()
    case = insert_pvs(replace(scan, insertion_sites=np.zeros_like(scan.insertion_sites)), 4)
    assert not case.reference.any()
    np.testing.assert_array_equal(case.images, scan.images)


def test_equal_seeds_and_equal_records_give_equal_cases() -> None:
    scan = block(noise=3.0)
    first, again, other = insert_pvs(scan, 5), insert_pvs(scan, 5), insert_pvs(scan, 6)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.reference, insert_with(scan, first.params).reference)
    assert first.params != other.params and (first.images != other.images).any()
    assert first.params.contrast == (0.2, 0.7) and 0.2 <= first.params.scene.pvs_relative_contrast <= 0.7
    # No mimics are drawn: the scan has its own.
    assert without_mimics(first.params.scene) == first.params.scene


def test_thin_subjects_get_thinner_tubes_than_wide_ones() -> None:
    scan = block()
    thin, wide = (
        [draw_insertion(scan, seed, subject=subject).scene for seed in range(60)] for subject in ("thin", "wide")
    )
    assert np.median([s.pvs_diameter_mm for s in thin]) < 0.8 * np.median([s.pvs_diameter_mm for s in wide])
    assert np.median([s.pvs_centrum for s in thin]) > 2 * np.median([s.pvs_centrum for s in wide])

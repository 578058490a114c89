"""The rule on the signal of clusters: PVS are not dark in T2w and not bright in FLAIR."""

from __future__ import annotations

import numpy as np
import pytest

from pvs_model.inference.signal_rule import MAX_FLAIR, noise_of, remove_components_unlike_csf
from pvs_model.types import BoolArray, FloatArray, Mask

SHAPE = (24, 20, 16)
MM = (1.0, 1.0, 1.0)
TISSUE: BoolArray = np.ones(SHAPE, bool)
#: Places of three clusters of one voxel.
PVS, VESSEL, LESION = (4, 4, 4), (12, 10, 8), (19, 15, 11)


def scene(seed: int = 0) -> tuple[Mask, FloatArray, FloatArray]:
    """Mask, probability and images of a PVS, a vessel and a lesion in noise of 1."""
    images = np.random.default_rng(seed).normal(size=(3, *SHAPE)).astype(np.float32)
    mask, probability = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    for place, signals in ((PVS, (-9, 9, -9)), (VESSEL, (-9, -9, -9)), (LESION, (-9, 9, 9))):
        mask[place], probability[place], images[(slice(None), *place)] = 1, 0.9, signals
    return mask, probability, images


def test_a_vessel_and_a_lesion_are_removed_and_a_pvs_is_kept() -> None:
    mask, probability, images = scene()
    kept, removed = remove_components_unlike_csf(mask, probability, images, TISSUE, MM)
    assert removed == 2 and kept.dtype == np.uint8 and np.argwhere(kept).tolist() == [list(PVS)]
    assert mask.sum() == 3, "the input is not changed"


@pytest.mark.parametrize(
    ("missing", "removed"), [((0,), 2), ((1,), 1), ((2,), 1), ((1, 2), 0)], ids=["T1w", "T2w", "FLAIR", "both"]
)
def test_a_missing_sequence_decides_nothing(missing: tuple[int, ...], removed: int) -> None:
    mask, probability, images = scene()
    images[list(missing)] = 0
    assert remove_components_unlike_csf(mask, probability, images, TISSUE, MM)[1] == removed


def test_a_sequence_decides_nothing_where_it_has_no_data() -> None:
    mask, probability, images = scene()
    images[1:] += 5  # 0 is far from the signal of tissue
    images[1, 9:], images[2, :9] = 0, 0  # T2w covers the PVS, FLAIR the vessel and the lesion
    images[1, 3:6, 3:6, 8:] = 0  # and T2w ends near the PVS
    kept, removed = remove_components_unlike_csf(mask, probability, images, TISSUE, MM)
    assert removed == 1 and kept[PVS] and kept[VESSEL] and not kept[LESION]


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_the_scale_of_the_images_does_not_matter(scale: float) -> None:
    mask, probability, images = scene(seed=3)
    shifted = images * scale + 5 * scale
    assert remove_components_unlike_csf(mask, probability, shifted, TISSUE, MM)[1] == 2


def test_the_limit_in_flair_is_in_units_of_the_noise() -> None:
    mask, probability, images = scene(seed=1)
    mask[:], probability[:] = 0, 0
    mask[PVS], probability[PVS] = 1, 0.8
    box = np.s_[2:7, 2:7, 2:7]
    images[2][box] = np.random.default_rng(2).permutation(np.linspace(-1, 1, 125)).reshape(5, 5, 5)  # median 0
    noise = noise_of(images[2], TISSUE, MM)
    for contrast, removed in ((MAX_FLAIR - 0.2, 0), (MAX_FLAIR + 0.2, 1)):
        images[2][PVS] = contrast * noise
        assert remove_components_unlike_csf(mask, probability, images, TISSUE, MM)[1] == removed


def test_only_the_most_probable_voxels_of_a_cluster_count() -> None:
    mask, probability, images = scene()
    x, y, z = PVS
    mask[x + 1, y, z], probability[x + 1, y, z], images[1, x + 1, y, z] = 1, 0.5, -50  # a dark neighbour
    assert remove_components_unlike_csf(mask, probability, images, TISSUE, MM)[0][PVS] == 1
    probability[x + 1, y, z] = 0.9
    assert remove_components_unlike_csf(mask, probability, images, TISSUE, MM)[0][PVS] == 0


def test_clusters_without_tissue_around_them_and_empty_masks_are_kept() -> None:
    mask, probability, images = scene()
    nowhere: BoolArray = np.zeros(SHAPE, bool)
    kept, removed = remove_components_unlike_csf(mask, probability, images, nowhere, MM)
    assert removed == 0 and np.array_equal(kept, mask)
    empty, removed = remove_components_unlike_csf(mask * 0, probability, images, TISSUE, MM)
    assert removed == 0 and not empty.any()


def test_surroundings_of_a_long_oblique_tube_are_near_it() -> None:
    """A tube brighter than the tissue around it, in a volume whose far corners are brighter still."""
    places = np.arange(20)
    images = np.random.default_rng(4).normal(0, 0.1, (3, 20, 20, 20)).astype(np.float32)
    x, y, z = np.indices((20, 20, 20))
    far = np.maximum(np.abs(x - y), np.abs(y - z)) > 4
    images[1][far] += 9
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[places, places, places] = 1
    images[1, places, places, places] = 2
    assert far.mean() > 0.5
    assert remove_components_unlike_csf(mask, mask.astype(np.float32), images, np.ones(mask.shape, bool), MM)[1] == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_noise_is_not_that_across_interpolated_thick_slices(axis: int) -> None:
    """Slices of 5 mm, interpolated to 1 mm, along any axis."""
    slices = np.random.default_rng(6).normal(0, 2, (9, 41, 41))
    image = np.moveaxis(
        np.stack([np.interp(np.arange(41) / 5, np.arange(9), c) for c in slices.reshape(9, -1).T]), 1, 0
    )
    image = np.moveaxis(image.reshape(41, 41, 41), 0, axis).astype(np.float32)
    assert noise_of(image, np.ones(image.shape, bool), MM) == pytest.approx(1.6, abs=0.15)


def test_a_sequence_without_noise_decides_nothing() -> None:
    mask, probability, images = scene()
    images[2] = np.where(np.random.default_rng(7).random(SHAPE) < 0.2, 3, 2)  # integers: most differences are 0
    images[2][PVS] = 3
    assert noise_of(images[2], TISSUE, MM) == 0
    assert remove_components_unlike_csf(mask, probability, images, TISSUE, MM)[0][PVS] == 1


def test_the_noise_is_that_of_the_image_also_on_an_interpolated_grid() -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(0, 2.5, (40, 40, 40)).astype(np.float32)
    ramp = np.linspace(0, 50, 40, dtype=np.float32)[:, None, None]
    assert noise_of(image + ramp, np.ones(image.shape, bool), MM) == pytest.approx(2.5, rel=0.03)
    twice = np.repeat(image, 2, axis=0)
    assert noise_of(twice, np.ones(twice.shape, bool), (0.5, 1.0, 1.0)) == pytest.approx(2.5, rel=0.03)

"""Real scans for insertion: registration of a label map, insertion sites by intensity, and the cache."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from pvs_model.datasets import real_scans
from pvs_model.datasets.atlas_registration import RegisteredAtlas, make_atlas, register
from pvs_model.datasets.insertion_sites import (
    core_of,
    find_insertion_sites,
    find_lesions,
    remove_small_components,
    robust,
)
from pvs_model.datasets.real_scans import load_real_scans
from pvs_model.errors import PVSError, VolumeError
from pvs_model.simulation.head import BASAL_GANGLIA, INDEX, TISSUES, is_tissue, to_tissues
from pvs_model.simulation.tissue_contrast import TISSUE_SIGNALS
from pvs_model.types import SEQUENCES, Grid
from pvs_model.volume.io import write_volume

NOISE = 0.01


def scan_of(tissues: npt.NDArray[np.uint8], channel: int) -> npt.NDArray[np.float32]:
    """A scan of a tissue map: 500 times the priors, a little blurred and noisy, 0 outside."""
    prior = np.array([TISSUE_SIGNALS[name][channel] for name in TISSUES], np.float32)
    image = ndimage.gaussian_filter(prior[tissues], 0.5)
    image += np.random.default_rng(channel).normal(0, NOISE, image.shape).astype(np.float32)
    return np.where(tissues > 0, np.maximum(image, 0.01) * 500, 0).astype(np.float32)


@pytest.fixture(scope="module")
def brain(small_labels: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The brain of the toy head, skull-stripped."""
    return make_atlas("toy", to_tissues(small_labels), np.eye(4)).tissues


# ---- insertion sites -----------------------------------------------------------------------------------------------


def sites_of(
    brain: npt.NDArray[np.uint8], scans: npt.NDArray[np.float32], present: tuple[bool, bool, bool] = (True, True, True)
) -> npt.NDArray[np.bool_]:
    return find_insertion_sites(scans, scans, present, brain, brain > 0, (1.0, 1.0, 1.0)).mask


def test_insertion_sites_are_tissue_with_its_intensity(brain: npt.NDArray[np.uint8]) -> None:
    scans = np.stack([scan_of(brain, channel) for channel in range(3)])
    sites = find_insertion_sites(scans, scans, (True, True, True), brain, brain > 0, (1.0, 1.0, 1.0))
    white = is_tissue(brain, "white_matter")
    assert not sites.mask[is_tissue(brain, "cortex", "ventricle", "csf", "air")].any()
    assert sites.mask[core_of(white, 2)].mean() > 0.9 and sites.mask[is_tissue(brain, "putamen")].mean() > 0.4
    # A voxel's distance to fluid, corners included.
    wet = ndimage.binary_dilation(is_tissue(brain, "ventricle"), np.ones((3, 3, 3)))
    assert not sites.mask[wet].any() and not sites.lesions.any()
    for channel, name in enumerate(SEQUENCES):
        assert sites.csf_intensity[channel] == pytest.approx(500 * TISSUE_SIGNALS["ventricle"][channel], rel=0.1), name


@pytest.mark.parametrize("tissue", ["ventricle", "white_matter"])
def test_scans_without_the_scale_of_contrast_are_refused(brain: npt.NDArray[np.uint8], tissue: str) -> None:
    scans = np.stack([scan_of(brain, channel) for channel in range(3)])
    slab = np.where(is_tissue(brain, tissue), INDEX["putamen"], brain).astype(np.uint8)
    with pytest.raises(VolumeError, match="ventricles and white matter"):
        sites_of(slab, scans)


def test_errors_of_the_map_are_no_insertion_sites(brain: npt.NDArray[np.uint8]) -> None:
    # The map says white matter, the scan shows grey matter in a block, and fluid in another.
    scans = np.stack([scan_of(brain, channel) for channel in range(3)])
    gray, wet = (slice(34, 40), slice(38, 44), slice(31, 36)), (slice(16, 20), slice(28, 36), slice(32, 36))
    for block, name in ((gray, "cortex"), (wet, "ventricle")):
        assert (brain[block] == INDEX["white_matter"]).mean() > 0.85
        for channel in range(3):
            scans[channel][block] = 500 * TISSUE_SIGNALS[name][channel]
    sites = sites_of(brain, scans)
    assert not sites[gray].any() and not sites[wet].any()
    assert not sites[15, 28:36, 32:36].any()  # beside the fluid


def test_a_lesion_keeps_its_distance(brain: npt.NDArray[np.uint8]) -> None:
    scans = np.stack([scan_of(brain, channel) for channel in range(3)])
    x, y, z = np.ogrid[: brain.shape[0], : brain.shape[1], : brain.shape[2]]
    distance = np.sqrt((x - 36) ** 2 + (y - 36) ** 2 + (z - 32) ** 2)
    scans[2][(distance < 8) & (brain > 0)] = 600.0  # 2.1 ml, bright in FLAIR only
    sites = sites_of(brain, scans)
    assert not sites[distance < 10.5].any() and sites[(distance > 13) & (distance < 16)].any()
    # Of T1w alone nothing is known about lesions.
    assert not find_lesions({0: scans[0]}, brain > 0, brain > 0, brain > 0, (1.0, 1.0, 1.0)).any()


def test_robust_numbers_by_hand() -> None:
    middle, deviation = robust(np.array([1.0, 2.0, 3.0, 4.0, 100.0], np.float32))
    assert middle == 3.0 and deviation == pytest.approx(1.4826)
    mask = np.zeros((9, 9, 9), bool)
    mask[0, 0, :3] = mask[4:8, 4:8, 4:8] = True
    assert remove_small_components(mask, 64.0, (1.0, 1.0, 1.0)).sum() == 64
    assert remove_small_components(mask, 65.0, (1.0, 1.0, 1.0)).sum() == 0
    assert core_of(mask, 1) is mask  # 8 voxels would be too few to take a median from


# ---- registration --------------------------------------------------------------------------------------------------


def test_a_label_map_is_moved_onto_a_scan(brain: npt.NDArray[np.uint8]) -> None:
    # The scan is the brain turned by 8 degrees, stretched by 6 %, moved by some mm, on a grid of its own.
    angle = np.deg2rad(8)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stretch = np.diag([1.06, 0.97, 1.0, 1.0])
    offset = np.eye(4)
    offset[:3, 3] = (5.0, -4.0, 3.0)
    index = offset @ turn @ stretch
    index[:3, 3] += np.array(brain.shape) / 2 - index[:3, :3] @ (np.array((66, 74, 62)) / 2)
    moved = ndimage.affine_transform(brain, index[:3, :3], index[:3, 3], output_shape=(66, 74, 62), order=0)
    grid = Grid((66, 74, 62), np.diag([1.0, 1.0, 1.0, 1.0]))
    own = make_atlas("own", brain, np.eye(4))
    rest = brain.copy()
    rest[:, :, 30:] = 0  # half a brain fits worse
    scan = scan_of(moved, 0)
    registered = register(scan, grid, moved > 0, "T1w", [make_atlas("half", rest, np.eye(4)), own])
    again = register(scan, grid, moved > 0, "T1w", [own])
    np.testing.assert_array_equal(registered.tissues, again.tissues)
    assert registered.atlas == "own" and registered.similarity > 0.9
    for names in (("white_matter",), ("cortex",), ("ventricle",), ("putamen", "thalamus", "caudate")):
        a, b = is_tissue(registered.tissues, *names), is_tissue(moved, *names)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.75, names


# ---- folders -------------------------------------------------------------------------------------------------------


def write_scan(folder: Path, brain: npt.NDArray[np.uint8], sequences: tuple[str, ...] = SEQUENCES) -> None:
    for channel, name in enumerate(SEQUENCES):
        if name in sequences:
            write_volume(folder / f"{folder.name}_{name}.nii.gz", scan_of(brain, channel), np.eye(4))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, small_labels: npt.NDArray[np.int32]) -> Path:
    """A folder with one scan, a segmentation beside it (flipped along x, as files often are), and a doubled case."""
    folder = tmp_path_factory.mktemp("scans")
    brain = make_atlas("toy", to_tissues(small_labels), np.eye(4))
    margin = int(-brain.affine[0, 3]) if brain.affine[0, 3] < 0 else 0
    assert margin == 0
    whole = np.zeros(small_labels.shape, np.uint8)
    start = [int(s) for s in brain.affine[:3, 3]]
    whole[tuple(slice(s, s + n) for s, n in zip(start, brain.tissues.shape, strict=True))] = brain.tissues
    write_scan(folder / "one", whole)
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = small_labels.shape[0] - 1
    write_volume(folder / "one" / "one_aseg.nii.gz", small_labels[::-1], flipped)
    for name in ("a_T1w", "b_T1w"):
        write_volume(folder / "two" / f"{name}.nii.gz", scan_of(whole, 0), np.eye(4))
    return folder


def test_a_segmentation_beside_the_images_is_used(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    with caplog.at_level(logging.WARNING):
        (scan,) = load_real_scans(labelled, cache=tmp_path)
    assert "two" in caplog.text and scan.name == "one" and scan.present == (True, True, True)
    shown = scan.images[0] > 0
    # Air in the segmentation is not shown. Deep nuclei are basal ganglia; insertion sites include white matter.
    assert (scan.tissues[shown] > 0).mean() > 0.97
    assert (scan.regions[is_tissue(scan.tissues, "putamen", "thalamus")] == BASAL_GANGLIA).all()
    assert scan.insertion_sites[is_tissue(scan.tissues, "white_matter")].mean() > 0.3
    assert scan.csf_intensity[1] == pytest.approx(500, rel=0.1)

    # What was found is kept, and a kept result is equal.
    def fail(*_: object) -> None:
        raise AssertionError("found anew")

    monkeypatch.setattr(real_scans, "find_insertion_sites", fail)
    (again,) = load_real_scans(labelled, cache=tmp_path)
    for name in ("images", "tissues", "regions", "insertion_sites"):
        np.testing.assert_array_equal(getattr(again, name), getattr(scan, name))
    assert again.csf_intensity == scan.csf_intensity and again.voxel_mm == (1.0, 1.0, 1.0)


def test_a_scan_without_segmentation_needs_label_maps(labelled: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for name in ("one_T1w.nii.gz", "one_T2w.nii.gz"):
        (folder / "one").mkdir(parents=True, exist_ok=True)
        (folder / "one" / name).symlink_to(labelled / "one" / name)
    with pytest.raises(
        VolumeError, match=r"one: expected one_aseg.nii.gz beside the images, or a folder of label maps"
    ):
        load_real_scans(folder)
    with pytest.raises(PVSError, match="expected"):
        load_real_scans(labelled / "two")


def test_a_label_map_that_does_not_fit_is_refused(
    labelled: Path, small_labels: npt.NDArray[np.int32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scans" / "one"
    folder.mkdir(parents=True)
    (folder / "one_T1w.nii.gz").symlink_to(labelled / "one" / "one_T1w.nii.gz")
    write_volume(tmp_path / "maps" / "a.nii.gz", small_labels, np.eye(4))
    with monkeypatch.context() as patch:
        poor = RegisteredAtlas("a.nii.gz", np.zeros(small_labels.shape, np.uint8), 0.2)
        patch.setattr(real_scans, "register", lambda *_: poor)
        with pytest.raises(VolumeError, match=r"one: expected a skull-stripped brain that one of 1 label maps fits"):
            load_real_scans(tmp_path / "scans", tmp_path / "maps")
    (scan,) = load_real_scans(tmp_path / "scans", tmp_path / "maps")
    assert scan.present == (True, False, False) and scan.insertion_sites.any() and scan.csf_intensity[1] == 0


def test_label_maps_are_tried_evenly_spread() -> None:
    paths = [Path(str(k)) for k in range(16)]
    assert [p.name for p in real_scans._spread(paths)] == ["0", "5", "10"]
    assert real_scans._spread(paths[:2]) == paths[:2]
    assert list(itertools.chain(real_scans._spread([]))) == []

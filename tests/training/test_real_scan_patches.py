"""Patches of unlabelled scans: what is foreground, background and ignored, and which files make one scan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from pvs_model import cli
from pvs_model.anatomy.regions import Anatomy
from pvs_model.config import NetworkConfig
from pvs_model.errors import VolumeError
from pvs_model.simulation.head import INDEX, is_tissue
from pvs_model.simulation.parameters import SceneParams
from pvs_model.training import real_scan_patches, sampling, simulated_patches
from pvs_model.training.batch import UNKNOWN
from pvs_model.training.config import TrainingConfig
from pvs_model.training.real_scan_patches import (
    RealScanPatches,
    UnlabelledScan,
    _group_files,
    load_unlabelled_scans,
    unlabelled_scan,
)
from pvs_model.training.sampling import FoldData, make_sampler
from pvs_model.types import Volume

SHAPE = (56, 60, 52)
THREE = NetworkConfig(widths=(4, 8, 12, 16), nested_from=0, fluid=False)
TWO = replace(THREE, dimensions=2, neighbour_slices=3)


def ball_parts(thickness_mm: float = 1.0) -> tuple[np.ndarray, Anatomy, np.ndarray]:
    """Images, parcellation and affine: white matter around a ventricle, in cortex, in CSF; FLAIR is missing."""
    spacing = np.array([1.0, 1.0, thickness_mm])
    shape = (SHAPE[0], SHAPE[1], int(SHAPE[2] / thickness_mm))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    radius = np.linalg.norm((index + 0.5) * spacing - np.array(shape) * spacing / 2, axis=-1)
    labels = np.select([radius < 6, radius < 18, radius < 22, radius < 25], [4, 2, 3, 24], 0).astype(np.uint8)
    signal = {0: (0, 0), 4: (20, 100), 24: (22, 98), 3: (70, 40), 2: (100, 30)}
    rng = np.random.default_rng(1)
    images = np.zeros((3, *shape), np.float32)
    for channel in range(2):
        table = np.zeros(25)
        for value, levels in signal.items():
            table[value] = levels[channel]
        images[channel] = table[labels] + (labels > 0) * rng.normal(0, 1.5, shape)
    affine = np.diag([*spacing, 1.0])
    return images, Anatomy(labels, (labels > 0) & (labels != 24)), affine


def ball_brain(thickness_mm: float = 1.0) -> UnlabelledScan:
    images, anatomy, affine = ball_parts(thickness_mm)
    return unlabelled_scan("ball", images, (True, True, False), anatomy, Volume(images[1], affine))


@pytest.fixture(scope="module")
def thin() -> UnlabelledScan:
    return ball_brain()


def test_tissue_that_may_hold_pvs_and_its_border_are_no_certain_background(thin: UnlabelledScan) -> None:
    white = is_tissue(thin.background.tissues, "white_matter")
    assert not thin.certain[white].any()
    cortex = is_tissue(thin.background.tissues, "cortex")
    assert 0.2 < thin.certain[cortex].mean() < 0.95  # its inner voxels touch white matter
    assert thin.certain[thin.background.tissues == INDEX["other"]].all()
    assert thin.background.insertion_sites.any() and not thin.background.insertion_sites[~white].any()


@pytest.mark.parametrize("config", [THREE, TWO], ids=["3d", "2d"])
def test_targets_say_what_is_known(thin: UnlabelledScan, config: NetworkConfig) -> None:
    patches = RealScanPatches([thin], config, 32, seed=4)
    ignored = labelled = 0
    for number in range(12):
        batch = patches.sample(number)
        label, ignore, pvs_fraction = batch.target[0]
        assert batch.images.shape == (1, config.in_channels, *[32] * config.dimensions)
        assert batch.images.isfinite().all() and set(batch.target[0, :2].unique().tolist()) <= {0.0, 1.0}
        assert not (label * ignore).any()
        # The PVS fraction is known where the loss looks, and nowhere else.
        assert torch.equal(pvs_fraction == UNKNOWN, ignore > 0)
        assert (pvs_fraction[(ignore == 0) & (label == 0)] <= 0.5).all()
        ignored, labelled = ignored + int(ignore.sum()), labelled + int(label.sum())
        assert "FLAIR" not in batch.prompts[0] and "whole brain" in batch.prompts[0]
        channels = batch.images[0].unflatten(0, (3, -1))
        assert not channels[2].any()
        for channel, name in enumerate(("T1w", "T2w")):
            assert (name in batch.prompts[0]) or not channels[channel].any()
    assert ignored > 0 and labelled > 0


def test_a_patch_follows_from_its_number_alone(thin: UnlabelledScan) -> None:
    one, other = (RealScanPatches([thin], THREE, 32, seed=2) for _ in range(2))
    other.sample(7)
    assert torch.equal(one.sample(3).images, other.sample(3).images)
    assert torch.equal(one.sample(3).target, other.sample(3).target)
    assert not torch.equal(one.sample(3).images, one.sample(5).images)


def test_slices_of_thin_scans_are_averaged_for_2d_networks_and_thick_ones_are_not_for_3d(thin: UnlabelledScan) -> None:
    prompts = {RealScanPatches([thin], TWO, 32, seed=1).sample(k).prompts[0] for k in range(8)}
    assert all("3 mm" in words or "6 mm" in words for words in prompts)
    with pytest.raises(VolumeError, match="3D"):
        RealScanPatches([ball_brain(4.0)], THREE, 32, seed=1)
    assert RealScanPatches([ball_brain(4.0)], TWO, 32, seed=1).sample(0).images.shape == (1, 9, 32, 32)


def test_real_scans_take_their_share_of_the_samples(thin: UnlabelledScan) -> None:
    training = TrainingConfig(patch=32, scan_share=0.25)
    mixture = make_sampler(FoldData(scans=[thin]), THREE, training, torch.device("cpu"))
    assert [sampling._count(k + 1, 0.25) - sampling._count(k, 0.25) for k in range(8)] == [0, 0, 0, 1, 0, 0, 0, 1]
    mixture.sample_index = 3
    expected = RealScanPatches([thin], THREE, 32, training.seed).sample(0)
    assert torch.equal(mixture.batch(1).images, expected.images)


def test_files_of_different_sequences_are_one_scan_and_doubled_ones_are_two(tmp_path: Path) -> None:
    for name in ("a/T1.nii.gz", "a/FLAIR.nii.gz", "b/x_T2w.nii.gz", "b/y_T2w.nii.gz", "b/x_labels.nii.gz", "T1.mgz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [sorted(path.name for path in scan.values()) for scan in _group_files([tmp_path])]
    assert names == [["T1.mgz"], ["FLAIR.nii.gz", "T1.nii.gz"], ["x_T2w.nii.gz"], ["y_T2w.nii.gz"]]
    assert _group_files([tmp_path / "b" / "x_T2w.nii.gz"]) == [{"T2w": tmp_path / "b" / "x_T2w.nii.gz"}]


def test_a_cached_scan_equals_the_prepared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, anatomy, affine = ball_parts()
    for channel, name in enumerate(("T1w", "T2w")):
        nib.save(nib.Nifti1Image(images[channel], affine), tmp_path / f"{name}.nii.gz")
    calls: list[Volume] = []
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(real_scan_patches, "find_regions", lambda volume, weights: calls.append(volume) or anatomy)
    first, second = (load_unlabelled_scans([tmp_path], tmp_path, tmp_path / "cache")[0] for _ in range(2))
    assert len(calls) == 1, "the second comes from the cache"
    for name in ("certain", "head", "brain", "levels"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    for name in ("images", "tissues", "regions", "insertion_sites", "affine"):
        assert np.array_equal(getattr(first.background, name), getattr(second.background, name))
    assert first.background.csf_intensity == second.background.csf_intensity and first.background.present == (
        True,
        True,
        False,
    )


def test_what_cannot_be_read_is_left_out_and_nothing_at_all_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "T1.nii.gz").write_bytes(b"no image")
    with pytest.raises(VolumeError, match="expected T1w, T2w or FLAIR images, got none that can be used"):
        load_unlabelled_scans([tmp_path], tmp_path)
    assert "left out" in caplog.text


def test_the_first_scenes_have_wide_and_bright_pvs(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[SceneParams] = []

    def render(params: SceneParams, anatomy: object) -> SimpleNamespace:
        drawn.append(params)
        return SimpleNamespace(pvs_index=range(1000))

    monkeypatch.setattr(simulated_patches, "render", render)
    stream = simulated_patches.SimulatedPatches([None], THREE, 32, seed=1, refresh_interval=5, clear_samples=40)  # type: ignore[list-item]
    for number in range(16):
        stream.render(number)
    clear, later = drawn[:8], drawn[8:]
    assert all(p.pvs_relative_contrast >= 0.8 and p.pvs_diameter_mm >= 1.3 and p.pvs_centrum >= 1 for p in clear)
    assert any(p.pvs_diameter_mm < 0.9 for p in later) and any(p.pvs_relative_contrast < 0.8 for p in later)


def test_scans_go_with_simulated_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--network", "3d", "--cases", str(tmp_path), "--scans", str(tmp_path), "--output", str(tmp_path / "run")]
    assert cli.main(["train", *words, "--encoder", str(tmp_path)]) == 2
    assert "--scans: expected --anatomies" in capsys.readouterr().err

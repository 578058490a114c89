"""A user's labelled cases: found, judged and prepared as at run time, cut into patches, and trained on from the CLI."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.cli import main
from pvs_model.config import NETWORK_2D, NETWORK_3D, NetworkConfig
from pvs_model.datasets import labelled_cases
from pvs_model.datasets.labelled_cases import LabelledCase, beside, load_cases
from pvs_model.datasets.simulated_cases import write_case
from pvs_model.errors import VolumeError
from pvs_model.layouts import choose
from pvs_model.nets.slices import stack_slices
from pvs_model.nets.text import TEMPLATES, TRAINING_TEMPLATES, TextCache, prompt
from pvs_model.nets.zoo import MODELS
from pvs_model.preprocessing.network_grid import CROP_MARGIN
from pvs_model.preprocessing.prepare import PreparedImages, prepare, read
from pvs_model.simulation.head import BASAL_GANGLIA, CENTRUM_SEMIOVALE, HeadModel
from pvs_model.training import loop, segmentation
from pvs_model.training.batch import Batch
from pvs_model.training.distributed import DistributedContext
from pvs_model.training.labelled_patches import LabelledPatches
from pvs_model.training.sampling import MixedSampler, split
from pvs_model.types import SEQUENCES, Volume
from pvs_model.volume import geometry, io

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def simulated(anatomy: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two thin and one thick case, written as a user would have them. Read only."""
    folder = tmp_path_factory.mktemp("labelled")
    for name, seed, voxel_mm in (
        ("a", 3, (1.25, 1.25, 1.25)),
        ("b", 4, (1.2, 1.2, 2.4)),
        ("thick", 5, (1.0, 1.0, 5.0)),
    ):
        write_case(folder, name, anatomy, seed, voxel_mm)
    return folder


@pytest.fixture
def own(simulated: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(simulated, tmp_path / "own"))


def one(case: str, simulated: Path, tmp_path: Path) -> Path:
    """A folder with a copy of one case."""
    shutil.copytree(simulated / case, tmp_path / "one" / case)
    return tmp_path / "one"


def same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.label, b.label) and a.prompts == b.prompts


# ---- from files ----------------------------------------------------------------------------------------------------


def test_training_sees_what_the_run_time_sees(simulated: Path) -> None:
    cases = load_cases(simulated, NETWORK_3D)
    assert [case.name for case in cases] == ["a", "b"], "the thick case is for the other network"
    by_name = {case.name: case for case in choose(simulated).find_cases(simulated)}
    for case in cases:
        prepared = prepare(read(by_name[case.name]))
        crop = geometry.crop_to(prepared.foreground, CROP_MARGIN)
        expected = torch.from_numpy(np.ascontiguousarray(crop.apply(prepared.image))).half()
        assert torch.equal(case.image, expected)
        truth = io.read(simulated / case.name / f"{case.name}_PVS.nii.gz").data
        assert torch.equal(case.label, torch.from_numpy(crop.apply(truth)).to(torch.uint8))
        assert case.label.sum() == truth.sum() == len(case.points), "no PVS is lost"
        assert case.present == SEQUENCES and case.asked == ("basal ganglia", "centrum semiovale")
        for region, value in (("BG", BASAL_GANGLIA), ("CSO", CENTRUM_SEMIOVALE)):
            mask = crop.apply(io.read(simulated / case.name / f"{case.name}_{region}.nii.gz").data) > 0
            assert np.array_equal(case.regions.numpy() == value, mask)
    assert [case.thickness_mm for case in cases] == pytest.approx([1.25, 2.4])


def test_slices_come_last_and_spacing_outside_the_trained_range_is_resampled(simulated: Path, tmp_path: Path) -> None:
    # Stored as a scanner would store coronal slices: the thick axis is y; and voxels finer than any trained on.
    for ending in ("T1w", "T2w", "FLAIR", "PVS"):
        volume = io.read(simulated / "thick" / f"thick_{ending}.nii.gz")
        affine = np.diag([0.2, 4.0, 0.2, 1.0])
        io.write_volume(tmp_path / "in" / "c" / f"c_{ending}.nii.gz", volume.data.transpose(0, 2, 1), affine)
    (case,) = load_cases(tmp_path / "in", NETWORK_2D)
    thick, inside = volume.data.shape[2], volume.data.shape[0] * 0.2 / 0.34
    assert case.label.shape[2] <= thick and abs(case.label.shape[0] - inside) < 12
    assert case.thickness_mm == pytest.approx(4.0) and case.label.any() and case.asked == ()


def test_a_cached_case_is_the_same_and_changes_with_its_files(own: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (plain,) = load_cases(own, NETWORK_2D)
    first, again = (load_cases(own, NETWORK_2D, cache)[0] for _ in range(2))
    kept = list(cache.iterdir())
    assert len(kept) == 1 and kept[0].suffix == ".safetensors"
    for case in (first, again):
        assert all(same(getattr(case, name), getattr(plain, name)) for name in LabelledCase.__dataclass_fields__)
    label = own / "thick" / "thick_PVS.nii.gz"
    volume = io.read(label)
    volume.data[tuple(np.argwhere(volume.data > 0)[0])] = 0
    io.write_volume(label, volume.data, volume.affine)
    (changed,) = load_cases(own, NETWORK_2D, cache)
    assert len(changed.points) == len(plain.points) - 1 and len(list(cache.iterdir())) == 2


def test_the_skull_is_stripped_as_at_inference(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    anatomies: list[Anatomy | None] = []
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "anatomy.safetensors").write_bytes(b"network")

    def estimate(volumes: dict[str, Volume], weights: Path, device: torch.device) -> Anatomy:
        grid, _ = geometry.to_ras_grid(volumes[geometry.choose_reference(volumes)].grid)
        brain = np.zeros(grid.shape, bool)
        brain[: grid.shape[0] // 2] = True
        return Anatomy(brain.astype(np.uint8) * values_of("CSO")[0], brain)

    def note(volumes: dict[str, Volume], anatomy: Anatomy | None = None) -> PreparedImages:
        anatomies.append(anatomy)
        return prepare(volumes, anatomy=anatomy)

    monkeypatch.setattr(labelled_cases, "estimate_anatomy", estimate)
    monkeypatch.setattr(labelled_cases, "prepare", note)
    for weights in (tmp_path / "weights", None):
        load_cases(own, NETWORK_2D, tmp_path / "cache", weights)
    assert anatomies[0] is not None and anatomies[1] is None
    assert len(list((tmp_path / "cache").iterdir())) == 2, "a case of another anatomy network is another one"


def test_labels_are_found_beside_the_images(simulated: Path, tmp_path: Path) -> None:
    folder = one("a", simulated, tmp_path)
    (case,) = choose(folder).find_cases(folder)
    label = folder / "a" / "a_PVS.nii.gz"
    assert beside(case, "PVS") == label
    for other in ("PVS.nii.gz", "rater1_pvs.nii.gz"):
        label = label.rename(label.with_name(other))
        assert beside(case, "PVS") == label
    shutil.copyfile(label, label.with_name("PVS.nii.gz"))
    with pytest.raises(VolumeError, match=r"a: expected one PVS mask .* PVS.nii.gz and rater1_pvs.nii.gz"):
        beside(case, "PVS")
    shutil.copyfile(label, label.with_name("a_PVS.nii.gz"))
    assert beside(case, "PVS") == label.with_name("a_PVS.nii.gz")


def test_a_flat_folder_and_bids_are_cases_too(simulated: Path, tmp_path: Path) -> None:
    (case,) = load_cases(simulated / "a", NETWORK_3D)
    assert case.name == "a" and case.label.any()
    anat = tmp_path / "bids" / "sub-01" / "anat"
    anat.mkdir(parents=True)
    for ending in ("T2w", "PVS"):
        shutil.copyfile(simulated / "a" / f"a_{ending}.nii.gz", anat / f"sub-01_{ending}.nii.gz")
    (case,) = load_cases(tmp_path / "bids", NETWORK_3D)
    assert case.name == "sub-01" and case.present == ("T2w",) and case.asked == ()
    assert not case.image[0].any() and case.image[1].any() and not case.image[2].any()


def test_masks_as_a_run_writes_them_in_bids_are_labels(simulated: Path, tmp_path: Path) -> None:
    anat = tmp_path / "bids" / "sub-01" / "ses-2" / "anat"
    anat.mkdir(parents=True)
    names = {"T2w": "T2w", "PVS": "space-orig_label-PVS_mask", "BG": "space-orig_label-BG_mask"}
    for ending, name in names.items():
        shutil.copyfile(simulated / "a" / f"a_{ending}.nii.gz", anat / f"sub-01_ses-2_{name}.nii.gz")
    (case,) = load_cases(tmp_path / "bids", NETWORK_3D)
    assert case.name == "sub-01_ses-2" and case.label.any() and case.asked == ("basal ganglia",)
    shutil.copyfile(
        simulated / "a" / "a_PVS.nii.gz", anat / "sub-01_ses-2_space-orig_label-PVS_desc-corrected_mask.nii.gz"
    )
    with pytest.raises(VolumeError, match=r"sub-01_ses-2: expected one PVS mask beside its images, got .*corrected"):
        load_cases(tmp_path / "bids", NETWORK_3D)


def test_a_label_of_another_subject_in_the_same_folder_is_not_taken(tmp_path: Path) -> None:
    for name in ("P1_T1", "P1_PVS", "P2_T1", "P3_T1", "P3_PVS"):
        (tmp_path / f"{name}.nii.gz").touch()
    labels = {case.name: beside(case, "PVS") for case in choose(tmp_path).find_cases(tmp_path)}
    assert labels == {"P1": tmp_path / "P1_PVS.nii.gz", "P2": None, "P3": tmp_path / "P3_PVS.nii.gz"}
    (tmp_path / "PVS.nii.gz").touch()  # whose it is, nobody can say
    assert beside(choose(tmp_path).find_cases(tmp_path)[1], "PVS") is None


@pytest.mark.parametrize("change", [lambda mask: mask * 0.5 + 0.25, lambda mask: mask + 1])
def test_what_is_no_mask_is_not_trained_on(change: Any, simulated: Path, tmp_path: Path) -> None:
    folder = one("a", simulated, tmp_path)
    label = io.read(folder / "a" / "a_PVS.nii.gz")
    io.write_volume(folder / "a" / "a_PVS.nii.gz", change(label.data), label.affine)
    with pytest.raises(VolumeError, match=r"a_PVS.nii.gz: expected a mask of 0 and one positive value, got "):
        load_cases(folder, NETWORK_3D)


def test_a_label_stored_in_another_order_is_the_same(simulated: Path, tmp_path: Path) -> None:
    folder = one("a", simulated, tmp_path)
    (plain,) = load_cases(folder, NETWORK_3D)
    label = io.read(folder / "a" / "a_PVS.nii.gz")
    turned = np.ascontiguousarray(label.data[::-1].transpose(1, 0, 2))
    affine = label.affine.copy()
    affine[:, 3] = affine @ [label.data.shape[0] - 1, 0, 0, 1]
    affine[:, :3] = affine[:, [1, 0, 2]] * [1, -1, 1]
    io.write_volume(folder / "a" / "a_PVS.nii.gz", turned, affine)
    (case,) = load_cases(folder, NETWORK_3D)
    assert torch.equal(case.label, plain.label)


def shifted(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    moved = affine.copy()
    moved[0, 3] += 0.3
    return data, moved


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shifted, r"a_PVS.nii.gz: expected the grid of .*a_T2w.nii.gz \(.* voxels of .* mm.*\), got .* voxels"),
        (lambda data, affine: (data[:-1], affine), r"a_PVS.nii.gz: expected the grid of .*a_T2w.nii.gz"),
        (lambda data, affine: (-data, affine), r"a_PVS.nii.gz: expected a mask of 0 and one positive value, got "),
        (lambda data, affine: (np.eye(len(data), data.shape[1])[..., None] * (np.arange(data.shape[2]) < 1), affine),
         r"a_PVS.nii.gz: expected PVS within the head that the images show, got none"),
    ],
    ids=["elsewhere", "another shape", "negative", "outside the head"],
)  # fmt: skip
def test_labels_that_cannot_be_right(change: Any, message: str, simulated: Path, tmp_path: Path) -> None:
    folder = one("a", simulated, tmp_path)
    label = io.read(folder / "a" / "a_PVS.nii.gz")
    io.write_volume(folder / "a" / "a_PVS.nii.gz", *change(label.data, label.affine))
    with pytest.raises(VolumeError, match=message) as caught:
        load_cases(folder, NETWORK_3D)
    assert str(caught.value).count("\n") == 0


def test_a_label_that_marks_nothing_is_learnt_from_beside_one_that_does(own: Path) -> None:
    path = own / "b" / "b_PVS.nii.gz"
    label = io.read(path)
    io.write_volume(path, label.data * 0, label.affine)
    cases = {case.name: case for case in load_cases(own, NETWORK_3D)}
    assert not cases["b"].label.any() and len(cases["b"].points) == 0 and len(cases["a"].points)
    patch = LabelledPatches([cases["b"]], NETWORK_3D, 16, seed=1).sample(0)
    assert not patch.label.any() and patch.images.any()
    (own / "a" / "a_PVS.nii.gz").unlink()
    with pytest.raises(VolumeError, match=r"own: expected a PVS in at least one label, got 1 empty ones"):
        load_cases(own, NETWORK_3D)


def test_folders_with_nothing_to_learn_from(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (own / "b" / "b_PVS.nii.gz").unlink()
    assert [case.name for case in load_cases(own, NETWORK_3D)] == ["a"]
    assert "b: left out, no b_PVS beside its images" in caplog.text
    assert "thick: left out, its slices of 5.00 mm are for the 2d network" in caplog.text
    (own / "a" / "a_PVS.nii.gz").unlink()
    with pytest.raises(VolumeError, match=r"own: expected cases with slices below 2.5 mm for the 3d network, got none"):
        load_cases(own, NETWORK_3D)
    (own / "thick" / "thick_PVS.nii.gz").unlink()
    with pytest.raises(VolumeError, match=r"own: expected a label <case>_PVS.nii.gz .* got none in 3 cases"):
        load_cases(own, NETWORK_3D)


def test_folds_share_out_everything_and_leave_something_on_both_sides() -> None:
    items = list("abcdefg")
    for fold in range(3):
        used, held_out = split(items, fold, 3, "letters")
        assert held_out == items[fold::3] and sorted(used + held_out) == items
    for fold, folds in ((0, 1), (3, 3), (-1, 3), (0, 8)):
        with pytest.raises(VolumeError, match=r"expected at least 2 folds and 0 <= fold < folds <= 7 letters"):
            split(items, fold, folds, "letters")


# ---- patches -------------------------------------------------------------------------------------------------------


def made(shape: tuple[int, int, int] = (24, 20, 22), **changes: Any) -> LabelledCase:
    """A case whose channels tell where a voxel lies, (x + 1) / 8 and so on; PVS are single voxels in two regions."""
    place = torch.stack(torch.meshgrid(*(torch.arange(1, n + 1) / 8 for n in shape), indexing="ij"))
    label = torch.zeros(shape, dtype=torch.uint8)
    for voxel in ((3, 4, 5), (20, 15, 9), (10, 10, 11)):
        label[voxel] = 1
    regions = torch.full(shape, CENTRUM_SEMIOVALE, dtype=torch.uint8)
    regions[: shape[0] // 2] = BASAL_GANGLIA
    settings: dict[str, Any] = {
        "name": "made", "image": place.half(), "label": label,
        "inside": torch.ones(shape, dtype=torch.uint8), "regions": regions, "present": SEQUENCES,
        "asked": ("basal ganglia", "centrum semiovale"), "thickness_mm": 1.0, "points": torch.nonzero(label).int(),
    }  # fmt: skip
    return LabelledCase(**settings | changes)


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches as they lie in their case."""
    monkeypatch.setattr("pvs_model.training.labelled_patches.flip", lambda image, label, rng: (image, label))
    for name in ("SHIFT_SD", "SCALE_SD", "DROP_SHARE"):
        monkeypatch.setattr(f"pvs_model.training.labelled_patches.{name}", 0.0)


@pytest.mark.parametrize("kind", ["3d", "2d"])
def test_a_patch_follows_from_its_number(tiny: dict[str, NetworkConfig], kind: str) -> None:
    first, again = (LabelledPatches([made(), made(name="other")], tiny[kind], 16, seed=3) for _ in range(2))
    batches = [first.sample(number) for number in range(12)]
    assert all(equal(again.sample(number), batches[number]) for number in reversed(range(12)))
    assert not all(equal(batch, batches[0]) for batch in batches[1:])
    assert not equal(LabelledPatches([made()], tiny[kind], 16, seed=4).sample(0), batches[0])
    spatial = (16, 16, 16) if kind == "3d" else (16, 16)
    for batch in batches:
        assert batch.images.shape == (1, tiny[kind].in_channels, *spatial) and batch.label.shape == (1, 1, *spatial)
        assert batch.images.dtype == batch.label.dtype == torch.float32
        assert set(batch.label.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.usefixtures("unchanged")
def test_images_and_label_are_cut_from_one_place(tiny: dict[str, NetworkConfig]) -> None:
    case = made()
    cases = LabelledPatches([case], tiny["3d"], 8, seed=0, region_share=0.0)
    for number in range(30):
        batch = cases.sample(number)
        x, y, z = (batch.images[0, :, 0, 0, 0] * 8 - 1).int().tolist()  # the corner tells where the patch lies
        box = (slice(x, x + 8), slice(y, y + 8), slice(z, z + 8))
        torch.testing.assert_close(batch.images[0], case.image[(slice(None), *box)].float())
        assert torch.equal(batch.label[0, 0], case.label[box].float())


@pytest.mark.usefixtures("unchanged")
def test_a_2d_patch_is_a_slice_and_its_neighbours(tiny: dict[str, NetworkConfig]) -> None:
    case = made()
    slices = stack_slices(case.image.float(), 3)  # (Z, 9, X, Y), the border slices repeated
    cases = LabelledPatches([case], tiny["2d"], 24, seed=0, region_share=0.0)
    seen = set()
    for number in range(80):
        batch = cases.sample(number)
        z = next(z for z in range(22) if torch.equal(batch.images[0, :, :, :20], slices[z]))
        assert torch.equal(batch.label[0, 0, :, :20], case.label[:, :, z].float())
        assert not batch.images[..., 20:].any() and not batch.label[..., 20:].any(), "nothing beyond the case"
        seen.add(z)
    assert {0, 21} <= seen


def test_half_of_the_patches_hold_a_pvs(tiny: dict[str, NetworkConfig]) -> None:
    shape = (60, 60, 60)
    label = torch.zeros(shape, dtype=torch.uint8)
    label[5, 5, 5] = 1
    case = made(shape, label=label, points=torch.nonzero(label).int(), image=torch.ones(3, *shape).half())
    cases = LabelledPatches([case], tiny["3d"], 8, seed=0, region_share=0.0)
    share = np.mean([bool(cases.sample(number).label.any()) for number in range(200)])
    assert 0.4 < share < 0.6


def test_the_target_follows_the_prompt_and_prompts_tell_the_truth(tiny: dict[str, NetworkConfig]) -> None:
    case = made(label=torch.ones(24, 20, 22, dtype=torch.uint8))
    cases = LabelledPatches([case], tiny["3d"], 24, seed=0, region_share=0.6)
    possible = {
        prompt([s for s, kept in zip(SEQUENCES, keep, strict=True) if kept], 1.0, region, template): (keep, region)
        for keep in np.ndindex(2, 2, 2)
        if any(keep)
        for region in ("brain", "basal ganglia", "centrum semiovale")
        for template in TRAINING_TEMPLATES
    }
    assert len(TRAINING_TEMPLATES) < len(TEMPLATES)
    kept, regions = set(), set()
    for number in range(150):
        batch = cases.sample(number)
        keep, region = possible[batch.prompts[0]]
        assert tuple(int(channel.any()) for channel in batch.images[0]) == keep
        # The whole case fits into the patch: half of it is the one region, half the other.
        assert float(batch.label.sum()) == case.label.numel() / (1 if region == "brain" else 2)
        kept.add(keep)
        regions.add(region)
    assert len(kept) == 7 and len(regions) == 3
    silent = LabelledPatches([replace(case, asked=())], tiny["3d"], 8, seed=0, region_share=1.0)
    assert all("the whole brain" in silent.sample(number).prompts[0] for number in range(20))


def test_a_sequence_that_is_not_there_stays_away_and_the_last_one_stays(tiny: dict[str, NetworkConfig]) -> None:
    image = made().image.clone()
    image[[0, 2]] = 0
    cases = LabelledPatches([made(image=image, present=("T2w",))], tiny["2d"], 16, seed=0)
    for number in range(30):
        batch = cases.sample(number)
        assert "T2w" in batch.prompts[0] and "T1w" not in batch.prompts[0] and "FLAIR" not in batch.prompts[0]
        assert batch.images[0, 3:6].any() and not batch.images[0, [0, 1, 2, 6, 7, 8]].any()


def test_intensities_are_jittered_a_little_and_background_stays_zero(tiny: dict[str, NetworkConfig]) -> None:
    image = torch.ones(3, 24, 20, 22).half()
    image[:, :, :, :11] = 0
    values = []
    cases = LabelledPatches([made(image=image)], tiny["3d"], 24, seed=0)
    for number in range(60):
        channels = cases.sample(number).images[0].flatten(1)
        assert all(len(channel.unique()) <= 2 and 0 in channel for channel in channels)
        values += [float(channel.max()) for channel in channels if channel.any()]
    assert abs(np.mean(values) - 1) < 0.05 and 0.08 < np.std(values) < 0.25


def test_validation_patches_are_plain_and_take_turns(tiny: dict[str, NetworkConfig]) -> None:
    cases = [made(image=torch.full((3, 24, 20, 22), 1.0 + k).half(), present=SEQUENCES) for k in range(3)]
    fixed = LabelledPatches(cases, tiny["3d"], 8, seed=0)
    for number in range(6):
        batch = fixed.fixed(number)
        assert (batch.images == 1.0 + number % 3).all() and batch.prompts == [prompt(SEQUENCES, 1.0)]
        assert equal(batch, fixed.fixed(number))


class Numbers:
    """In place of a stream or of cases: samples that tell their number."""

    def __init__(self, sign: int) -> None:
        self.sign, self.sample_index = sign, 0

    def sample(self, number: int) -> Batch:
        return Batch(torch.full((1, 1), self.sign * (1.0 + number)), torch.zeros(1, 1), [str(number)])

    def batch(self, size: int) -> Batch:
        assert size == 1
        return self.sample(self.sample_index)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_simulation_and_cases_are_interleaved_and_go_on_from_any_visit(share: float) -> None:
    def drawn(visits: int, count: int) -> list[float]:
        mixed: Any = MixedSampler(None, None, share, torch.device("cpu"))
        mixed.stream, mixed.cases, mixed.case_share, mixed.sample_index = Numbers(1), Numbers(-1), share, visits
        return [float(v) for v in mixed.batch(count).images[:, 0]]

    whole = drawn(0, 40)
    simulated, labelled = [v for v in whole if v > 0], [-v for v in whole if v < 0]
    assert len(labelled) == round(40 * share)
    # Neither misses one: scenes are taken as often as when there is nothing else.
    assert simulated == list(range(1, len(simulated) + 1)) and labelled == list(range(1, len(labelled) + 1))
    assert all(drawn(start, 5) == whole[start : start + 5] for start in (0, 1, 7, 33))


def test_processes_take_labelled_samples_of_their_own() -> None:
    taken = []
    for rank in range(3):
        mixed: Any = MixedSampler(None, None, 1.0, torch.device("cpu"), DistributedContext(rank, 3))
        mixed.cases, mixed.case_share = Numbers(1), 1.0
        taken += [float(v) for v in mixed.batch(4).images[:, 0]]
    assert sorted(taken) == list(range(1, 13))


# ---- from the command line -----------------------------------------------------------------------------------------


class CachedEncoder:
    """In place of BERT: embeddings of standard prompts from the shipped cache, of others the first of them."""

    cache = TextCache.load(ROOT / "weights" / "text.safetensors")

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, prompts: list[str]) -> list[Tensor]:
        return [self.cache[p if p in self.cache else prompt(SEQUENCES, 1.0)] for p in prompts]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: dict[str, NetworkConfig]) -> Any:
    """``python -m pvs_model train`` with tiny networks, no BERT and no pictures; returns its exit status."""
    monkeypatch.setattr(segmentation, "TextEncoder", CachedEncoder)
    monkeypatch.setattr(loop, "can_plot", lambda: False)
    for name, config in tiny.items():
        monkeypatch.setitem(MODELS, name, replace(MODELS[name], config=config))
    fixed = ["--patch", "16", "--encoder", str(tmp_path), "--device", "cpu", "--output", str(tmp_path / "run")]
    return lambda *words: main(["train", *map(str, words), *fixed])


def test_a_users_cases_are_trained_on_and_segmented_with(
    train: Any, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cases", simulated, "--network", "3d", "--folds", 2, "--fold", 1, "--cache", tmp_path / "cache"]
    assert train(*words, "--steps", 3) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["steps"] == 3 and set(facts) == {"steps", "dice", "threshold", "samples_per_second"}
    assert [path.name.split("-")[0] for path in sorted((tmp_path / "cache").iterdir())] == ["a", "b"]
    # Another fold would be validated on what this run was trained on.
    assert train(*words[:-4], "--fold", 0, *words[-2:], "--steps", 4) == 2
    assert re.search(r"expected a run that holds out fold 0 of 2 \(.+\), got .* fold 1 of 2 ", capsys.readouterr().err)
    # On from there, with the weights as a start elsewhere: fine-tuning begins with smaller steps.
    weights = tmp_path / "fold.safetensors"
    shutil.move(tmp_path / "run" / "network.safetensors", weights)
    shutil.rmtree(tmp_path / "run")
    assert train(*words, "--steps", 2, "--start", weights, "--loss", "dice-topk", "--schedule", "polynomial") == 0
    with (tmp_path / "run" / "log.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["learning_rate"]) == pytest.approx(3e-4 * 2 / 100)


def test_cases_and_anatomies_together(
    train: Any, own: Path, small_labels: npt.NDArray[np.int32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        io.write_volume(tmp_path / "maps" / f"{name}.nii.gz", small_labels, np.eye(4))
    shutil.copytree(own / "thick", own / "thick2")
    for path in (own / "thick2").iterdir():
        path.rename(path.with_name(path.name.replace("thick_", "thick2_")))
    taken, checked = [], []
    real_sample, real_validate = LabelledPatches.sample, segmentation.validate
    monkeypatch.setattr(
        LabelledPatches, "sample", lambda self, n: taken.append(self.cases[0].name) or real_sample(self, n)
    )

    def validate(network: Any, checks: list[Batch], *rest: Any) -> Tensor:
        checked.extend(checks)
        return real_validate(network, checks[-2:], *rest)

    monkeypatch.setattr(segmentation, "validate", validate)
    real_batches = segmentation.validation_batches
    monkeypatch.setattr(
        segmentation,
        "validation_batches",
        lambda data, config, training: real_batches(data, config, replace(training, validation_patches=2)),
    )
    words = [
        "--cases",
        own,
        "--anatomies",
        tmp_path / "maps",
        "--folds",
        2,
        "--network",
        "2d",
        "--batch",
        1,
        "--steps",
        4,
    ]
    assert train(*words, "--case-share", 0.25, "--cache", tmp_path / "cache") == 0
    assert taken == ["thick2"], "one sample in four, of the case that is not held out"
    assert len(checked) == 4, "two patches of the held-out head, two of the held-out case"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--anatomies, --cases: expected"),
        (["--cases", "CASES"], "--fold 0 --folds 5: expected at least 2 folds and 0 <= fold < folds <= 2 labelled"),
        (["--cases", "CASES", "--folds", 2, "--case-share", 1.5], "--case-share"),
        (["--cases", "CASES", "--folds", 2, "--workers", -1], "--workers"),
        (["--cases", "CASES", "--folds", 2, "--reuse", 0], "--reuse"),
        (["--cases", "NOWHERE"], "expected an input folder"),
        (["--cases", "CASES", "--folds", 2, "--start", "NOWHERE"], "expected a file of weights, got none"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(
    words: list[Any], message: str, train: Any, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"CASES": simulated, "NOWHERE": tmp_path / "nowhere"}
    assert train("--network", "3d", *(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1

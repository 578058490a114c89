"""Training of the anatomy network: prepared label maps, simulated scans, loss, and runs on the common loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model.anatomy.inference import load_network
from pvs_model.anatomy.network import AnatomyConfig, load
from pvs_model.anatomy.regions import CLASS, CLASSES
from pvs_model.errors import VolumeError, WeightsError
from pvs_model.training import loop
from pvs_model.training.anatomy.label_maps import (
    EXTRA_CEREBRAL,
    LEFT,
    LEFT_IDS,
    NO_SIDE,
    RIGHT,
    RIGHT_IDS,
    SIGNALS,
    TARGET_IDS,
    VESSELS,
    LabelMap,
    class_targets,
    prepare,
    sides,
)
from pvs_model.training.anatomy.scans import AnatomyScan, AnatomyScanParams, draw, render
from pvs_model.training.anatomy.task import (
    AnatomyTask,
    AnatomyTrainingConfig,
    anatomy_loss,
    dice_scores,
    main,
    train,
)
from pvs_model.training.checkpoint import TrainingState, read_state
from pvs_model.training.release import release_anatomy
from pvs_model.training.run_log import read_rows
from pvs_model.volume.io import write_volume

#: Every id in the public label maps that training was done with.
SEEN = (
    2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 25, 26, 28, 29, 30, 31, 41, 42, 43, 44, 46, 47, 49, 50,
    51, 52, 53, 54, 57, 58, 60, 62, 72, 85, 136, 137, 163, 164, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530,
)  # fmt: skip
SMALL = (48, 48, 48)
TINY = AnatomyConfig(widths=(4, 8, 8))


@pytest.fixture(scope="module")
def head(small_labels: npt.NDArray[np.int32]) -> LabelMap:
    return prepare(small_labels, "toy")


# ---- grouping ----------------------------------------------------------------------------------------------------


def ids(**boxes: tuple[int, tuple[slice, slice, slice]]) -> npt.NDArray[np.int32]:
    out = np.zeros((24, 24, 24), np.int32)
    for label, box in boxes.values():
        out[box] = label
    return out


def test_the_capsule_is_the_white_matter_between_the_nuclei() -> None:
    # Putamen and caudate 4 mm apart in white matter: the closing (5 mm) bridges the gap, and no more.
    labels = np.full((24, 24, 24), 41, np.int32)
    labels[4:8, 6:18, 6:18] = 51
    labels[12:16, 6:18, 6:18] = 50
    targets = class_targets(labels)
    assert (targets[4:8, 6:18, 6:18] == CLASS["PUT"]).all()
    assert (targets[12:16, 6:18, 6:18] == CLASS["CAU"]).all()
    assert (targets[8:12, 8:16, 8:16] == CLASS["IC"]).all()
    assert (targets[:2] == CLASS["WM"]).all() and (targets[20:] == CLASS["WM"]).all()
    # Other tissue between them is no capsule.
    labels[8:12] = 43
    assert not (class_targets(labels) == CLASS["IC"]).any()


def test_the_midbrain_is_what_lies_above_the_pons() -> None:
    # Section 16 up to z = 13, 4 of 16 from there on (below 3/4): 7 slices of 4 voxels are midbrain.
    labels = ids(pons=(16, np.s_[8:12, 8:12, 2:13]), midbrain=(16, np.s_[9:11, 9:11, 13:20]), wm=(2, np.s_[2:4, :, :]))
    targets = class_targets(labels)
    assert np.count_nonzero(targets == CLASS["MID"]) == 7 * 4
    assert np.count_nonzero(targets == CLASS["BST"]) == 11 * 16


def test_the_peduncles_are_midbrain_and_the_hypothalamus_is_not() -> None:
    # The plane falls from the top of the stem (y = 9.5, z = 19) to 5 mm above the midbrain's lowest slice at the front
    # of the pons (y = 13, z = 18); the ventral diencephalon stands in front and beside it.
    labels = ids(
        pons=(16, np.s_[8:14, 8:14, 2:13]),
        midbrain=(16, np.s_[9:13, 9:11, 13:20]),
        low=(60, np.s_[13:16, 9:12, 13:16]),
        high=(60, np.s_[13:16, 16:20, 19:22]),
        wm=(2, np.s_[2:4, :, :]),
    )
    targets = class_targets(labels)
    assert (targets[13:16, 9:12, 13:16] == CLASS["MID"]).all()
    assert (targets[13:16, 16:20, 19:22] == CLASS["VDC"]).all()


def test_the_spinal_canal_is_no_intracranial_fluid() -> None:
    labels = ids(csf=(24, np.s_[4:20, 4:20, 0:20]), stem=(16, np.s_[9:12, 9:12, 6:15]), wm=(2, np.s_[6:8, 6:8, 8:20]))
    targets = class_targets(labels)
    assert not targets[:, :, :6].any()
    assert targets[5, 5, 6] == CLASS["CSF"]


def test_lesions_and_vessels_belong_to_where_they_lie() -> None:
    labels = np.full((24, 24, 24), 2, np.int32)
    labels[4:8, 6:18, 6:18], labels[9:13, 6:18, 6:18] = 12, 10
    labels[8, 11, 11] = 30  # a vessel between putamen and thalamus
    labels[20, 11, 11], labels[21, 11, 11] = 77, 30
    targets = class_targets(labels)
    assert targets[8, 11, 11] == CLASS["IC"]
    assert targets[20, 11, 11] == targets[21, 11, 11] == CLASS["WM"]


def test_every_known_id_has_exactly_one_class() -> None:
    members = [label for group in TARGET_IDS.values() for label in group]
    assert len(members) == len(set(members))
    assert set(SEEN) <= set(members) | set(VESSELS) | set(EXTRA_CEREBRAL)
    assert not set(members) & set(EXTRA_CEREBRAL)
    assert set(TARGET_IDS) | {"MID", "IC"} == set(CLASS)


def test_cortical_parcels_are_cortex_with_their_side() -> None:
    labels = np.zeros((8, 8, 8), np.int32)
    labels[:4], labels[4:], labels[0], labels[7] = 1007, 2030, 3001, 4035
    assert set(np.unique(class_targets(labels)[1:7])) == {CLASS["CTX"]}
    assert (class_targets(labels)[0] == CLASS["WM"]).all()
    assert (sides(labels)[:4] == LEFT).all() and (sides(labels)[4:] == RIGHT).all()


def test_sides_are_disjoint_and_of_paired_structures_only() -> None:
    assert not set(LEFT_IDS) & set(RIGHT_IDS)
    assert (sides(np.array([0, 14, 15, 16, 24, 72, 85, 251, 507])) == NO_SIDE).all()


def test_a_map_of_something_else_is_refused() -> None:
    with pytest.raises(VolumeError, match="FreeSurfer ids"):
        prepare(np.full((8, 8, 8), 900, np.int32), "liver")


def test_a_brain_without_a_head_gets_fluid_in_its_sulci(small_labels: npt.NDArray[np.int32]) -> None:
    bare = np.where(np.isin(small_labels, (24, 511, 515)), 0, small_labels)
    bare[30:34, :, 40:] = 0  # a fissure
    built = prepare(bare, "bare")
    target = built.target[built.codes.long()]
    assert not built.whole_head
    assert (target == CLASS["CSF"]).any()


# ---- simulation --------------------------------------------------------------------------------------------------


def test_a_scan_is_a_function_of_its_parameters(head: LabelMap) -> None:
    for seed in range(6):
        one, two = (render(head, draw(seed), SMALL) for _ in range(2))
        assert torch.equal(one.image, two.image) and torch.equal(one.target, two.target)
        assert float(one.image.min()) >= 0 and float(one.image.max()) <= 1
        assert one.image.shape == one.target.shape == one.side.shape == SMALL
        assert int(one.target.max()) < CLASSES


def test_mirroring_exchanges_the_sides(head: LabelMap) -> None:
    params = AnatomyScanParams(seed=3)
    plain, mirrored = (render(head, replace(params, mirrored=m), SMALL) for m in (False, True))
    same = plain.target.flip(0) == mirrored.target
    assert float(same.float().mean()) > 0.99  # the brain's centre may fall between voxels
    paired = (mirrored.side != NO_SIDE) & (plain.side.flip(0) != NO_SIDE) & same
    assert bool((plain.side.flip(0)[paired] == 3 - mirrored.side[paired]).all())
    # RAS+: the left hemisphere has the lower x, mirrored or not.
    for scan in (plain, mirrored):
        x = torch.arange(SMALL[0])[:, None, None].expand(SMALL)
        assert x[scan.side == LEFT].float().mean() < x[scan.side == RIGHT].float().mean()


@pytest.mark.parametrize("strip", ["csf", "brain"])
def test_stripping_leaves_nothing_around_and_no_target_there(head: LabelMap, strip: str) -> None:
    whole = render(head, AnatomyScanParams(seed=1), SMALL)
    bare = render(head, AnatomyScanParams(seed=1, strip=strip, strip_at=0.5, strip_width_mm=1.0), SMALL)
    assert bare.image[0, 0, 0] == 0 and bool((bare.target[bare.image == 0] == 0).float().mean() > 0.99)
    assert (bare.image > 0).sum() < 0.8 * (whole.image > 0).sum()
    kept = bare.target > 0
    assert torch.equal(bare.target[kept], whole.target[kept])


def test_a_cut_field_of_view_cuts_image_and_target(head: LabelMap) -> None:
    scan = render(head, AnatomyScanParams(seed=1, cut_mm=(0, 0, 0, 0, 0, 16.0)), SMALL)  # 8 voxels
    top = int(torch.nonzero(render(head, AnatomyScanParams(seed=1), SMALL).target.sum((0, 1)))[-1])
    assert not scan.image[:, :, top - 8 :].any() and not scan.target[:, :, top - 8 :].any()
    assert scan.target[:, :, top - 9].any()


def test_a_blob_changes_the_image_and_not_the_target(head: LabelMap) -> None:
    plain, ill = (render(head, AnatomyScanParams(seed=5, blobs=b), SMALL) for b in (0, 2))
    assert torch.equal(plain.target, ill.target)
    assert not torch.allclose(plain.image, ill.image, atol=0.05)


def test_thick_slices_are_alike_along_their_axis(head: LabelMap) -> None:
    params = AnatomyScanParams(seed=2, noise=0.0, blur_mm=0.0)
    rough = [
        float(render(head, replace(params, thickness_mm=t), SMALL).image.diff(dim=2).abs().mean()) for t in (1.0, 6.0)
    ]
    assert rough[1] < 0.8 * rough[0]


def test_signals_cover_every_tissue_and_extra_cerebral_id(head: LabelMap) -> None:
    assert int(head.signal.max()) < SIGNALS
    assert head.codes.dtype == torch.uint8 and len(head.signal) == len(head.target) == len(head.side)


# ---- loss and training -------------------------------------------------------------------------------------------


def perfect(scan: AnatomyScan) -> torch.Tensor:
    logits = torch.full((1, CLASSES + 1, *scan.target.shape), -20.0)
    logits.scatter_(1, scan.target[None, None], 20.0)
    logits[0, CLASSES] = torch.where(scan.side == RIGHT, 20.0, -20.0)
    return logits


def test_the_right_answer_costs_nothing_and_a_wrong_side_costs(head: LabelMap) -> None:
    scan = render(head, AnatomyScanParams(seed=1), SMALL)
    right = perfect(scan)
    assert float(anatomy_loss(right, scan)) < 1e-3
    assert dice_scores(right, scan)[-1] == 1.0
    wrong = right.clone()
    wrong[0, CLASSES] *= -1
    assert float(anatomy_loss(wrong, scan)) > 1
    assert dice_scores(wrong, scan)[-1] == 0.0


def test_dice_by_hand() -> None:
    target = torch.zeros((4, 4, 4), dtype=torch.long)
    target[:2] = 1  # 32 voxels
    scan = AnatomyScan(target.float(), target, torch.zeros((4, 4, 4), dtype=torch.uint8))
    predicted = target.clone()
    predicted[1] = 0  # 16 of them
    scores = dice_scores(perfect(replace(scan, target=predicted)), scan)
    assert scores[0] == pytest.approx(2 * 16 / (16 + 32))
    assert np.isnan(scores[1])


def task(head: LabelMap, held_out: Sequence[LabelMap] = (), start: Path | None = None, **changes: Any) -> AnatomyTask:
    """The training of a tiny network."""
    settings: dict[str, Any] = {
        "steps": 4, "shapes": ((32, 32, 32),), "warmup_steps": 1, "save_every": 2, "validation_scans": 1
    }  # fmt: skip
    return AnatomyTask(TINY, AnatomyTrainingConfig(**settings | changes), [head], held_out, start)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than the training of a tiny network."""
    monkeypatch.setattr(loop, "can_plot", lambda: False)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_interrupted_run_resumes_bit_for_bit(head: LabelMap, tmp_path: Path) -> None:
    whole = train(task(head, [head]), tmp_path / "whole", show=False)
    assert train(task(head, [head], max_minutes=0.0), tmp_path / "parts", show=False)["steps"] == 1
    parts = train(task(head, [head]), tmp_path / "parts", show=False)
    assert parts["steps"] == whole["steps"] == 4 and parts["dice"] == whole["dice"]
    assert same(read_state(tmp_path / "whole")[1], read_state(tmp_path / "parts")[1])
    first, second = (load(tmp_path / name / "anatomy.safetensors").state_dict() for name in ("whole", "parts"))
    assert same(first, second)
    rows = [read_rows(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    assert [[row["step"] for row in r] for r in rows] == [["2", "4"], ["1", "2", "4"]]
    assert rows[0][-1]["dice"] == rows[1][-1]["dice"] != "nan" and {"WM", "CBL", "side"} <= rows[0][0].keys()


def test_a_run_begins_with_the_weights_of_another(head: LabelMap, tmp_path: Path) -> None:
    train(task(head, steps=2), tmp_path / "first", show=False)
    start = tmp_path / "first" / "anatomy.safetensors"
    second = task(head, start=start, steps=1, learning_rate=0.0, weight_decay=0.0)
    assert train(second, tmp_path / "second", show=False)["steps"] == 3
    first, last = load(start).state_dict(), load(tmp_path / "second" / "anatomy.safetensors").state_dict()
    assert same(first, last)
    with pytest.raises(WeightsError, match=r"anatomy.safetensors: expected a network of"):
        AnatomyTask(AnatomyConfig(widths=(4, 8, 16)), AnatomyTrainingConfig(), [head], start=start)


def test_training_lowers_the_loss(head: LabelMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    real = TrainingState.advance
    monkeypatch.setattr(
        TrainingState, "advance", lambda self, drawn, loss, *rest: losses.append(loss) or real(self, drawn, loss, *rest)
    )
    two = task(head, steps=30, learning_rate=1e-2, save_every=100)
    monkeypatch.setattr("pvs_model.training.anatomy.task.draw", lambda seed, difficulty: draw(seed % 2, difficulty))
    train(two, tmp_path, show=False)
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])


def test_the_state_of_another_network_is_refused(head: LabelMap, tmp_path: Path) -> None:
    train(task(head, steps=1), tmp_path, show=False)
    other = AnatomyTask(AnatomyConfig(widths=(4, 8, 16)), AnatomyTrainingConfig(), [head])
    with pytest.raises(WeightsError, match=r"state.safetensors: expected the state of a run of this network"):
        train(other, tmp_path, show=False)


def test_the_command_needs_label_maps_to_hold_out(
    small_labels: npt.NDArray[np.int32], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c"):
        write_volume(tmp_path / "maps" / f"{name}.nii.gz", small_labels.astype(np.float32), np.eye(4))
    assert main([str(tmp_path / "maps"), str(tmp_path / "run"), "--threads", "1"]) == 1
    assert "expected more than 3 label maps, got 3" in caplog.text


def test_a_released_network_is_found_by_the_manifest_and_other_entries_stay(head: LabelMap, tmp_path: Path) -> None:
    train(task(head, steps=1), tmp_path / "run", show=False)
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "MANIFEST.json").write_text('{"format": 1, "ensembles": {"3d": 7}}')
    release_anatomy(folder, tmp_path / "run" / "anatomy.safetensors", "a toy", {"brain": 0.5})
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert manifest["ensembles"] == {"3d": 7} and manifest["anatomy"]["steps"] == 1
    assert load_network(folder).config == TINY
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", "anatomy.safetensors"]

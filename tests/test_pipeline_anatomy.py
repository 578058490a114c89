"""What the pipeline does with brain and regions: the skull off, PVS outside the parenchyma gone, reports beside.

The anatomy network is stood in for by what the body of conftest.py is made of; its own tests are in test_anatomy.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pvs_model import pipeline
from pvs_model.anatomy.regions import Anatomy, values_of
from pvs_model.commands import segment
from pvs_model.config import InferenceConfig
from pvs_model.errors import VolumeError
from pvs_model.inference import signal_rule
from pvs_model.inference.ensemble import Ensemble
from pvs_model.inference.postprocess import (
    remove_components_outside,
    remove_small_components,
    threshold_and_filter,
    to_mask,
)
from pvs_model.inference.settings import EnsembleSettings
from pvs_model.nets.text import prompt as standard_prompt
from pvs_model.pipeline import Segmenter, mask_from
from pvs_model.preprocessing.prepare import PreparedImages, prepare
from pvs_model.types import Case, Grid, Volume
from pvs_model.volume import intensity
from pvs_model.volume.geometry import choose_reference, dilate_mm, to_ras_grid

WriteBody = Callable[..., dict[str, Path]]


def anatomy_on(shape: tuple[int, ...], brain: npt.NDArray[np.bool_]) -> Anatomy:
    """White matter throughout the brain, left and right of the middle, and a ventricle at its first voxels."""
    labels = np.zeros(shape, np.uint8)
    left, right = values_of("CSO")
    half = np.zeros(shape, bool)
    half[: shape[0] // 2] = True
    labels[brain & half], labels[brain & ~half] = left, right
    return Anatomy(labels, brain)


def ball(grid: Grid, radius: float) -> npt.NDArray[np.bool_]:
    """Voxels within ``radius`` voxels of the middle."""
    places = np.indices(grid.shape) - np.array([(n - 1) / 2 for n in grid.shape])[:, None, None, None]
    return np.asarray((places**2).sum(0) <= radius**2)


# ---- arrays --------------------------------------------------------------------------------------------------------


def test_clusters_are_kept_whole_or_not_at_all() -> None:
    mask, region = np.zeros((8, 5, 5), np.uint8), np.zeros((8, 5, 5), bool)
    region[:4] = True
    mask[2:6, 1, 1] = 1  # half inside: kept
    mask[3:6, 3, 3] = 1  # a third inside: dropped
    mask[7, 4, 4] = 1  # outside
    mask[0, 0, 4] = 1  # inside
    kept, dropped = remove_components_outside(mask, region)
    assert dropped == 2 and kept.sum() == 5 and kept[2:6, 1, 1].all() and kept[0, 0, 4] and kept.dtype == np.uint8
    assert remove_components_outside(mask * 0, region)[1] == 0
    assert np.array_equal(remove_components_outside(mask, np.ones_like(region))[0], mask)


def test_components_in_cortex_and_cerebellum_are_removed_and_those_that_reach_into_white_matter_kept() -> None:
    """Tubes of 4 voxels of 1 mm: in white matter, beside it, 2 mm away in cortex, in the cerebellum."""
    shape = (12, 12, 12)
    prepared = prepare({"T2w": Volume(np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32), np.eye(4))})
    labels = np.full(shape, values_of("L-CTX")[0], np.uint8)
    labels[:, 0], labels[:, 8] = values_of("L-WM")[0], values_of("L-CBL")[0]
    prepared = replace(prepared, anatomy=Anatomy(labels, np.ones(shape, bool)))
    probability = np.zeros(shape, np.float32)
    probability[:4, 0, 0] = probability[:4, 1, 4] = probability[:4, 2, 8] = probability[:4, 8, 0] = 1
    mask, removed = threshold_and_filter(probability, 0.5, np.ones(shape, bool), 1.0, prepared.limits())
    assert mask[:4, 0, 0].all() and mask[:4, 1, 4].all() and mask.sum() == 8 and removed == 2
    probability[4:6, 0, 0], probability[8, 0, 8] = 0.4, 0.4  # the end of a tube; on its own
    assert np.array_equal(threshold_and_filter(probability, 0.5, np.ones(shape, bool), 1.0, prepared.limits())[0], mask)
    wider, _ = threshold_and_filter(probability, 0.5, np.ones(shape, bool), 1.0, prepared.limits(), 0.3)
    assert wider[:6, 0, 0].all() and wider.sum() == 10


def test_specks_are_what_no_vessel_can_be_told_from() -> None:
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[1, 1, 1:5] = 1  # four voxels: 0.5 mm3 at 0.5 mm
    mask[4, 4, 1:4] = 1  # three
    mask[7, 7, 7] = mask[8, 8, 8] = 1  # two, by a corner
    fine = remove_small_components(mask, 0.125)
    assert fine.dtype == np.uint8 and fine.sum() == 4 and fine[1, 1, 1:5].all()
    assert np.array_equal(remove_small_components(mask, 0.125 * (1 - 1e-6)), fine)
    for voxel_mm3 in (0.5, 1.0, 6.0):  # a voxel of 0.8 mm and above counts alone
        assert np.array_equal(remove_small_components(mask, voxel_mm3), mask)
    assert not remove_small_components(mask * 0, 0.125).any()


@pytest.mark.parametrize(("spacing", "margin", "reach"), [((1, 1, 1), 1.0, (1, 1, 1)), ((0.5, 1, 3), 1.0, (2, 1, 0))])
def test_a_margin_is_in_millimetres(spacing: Any, margin: float, reach: tuple[int, int, int]) -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    wide = dilate_mm(mask, margin, spacing)
    for axis, voxels in enumerate(reach):
        line = [4, 4, 4]
        for k in range(9):
            line[axis] = k
            assert wide[tuple(line)] == (abs(k - 4) <= voxels)
    assert not dilate_mm(mask & False, 1.0, spacing).any() and wide.shape == mask.shape


# ---- prepare -------------------------------------------------------------------------------------------------------


def test_a_skull_is_taken_off(body: Any) -> None:
    volumes = {name: body.volume(name) for name in ("T1w", "T2w")}
    grid, _ = to_ras_grid(volumes[choose_reference(volumes)].grid)
    brain = ball(grid, 4)
    prepared = prepare(volumes, anatomy=anatomy_on(grid.shape, brain))
    assert prepared.skull_removed and prepared.anatomy is not None
    assert any("Input is not skull-stripped" in warning for warning in prepared.warnings)
    near = dilate_mm(brain, 1.0, grid.spacing_mm)
    assert np.array_equal(prepared.foreground, near & intensity.foreground(volumes["T2w"].data))
    for channel in prepared.image[:2]:
        assert channel[near].any() and not channel[~near].any()


def test_a_contrast_that_contradicts_its_name_is_refused(body: Any) -> None:
    shape, affine = body.grid()
    head = body.image(shape, affine, "T2w") > 0
    middle = np.zeros(shape, bool)
    middle[shape[0] // 3 : shape[0] // 2] = True
    labels = anatomy_on(shape, head).labels
    labels[head & middle] = values_of("L-LV")[0]
    anatomy = Anatomy(labels, head)

    def volume(fluid: float, name: str) -> Volume:
        data = np.where(head & middle, fluid, np.where(head, 100.0, 0.0)) + head * np.indices(shape)[0] * 0.01
        return Volume(data.astype(np.float32), affine, Path(f"7_{name}.nii.gz"))

    for name, good, bad in (("T2w", 300.0, 40.0), ("FLAIR", 40.0, 300.0), ("T1w", 40.0, 300.0)):
        assert prepare({name: volume(good, name)}, anatomy=anatomy).warnings == ()
        with pytest.raises(VolumeError, match=rf"7_{name}.nii.gz: expected a {name}, got another contrast: "):
            prepare({name: volume(bad, name)}, anatomy=anatomy)
        (doubt,) = prepare({name: volume(90.0 if name == "T2w" else 110.0, name)}, anatomy=anatomy).warnings
        assert f"is it a {name}" in doubt
    # An anatomy that knows little of the scan decides nothing.
    known = np.where(np.indices(shape)[2] < 0.62 * shape[2], labels, 0).astype(np.uint8)
    prepared = prepare({"T2w": volume(40.0, "T2w")}, anatomy=Anatomy(known, known > 0))
    assert not prepared.skull_removed and any("T2w shows fluid darker" in line for line in prepared.warnings)


def test_a_scan_without_skull_is_left_as_it_is(body: Any) -> None:
    volumes = {name: body.volume(name) for name in ("T1w", "T2w")}
    grid, _ = to_ras_grid(volumes[choose_reference(volumes)].grid)
    brain = intensity.foreground(volumes["T2w"].data)
    prepared, plain = prepare(volumes, anatomy=anatomy_on(grid.shape, brain)), prepare(volumes)
    assert not prepared.skull_removed and np.array_equal(prepared.image, plain.image)
    assert np.array_equal(prepared.foreground, plain.foreground)


# ---- from files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def with_anatomy(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder for which the body's foreground is brain."""

    def find(volumes: dict[str, Volume], weights: Path, device: Any = "cpu") -> Anatomy:
        reference = volumes[choose_reference(volumes)]
        grid, turn = to_ras_grid(reference.grid)
        return anatomy_on(grid.shape, turn.apply(intensity.foreground(reference.data)))

    (own_weights / "anatomy.safetensors").write_bytes(b"stands in")
    monkeypatch.setattr(pipeline, "estimate_anatomy", find)
    return own_weights


def run(*arguments: object) -> int:
    return segment.main([str(argument) for argument in arguments])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_reports_of_a_run(write_body: WriteBody, with_anatomy: Path, tmp_path: Path) -> None:
    write_body(tmp_path / "in" / "s1" / "a" / "a_{}.nii.gz", ("T1w", "T2w"))
    write_body(tmp_path / "in" / "s1" / "b" / "b_{}.nii.gz", ("T2w",), axes=(2, 0, 1), signs=(-1, 1, -1))
    (tmp_path / "in" / "s1" / "c").mkdir()
    (tmp_path / "in" / "s1" / "c" / "c_T2w.nii.gz").write_bytes(b"broken")
    out, report = tmp_path / "out", tmp_path / "report"
    common = ("--input", tmp_path / "in", "--output", out, "--weights", with_anatomy, "--report", report)
    assert run(*common, "--probability") == 1
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == [
        "s1/a/a_pred.nii.gz", "s1/b/b_pred.nii.gz",
    ]  # fmt: skip
    rows = table(report / "burden.csv")
    assert {row["case"] for row in rows} == {"s1/a", "s1/b"}
    whole = {row["case"]: row for row in rows if (row["region"], row["hemisphere"]) == ("all", "both")}
    for case, name in (("s1/a", "a"), ("s1/b", "b")):
        mask = nib.load(out / case / f"{name}_pred.nii.gz")  # type: ignore[attr-defined]
        voxel = abs(np.linalg.det(mask.affine[:3, :3]))
        assert float(whole[case]["pvs_volume_mm3"]) == pytest.approx(np.asarray(mask.dataobj).sum() * voxel)
        assert int(whole[case]["pvs_count"]) == sum(row["case"] == case for row in table(report / "pvs.csv"))
        probability = nib.load(report / "probability" / f"{case}_prob.nii.gz")  # type: ignore[attr-defined]
        np.testing.assert_allclose(probability.affine, mask.affine, atol=1e-5)
        assert (np.asarray(mask.dataobj) <= (probability.get_fdata() >= 0.5)).all()
    entry = json.loads((report / "cases" / "s1" / "a.json").read_text())
    assert entry["page"] == "cases/s1/a.html" and (report / entry["page"]).is_file() and entry["metadata"]["anatomy"]
    failed = json.loads((report / "cases" / "s1" / "c.json").read_text())
    assert failed["burden"] is None and failed["page"] is None and "c_T2w.nii.gz" in failed["problem"]
    index = (report / "index.html").read_text()
    assert "cases/s1/a.html" in index and "c_T2w.nii.gz" in index

    # A later run adds its cases to the same tables, and mends the one that failed.
    write_body(tmp_path / "in" / "s1" / "c" / "c_{}.nii.gz", ("T2w",))
    before = (report / "cases" / "s1" / "a.html").read_bytes()
    only = tmp_path / "more" / "s1" / "c"
    only.parent.mkdir(parents=True)
    (tmp_path / "in" / "s1" / "c").rename(only)
    assert run("--input", tmp_path / "more", *common[2:]) == 0
    assert {row["case"] for row in table(report / "burden.csv")} == {"s1/a", "s1/b", "s1/c"}
    assert (report / "cases" / "s1" / "a.html").read_bytes() == before
    assert "c_T2w.nii.gz" not in (report / "index.html").read_text()


def test_without_the_anatomy_network_the_whole_is_measured(
    write_body: WriteBody, weights: Path, tmp_path: Path
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    common = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights)
    assert run(*common, "--report", tmp_path / "report") == 0
    assert {row["region"] for row in table(tmp_path / "report" / "burden.csv")} == {"all"}
    assert all(row["pvsnm_mm3_per_million_mm3"] == "" for row in table(tmp_path / "report" / "burden.csv"))


def test_a_brain_that_is_not_found_does_not_stop_a_case(
    write_body: WriteBody, with_anatomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from pvs_model.errors import VolumeError

    def fail(*_: Any) -> Anatomy:
        raise VolumeError("x.nii.gz: expected a brain, got none")

    monkeypatch.setattr(pipeline, "estimate_anatomy", fail)
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    assert run("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", with_anatomy) == 0
    assert "no skull-stripping and no regions: x.nii.gz: expected a brain, got none" in caplog.text


@pytest.fixture
def any_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps clusters of any signal."""
    monkeypatch.setattr(signal_rule, "remove_components_unlike_csf", lambda mask, *_: (mask, 0))


@pytest.mark.usefixtures("any_signal")
@pytest.mark.parametrize(("kept", "removes"), [(0.9, True), (0.7, False)])
def test_pvs_outside_the_parenchyma_are_removed_where_the_anatomy_knows_most_of_the_scan(
    write_body: WriteBody, with_anatomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any,
    kept: float, removes: bool,
) -> None:  # fmt: skip
    known: list[npt.NDArray[np.bool_]] = []

    def find(volumes: dict[str, Volume], weights: Path, device: Any = "cpu") -> Anatomy:
        reference = volumes[choose_reference(volumes)]
        grid, turn = to_ras_grid(reference.grid)
        inside = turn.apply(intensity.foreground(reference.data))
        known.append(inside & (np.cumsum(inside).reshape(inside.shape) <= kept * inside.sum()))
        return anatomy_on(grid.shape, known[-1])

    path = write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))["T2w"]
    segmenter = Segmenter(InferenceConfig(with_anatomy, "cpu"))
    case = Case("a", {"T2w": path}, Path("a.nii.gz"))
    monkeypatch.setattr(pipeline, "estimate_anatomy", find)
    prediction = segmenter.predict(segmenter.preprocess(case))
    segmentation = segmenter.postprocess(prediction)
    plain = to_mask(prediction.probability, prediction.ensemble.settings.threshold, segmentation.prepared.foreground)
    expected, dropped = plain, 0
    if removes:
        expected, dropped = remove_components_outside(plain, known[0])
    assert np.array_equal(segmentation.canonical_mask, expected)
    assert segmentation.metadata["removed_outside"] == dropped
    unreliable = [warning for warning in segmentation.metadata["warnings"] if "regions are unreliable" in warning]
    assert len(unreliable) == (0 if removes else 1)
    assert all("Brain mask covers only 70 % of the foreground" in text for text in unreliable)


@pytest.mark.parametrize(("thickness_mm", "removed"), [(2.0, 1), (2.5, 0)])
def test_the_signal_of_clusters_decides_in_thin_slices_with_an_anatomy(thickness_mm: float, removed: int) -> None:
    shape = (20, 20, 10)
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    probability = np.zeros(shape, np.float32)
    for place, t2w in (((5, 5, 5), 9), ((14, 14, 5), -9)):
        probability[place], images[(1, *place)], images[(2, *place)] = 0.9, t2w, -9
    grid = Grid(shape, np.diag([1.0, 1.0, thickness_mm, 1.0]))
    whole = np.ones(shape, bool)
    prepared = PreparedImages(
        images, whole, grid, "T2w", to_ras_grid(grid)[1], (), anatomy_on(shape, whole), skull_removed=True
    )
    ensemble = Ensemble("3d", (), EnsembleSettings(0.5, 64, 0.125, (0.4, 1.2), (0.4, 2.5)))
    mask, counts = mask_from(prepared, probability, ensemble)
    assert counts == {"removed_outside": 0, "removed_by_signal": removed} and mask.sum() == 2 - removed
    mask, counts = mask_from(replace(prepared, anatomy=None), probability, ensemble)
    assert counts["removed_by_signal"] == 0 and mask.sum() == 2


@pytest.mark.usefixtures("any_signal")
@pytest.mark.parametrize("region", ["basal ganglia", "centrum semiovale", "brain"])
def test_a_mask_lies_in_the_region_that_its_prompt_asks_for(
    write_body: WriteBody, with_anatomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    """White matter to the left of the middle, putamen to the right."""
    anatomies = []

    def find(volumes: dict[str, Volume], weights: Path, device: Any = "cpu") -> Anatomy:
        reference = volumes[choose_reference(volumes)]
        grid, turn = to_ras_grid(reference.grid)
        anatomy = anatomy_on(grid.shape, turn.apply(intensity.foreground(reference.data)))
        anatomy.labels[anatomy.labels == values_of("R-CSO")[0]] = values_of("R-PUT")[0]
        anatomies.append(anatomy)
        return anatomy

    path = write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))["T2w"]
    segmenter = Segmenter(InferenceConfig(with_anatomy, "cpu"))
    monkeypatch.setattr(pipeline, "estimate_anatomy", find)
    prediction = segmenter.predict(segmenter.preprocess(Case("a", {"T2w": path}, Path("a.nii.gz"))))
    foreground = prediction.preprocessed.prepared.foreground
    probability = np.where(np.indices(foreground.shape).sum(0) % 7 == 0, 1, 0).astype(np.float32)
    probability[:, ::3] = 0  # many components
    prediction = replace(prediction, probability=probability, prompt=standard_prompt(["T2w"], 1.0, region))
    segmentation = segmenter.postprocess(prediction)
    inside = anatomies[0].mask({"basal ganglia": "BG", "centrum semiovale": "CSO", "brain": "parenchyma"}[region])
    expected, dropped = remove_components_outside(to_mask(probability, 0.5, foreground), inside)
    assert np.array_equal(segmentation.canonical_mask, expected) and expected.any()
    assert segmentation.metadata["removed_outside"] == dropped and (dropped > 0) == (region != "brain")


def test_an_anatomy_network_that_does_not_fit_the_gpu_runs_on_the_cpu(
    write_body: WriteBody, with_anatomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, devices = write_body(tmp_path / "a_{}.nii.gz", ("T2w",)), []

    def estimate(volumes: dict[str, Volume], weights: Path, device: torch.device) -> Anatomy:
        devices.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("no")
        grid, _ = to_ras_grid(volumes[choose_reference(volumes)].grid)
        return anatomy_on(grid.shape, ball(grid, 10))

    monkeypatch.setattr(pipeline, "estimate_anatomy", estimate)
    segmenter = Segmenter(InferenceConfig(with_anatomy))
    segmenter.runtime._device = torch.device("cuda")
    assert segmenter.preprocess(Case("a", files, tmp_path / "mask.nii.gz")).prepared.anatomy is not None
    assert devices == ["cuda", "cuda", "cpu"]


def test_anatomy_can_be_left_out(
    write_body: WriteBody, with_anatomy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "estimate_anatomy", lambda *_: pytest.fail("asked for"))
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    common = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", with_anatomy)
    assert run(*common, "--no-anatomy") == 0


@pytest.mark.parametrize("inside", [".", "reports", "a/reports"])
def test_reports_never_lie_among_the_masks(
    inside: str, write_body: WriteBody, weights: Path, tmp_path: Path, capsys: Any
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))
    out = tmp_path / "out"
    assert run("--input", tmp_path / "in", "--output", out, "--weights", weights, "--report", out / inside) == 2
    assert "expected a folder for reports outside that of the masks" in capsys.readouterr().err
    assert not list(out.rglob("*.nii.gz"))

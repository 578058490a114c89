"""Folders of masks in, scores out: what is read, refused, missing, and how it is summed up."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

from pvs_model.anatomy import inference
from pvs_model.cli import main
from pvs_model.errors import PVSError
from pvs_model.evaluation import evaluate as module
from pvs_model.evaluation.evaluate import ABOVE_ONE, ESTIMATED, evaluate
from pvs_model.evaluation.metrics import PAPERS
from pvs_model.evaluation.regions import boxes
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation
from pvs_model.evaluation.summary import as_csv, as_json, interval, text
from tests.processes import fork_server

SHAPE = (12, 10, 8)
UPRIGHT = np.diag([1.0, 1.0, 3.0, 1.0])


def save(path: Path, data: npt.NDArray[Any], affine: npt.NDArray[np.float64] = UPRIGHT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data.astype(np.uint8), affine), path)  # type: ignore[attr-defined]
    return path


def blobs(seed: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    out = np.zeros(SHAPE, np.uint8)
    for x, y, z in rng.integers(1, 7, (6, 3)):
        out[x : x + 2, y, z] = 1
    return out


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Truth and predictions of s1/a, s1/b and s2/c; a perfect, b shifted by a voxel, c thin slices and missing."""
    truth, predictions = tmp_path / "truth", tmp_path / "pred"
    halves = np.zeros((2, *SHAPE), np.uint8)
    halves[0, :6], halves[1, 6:] = 1, 1
    for k, name in enumerate(("s1/a", "s1/b", "s2/c")):
        case, affine = name[-1], UPRIGHT if name != "s2/c" else np.eye(4)
        for label, mask in (("PVS", blobs(k)), ("CSO", halves[0]), ("BG", halves[1])):
            save(truth / name / f"{case}_{label}.nii.gz", mask, affine)
        if name != "s2/c":
            save(predictions / name / f"{case}_pred.nii.gz", np.roll(blobs(k), k, 1), affine)
    return truth, predictions


def rows(report: Evaluation, region: str = "all") -> dict[str, Any]:
    return {row.label: row for row in report.rows if row.region == region}


def test_every_case_and_region_is_scored(folders: tuple[Path, Path]) -> None:
    report = evaluate(*folders, workers=1)
    assert [(row.label, row.region) for row in report.rows] == [
        (case, region) for case in ("s1/a", "s1/b", "s2/c") for region in ("CSO", "BG", "all")
    ]
    by_case = rows(report)
    assert {label: row.status for label, row in by_case.items()} == {"s1/a": SCORED, "s1/b": SCORED, "s2/c": MISSING}
    assert by_case["s1/a"].sets["official"] == {"dice": 1, "avd": 0, "avd_capped": 0, "recall": 1, "precision": 1}
    assert by_case["s1/a"].protocol == "1 x 1 x 3 mm" and by_case["s2/c"].protocol == "1 x 1 x 1 mm"
    voxels = int(blobs(0).sum())
    assert (
        by_case["s1/a"].sets["volume"]["reference_mm3"] == 3 * voxels == by_case["s1/a"].sets["volume"]["predicted_mm3"]
    )
    cso, bg = (rows(report, region)["s1/b"].counts.reference_voxels for region in ("CSO", "BG"))
    assert cso + bg == by_case["s1/b"].counts.reference_voxels
    assert by_case["s2/c"].sets["official"] == {"dice": 0, "avd": 1, "avd_capped": 1, "recall": 0, "precision": 0}
    assert report.problems == () and "1 of 3 cases have no prediction and get the worst scores: s2/c" in report.warnings


def test_processes_give_the_same_as_one(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pvs_model.evaluation.evaluate.get_context", lambda method: fork_server())  # they start at once
    assert evaluate(*folders, workers=2) == evaluate(*folders, workers=1)


def test_a_mask_stored_the_other_way_round_scores_the_same(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    path = predictions / "s1/b/b_pred.nii.gz"
    before = rows(evaluate(truth, predictions, workers=1))["s1/b"].sets
    image = nib.load(path)  # type: ignore[attr-defined]
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(("P", "S", "L")))
    assert turned.shape != image.shape  # (y, z, x) now
    nib.save(turned, path)  # type: ignore[attr-defined]
    assert rows(evaluate(truth, predictions, workers=1))["s1/b"].sets == before


def test_metaimages_are_scored_against_nifti(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    path = predictions / "s1/b/b_pred.nii.gz"
    before = rows(evaluate(truth, predictions, workers=1))["s1/b"].sets
    sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_name("b.mha")))
    path.unlink()
    assert rows(evaluate(truth, predictions, workers=1))["s1/b"].sets == before


def moved(data: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    affine = UPRIGHT.copy()
    affine[1, 3] = 2
    return data, affine


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path, data: save(path, data[:-1]), r"expected the grid of .*\(12 x 10 x 8 .*got 11 x 10 x 8"),
        (lambda path, data: save(path, *moved(data)), r"first at \(0, 0, 0\)\), got .*\(0, 2, 0\)"),
        (lambda path, data: path.write_bytes(path.read_bytes()[:60]), r"expected a complete image"),
        (lambda path, data: path.write_bytes(b""), r"got an empty file"),
        (lambda path, data: nib.save(nib.Nifti1Image(np.full(SHAPE, np.nan, np.float32), UPRIGHT), path), r"NaN"),
        (lambda path, data: save(path.with_name("b_pvs.nii.gz"), data), r"expected one prediction for b, got b_pr"),
    ],
    ids=["shape", "elsewhere", "broken", "empty file", "NaN", "two of them"],
)  # fmt: skip
def test_a_prediction_that_does_not_fit_is_refused_by_name(
    spoil: Callable[[Path, Any], Any], said: str, folders: tuple[Path, Path]
) -> None:
    truth, predictions = folders
    spoil(predictions / "s1/b/b_pred.nii.gz", np.roll(blobs(1), 1, 1))
    report = evaluate(truth, predictions, workers=1)
    row = rows(report)["s1/b"]
    assert row.status == REFUSED and row.sets["official"]["dice"] == 0 and row.sets["official"]["avd"] == 1
    (problem,) = report.problems
    assert problem.startswith("s1/b: ") and "\n" not in problem and report.data_errors == ()
    assert re.search(said, problem), problem


def test_an_empty_prediction_is_scored_not_refused(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    save(predictions / "s1/b/b_pred.nii.gz", np.zeros(SHAPE))
    row = rows(evaluate(truth, predictions, workers=1))["s1/b"]
    assert row.status == SCORED and row.sets["official"]["avd"] == 1 and row.sets["detection"]["precision"] is None


def test_a_truth_that_cannot_be_read_is_the_truths_fault(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    (truth / "s1/b/b_PVS.nii.gz").write_bytes(b"no image at all")
    report = evaluate(truth, predictions, workers=1)
    assert "s1/b" not in rows(report) and set(rows(report)) == {"s1/a", "s2/c"}
    assert (
        report.problems == report.data_errors
        and "s1/b: not scored, since its reference mask cannot be read" in report.data_errors[0]
    )


@pytest.mark.parametrize("content", [b"no image at all", "another grid"])
@pytest.mark.parametrize("case", ["s1/a", "s1/b", "s2/c"])  # perfect, shifted, without a prediction
def test_a_mask_of_ignored_voxels_belongs_to_the_reference(
    folders: tuple[Path, Path], case: str, content: bytes | str
) -> None:
    truth, predictions = folders
    path = truth / case / f"{case[-1]}_IGNORE.nii.gz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, np.ones((3, 3, 3)))
    report = evaluate(truth, predictions, workers=1)
    assert case not in rows(report) and len(rows(report)) == 2
    (error,) = report.data_errors
    assert report.problems == (error,) and error.startswith(f"{case}: not scored, ") and path.name in error


def test_a_region_on_another_grid_is_told_and_the_whole_image_still_scored(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    save(truth / "s1/b/b_BG.nii.gz", np.ones((3, 3, 3)))
    report = evaluate(truth, predictions, workers=1)
    assert "s1/b" in rows(report) and "s1/b" not in rows(report, "CSO")
    assert "s1/b: scored in the whole image only: " in report.data_errors[0] and "b_BG.nii.gz" in report.data_errors[0]


def test_region_masks_elsewhere_halves_are_added_up(folders: tuple[Path, Path], tmp_path: Path) -> None:
    left, right = np.zeros((2, *SHAPE), np.uint8)
    left[:, :, :4], right[:, :, 4:] = 1, 1
    for name in ("s1/a", "s1/b", "s2/c"):
        affine = UPRIGHT if name != "s2/c" else np.eye(4)
        save(tmp_path / "atlas" / name / "lbg_native_space.nii.gz", left, affine)
        save(tmp_path / "atlas" / name / "rbg_native_space.nii.gz", right, affine)
    report = evaluate(*folders, regions=tmp_path / "atlas", workers=1)
    whole, bg = rows(report), rows(report, "BG")
    assert all(bg[name].sets == whole[name].sets for name in whole) and not rows(report, "CSO")
    with pytest.raises(PVSError, match=r"nowhere: expected a folder of region masks, got none"):
        evaluate(*folders, regions=tmp_path / "nowhere")


def test_without_region_masks_the_whole_image_is_scored_and_that_is_told(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    for path in truth.rglob("*_BG.nii.gz"):
        path.unlink()
        path.with_name(path.name.replace("BG", "CSO")).unlink()
    report = evaluate(truth, predictions, workers=1)
    assert report.regions == ["all"] and any("3 of 3 cases have no region masks" in w for w in report.warnings)
    assert not any("region masks" in w for w in evaluate(truth, predictions, regions="none", workers=1).warnings)


def test_a_region_mask_that_only_some_cases_have_is_missed(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    assert not any("lack a region" in warning for warning in evaluate(truth, predictions, workers=1).warnings)
    (truth / "s1/b/b_BG.nii.gz").unlink()
    (truth / "s2/c/c_CSO.nii.gz").unlink()
    report = evaluate(truth, predictions, workers=1)
    assert [line for line in report.warnings if "region" in line] == [
        "2 of 3 cases lack a region mask that others have and are not scored there: s1/b (BG), s2/c (CSO)"
    ]
    (truth / "s1/b/b_CSO.nii.gz").unlink()
    report = evaluate(truth, predictions, workers=1)
    assert [line[:38] for line in report.warnings if "region" in line] == [
        "1 of 3 cases have no region masks and ", "1 of 3 cases lack a region mask that o",
    ]  # fmt: skip


def test_regions_are_estimated_from_an_image_on_the_truths_grid(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The network is stood in for: what it finds is its own tests' matter."""

    class Halves:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape = shape

        def mask(self, name: str) -> npt.NDArray[np.bool_]:
            out = np.zeros(self.shape, bool)
            out[slice(None, 6) if name == "CSO" else slice(6, None)] = True
            return out

    seen = []
    monkeypatch.setattr(inference, "find_regions", lambda volume, weights: seen.append(volume.source) or Halves(SHAPE))
    truth, predictions = folders
    before = evaluate(truth, predictions, workers=1)
    for path in [*truth.rglob("*_BG.nii.gz"), *truth.rglob("*_CSO.nii.gz")]:
        path.unlink()
    save(truth / "s1/b/b_T1w.nii.gz", np.arange(8).reshape(2, 2, 2))  # on another grid
    save(truth / "s1/b/b_T2w.nii.gz", np.arange(960).reshape(SHAPE) % 200)
    report = evaluate(truth, predictions, workers=1, weights=tmp_path)
    assert [path.name for path in seen] == ["b_T2w.nii.gz"]
    for region in ("CSO", "BG"):
        (label,) = rows(report, region)
        assert rows(report, region)[label].sets == rows(before, region)[label].sets
        assert ESTIMATED in rows(report, region)[label].notes
    assert ESTIMATED not in rows(report)["s1/b"].notes
    warnings = " ".join(report.warnings)
    assert f"in 1 of 3 cases {ESTIMATED}: s1/b" in warnings and "2 of 3 cases have no region masks" in warnings


def test_the_boxes_of_the_challenges_script() -> None:
    # 14 x 7 x 9: BG is x 6..8, y 3..4, z 4..5; CSO x 4..10, y 2..5, z 3..6 around it.
    regions = boxes((14, 7, 9))
    assert [tuple(np.argwhere(regions["BG"]).min(0)), tuple(np.argwhere(regions["BG"]).max(0))] == [
        (6, 3, 4),
        (7, 3, 4),
    ]
    assert [tuple(np.argwhere(regions["CSO"]).min(0)), tuple(np.argwhere(regions["CSO"]).max(0))] == [
        (4, 2, 3),
        (9, 4, 5),
    ]
    assert regions["CSO"].sum() == 6 * 3 * 3 - 2 and not (regions["CSO"] & regions["BG"]).any()


def test_boxes_are_of_the_stored_array(folders: tuple[Path, Path]) -> None:
    report = evaluate(*folders, regions="boxes", workers=1)
    inside = blobs(0).astype(bool) & boxes(SHAPE)["CSO"]
    assert rows(report, "CSO")["s1/a"].counts.reference_voxels == inside.sum()


def test_a_precision_above_one_is_flagged(tmp_path: Path) -> None:
    truth, predicted = np.zeros((2, *SHAPE), np.uint8)
    truth[1, 1, 1] = truth[5, 1, 1] = 1
    predicted[1:6, 1, 1] = 1
    save(tmp_path / "truth/a_PVS.nii.gz", truth)
    save(tmp_path / "pred/a.nii.gz", predicted)
    report = evaluate(tmp_path / "truth", tmp_path / "pred", workers=1)
    (row,) = report.rows
    assert row.sets["official"]["precision"] == 2 and row.notes == (ABOVE_ONE,)
    assert any("in 1 of 1 rows" in warning for warning in report.warnings)


def test_summaries_by_hand(folders: tuple[Path, Path]) -> None:
    report = evaluate(*folders, workers=1)
    dice = {row.label: row.sets["official"]["dice"] for row in report.rows if row.region == "all"}
    (overall,) = [
        s for s in report.summaries if (s.by, s.region, s.score_set, s.score) == ("all", "all", "official", "dice")
    ]
    values = list(dice.values())
    assert overall.n == 3 and overall.mean == pytest.approx(sum(values) / 3) and overall.median == sorted(values)[1]
    assert overall.sd == pytest.approx(math.sqrt(sum((v - sum(values) / 3) ** 2 for v in values) / 2))
    assert overall.low is None  # three cases give no interval
    sites = {
        s.group: s
        for s in report.summaries
        if (s.by, s.region, s.score_set, s.score) == ("site", "all", "official", "dice")
    }
    assert sites["s2"].mean == 0 and sites["s2"].sd is None and sites["s1"].n == 2
    # c has no prediction: a precision of matched clusters all the same, the worst one.
    assert {s.without for s in report.summaries if s.by == "all" and s.score_set == "detection"} == {0}


def test_the_interval_is_seeded_holds_the_mean_and_shrinks() -> None:
    rng = np.random.default_rng(5)
    few, many = rng.random(10), rng.random(1000)
    low, high = interval(few)
    assert low is not None and high is not None and low < few.mean() < high and interval(few) == (low, high)
    near = interval(many)
    assert near[0] is not None and near[1] is not None and near[1] - near[0] < (high - low) / 3
    # Of a mean of 1000 uniform numbers: 1.96 standard errors of 0.289 / sqrt(1000) either way.
    assert near[1] - near[0] == pytest.approx(2 * 1.96 * many.std() / math.sqrt(1000), rel=0.1)
    assert interval([0.5] * 5) == (0.5, 0.5) and interval([0.5] * 4) == (None, None)


def test_json_csv_and_table_say_the_same(folders: tuple[Path, Path]) -> None:
    truth, predictions = folders
    save(predictions / "s1/b/b_pred.nii.gz", np.zeros(SHAPE))  # scores without a value
    report = evaluate(truth, predictions, workers=1)
    content = json.loads(json.dumps(as_json(report), allow_nan=False))
    lines = list(csv.DictReader(io.StringIO(as_csv(report.rows))))
    assert len(content["cases"]) == len(lines) == len(report.rows) == 9
    for entry, line, row in zip(content["cases"], lines, report.rows, strict=True):
        assert (entry["case"], line["case"]) == (row.case, row.case)
        for name, values in row.sets.items():
            for score, value in values.items():
                assert entry[name][score] == value
                assert line[f"{name}.{score}"] == ("" if value is None else repr(value))
    assert "0.333 ± 0.577" in text(report)  # Dice 1, 0 and 0
    for paper, names in PAPERS.items():
        head = text(report, paper).splitlines()[0]
        assert all(f" {name} |" in head for name in names)


def test_formulas_in_names_are_defused(tmp_path: Path) -> None:
    save(tmp_path / "truth/=1+1_PVS.nii.gz", blobs(0))
    save(tmp_path / "pred/=1+1.nii.gz", blobs(0))
    report = evaluate(tmp_path / "truth", tmp_path / "pred", workers=1)
    (line,) = list(csv.DictReader(io.StringIO(as_csv(report.rows))))
    assert line["case"] == " =1+1"


def test_a_process_that_dies_costs_its_case_only(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is stood in for by one that breaks: a real one needs a process killed at the right moment."""
    from concurrent.futures import Future
    from concurrent.futures.process import BrokenProcessPool

    class Breaking:
        def __init__(self, workers: int, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Breaking:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def submit(self, call: Any, pair: Any, regions: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if pair.case == "b":
                future.set_exception(BrokenProcessPool("died"))
            else:
                future.set_result(call(pair, regions))
            return future

    monkeypatch.setattr(module, "ProcessPoolExecutor", Breaking)
    report = evaluate(*folders, workers=2)
    assert set(rows(report)) == {"s1/a", "s2/c"}
    assert report.data_errors == ("s1/b: not scored, since the process that scored it died (out of memory?)",)


def test_the_command(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, predictions = map(str, folders)
    out = [str(tmp_path / "out" / name) for name in ("scores.json", "scores.csv", "scores.html")]
    command = ["evaluate", "--truth", truth, "--pred", predictions, "--workers", "1"]
    assert main([*command, "--json", out[0], "--csv", out[1], "--html", out[2]]) == 0
    output = capsys.readouterr()
    assert "2 cases scored, 1 missing (worst scores)" in output.out and "warning: 1 of 3 cases" in output.err
    assert json.loads(Path(out[0]).read_text())["cases"][0]["case"] == "a"
    assert Path(out[1]).read_text().startswith("case,site,protocol,region,status,official.dice")
    assert "s2" in Path(out[2]).read_text()
    assert not list((tmp_path / "out").glob(".*"))
    (folders[1] / "s1/b/b_pred.nii.gz").write_bytes(b"?")
    assert main(command) == 1
    assert "error: s1/b: " in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 2
    assert main(["evaluate", "--truth", str(tmp_path / "no"), "--pred", predictions]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


# ---- what is no mask -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["truth", "pred"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda mask: np.clip(mask * 0.9, 1e-6, 0.999999), "looks like a probability map"),
        (lambda mask: mask + 1, "the labels 1, 2: this looks like a map of several structures"),
    ],
    ids=["probabilities", "labels"],
)
def test_what_is_no_mask_is_named_and_not_scored(
    folders: tuple[Path, Path], side: str, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = folders
    folder, ending = (truth, "PVS") if side == "truth" else (predictions, "pred")
    path = folder / "s1" / "b" / f"b_{ending}.nii.gz"
    data = change(np.asarray(nib.load(path).dataobj, np.float32))  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(data.astype(np.float32), UPRIGHT), path)  # type: ignore[attr-defined]
    assert main(["evaluate", "--truth", str(truth), "--pred", str(predictions), "--workers", "1"]) == 1
    output = capsys.readouterr()
    assert f"{path}: expected a mask of 0 and one positive value" in output.err and said in output.err
    assert "s1/a" not in output.err and "Traceback" not in output.err


def test_a_case_of_two_truths_is_not_scored_and_the_others_are(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = folders
    save(truth / "s1" / "b" / "PVS.nii.gz", blobs(3))
    report = evaluate(truth, predictions, workers=1)
    assert {row.label for row in report.rows} == {"s1/a", "s2/c"}
    assert main(["evaluate", "--truth", str(truth), "--pred", str(predictions), "--workers", "1"]) == 1
    assert "error: s1/b: not scored: expected one reference mask of b in s1, got" in capsys.readouterr().err

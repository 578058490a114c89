"""``validate`` over stand-ins of data sets with real labels."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pvs_model.cli import main
from pvs_model.evaluation.tables import read_csv

STEM = "{0}/{0}_space-T1_desc-"


@pytest.fixture
def valdo(write_body: Callable[..., dict[str, Path]], tmp_path: Path) -> Path:
    """Two subjects of VALDO with masks of two raters, and one with counts only."""
    root = tmp_path / "Task1"
    for k, name in enumerate(("sub-101", "sub-201", "sub-7")):
        stem = str(root / STEM.format(name))
        paths = write_body(Path(stem + "masked_{}.nii.gz"), ("T1w", "T2w"), spacing_mm=(1.0, 1.0, 3.0))
        for path in paths.values():
            path.rename(path.with_name(path.name.replace("w.nii", ".nii")))
        image = nib.load(stem + "masked_T2.nii.gz")
        values = np.asarray(image.dataobj)
        for rater in (1, 2) if k < 2 else ():
            mask = (values > 800) & (np.indices(values.shape)[0] % 3 < rater + 1)
            nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), f"{stem}Rater{rater}_PVSSeg.nii.gz")
        nib.save(nib.Nifti1Image((values > 0).astype(np.uint8), image.affine), stem + "masked_Regions.nii.gz")
    return root


def run(*arguments: object) -> int:
    return main(["validate", *map(str, arguments), "--device", "cpu"])


def test_valdo_in_one_command(valdo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run("--layout", "valdo", valdo, "--output", output, "--weights", weights) == 0
    # Only what has a reference is segmented.
    assert sorted(path.name for path in (output / "masks").rglob("*.nii.gz")) == [
        "sub-101_pred.nii.gz", "sub-201_pred.nii.gz",
    ]  # fmt: skip
    text = (output / "comparison.txt").read_text()
    assert capsys.readouterr().out.endswith(text)
    assert text.startswith("2 cases with reference masks, 1 without (left out).\n")
    names = ["pvs-model against mean of raters", "pvs-model against Rater1", "Rater2 against Rater1",
             "pvs-model against Rater2"]  # fmt: skip
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == names
    table = read_csv(output / "comparison.csv")
    assert set(table["comparison"]) == set(names)
    # Rater 1 marked every voxel of which rater 2 marked all: the agreement follows from the counts of voxels.
    dice = table[(table["comparison"] == "Rater2 against Rater1") & (table["score"] == "dice")]
    first, second = (np.asarray(nib.load(p).dataobj) for p in sorted((valdo / "sub-101").glob("*Rater*")))
    assert float(dice["mean"].iloc[0]) == pytest.approx(2 * first.sum() / (first.sum() + second.sum()), abs=1e-4)
    assert (output / "scores_rater2_against_rater1.csv").is_file()


def test_one_case_that_fails_and_one_that_is_scored(
    valdo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (valdo / "sub-201").glob("*masked_T*"):
        path.write_bytes(b"no image")
    assert run(valdo, "--output", tmp_path / "out", "--weights", weights) == 1
    captured = capsys.readouterr()
    assert "error: sub-201: " in captured.err and "1 of 2 cases have no prediction" in captured.out


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_a_case_that_fails_is_not_scored_with_the_mask_of_an_earlier_run(
    valdo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    options = ("--output", tmp_path / "out", "--weights", weights)
    assert run(valdo, *options) == 0
    for path in (valdo / "sub-201").glob("*masked_T*"):
        path.write_bytes(b"no image")
    assert run(valdo, *options, *more) == 1
    assert (tmp_path / "out" / "masks").is_dir() and "error: sub-201: " in capsys.readouterr().err
    with (tmp_path / "out" / "scores_pvs_model_against_mean_of_raters.csv").open(newline="") as file:
        lines = {(line["case"], line["region"]): line for line in csv.DictReader(file)}
    assert lines["sub-201", "all"]["status"] == "missing" and lines["sub-101", "all"]["status"] == "scored"
    assert float(lines["sub-201", "all"]["official.dice"]) == 0


def test_what_cannot_be_validated(valdo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in valdo.glob("*/*Rater*"):
        path.unlink()
    assert run(valdo, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {valdo}: expected reference masks beside the images") and "got none in 3" in error
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_references(valdo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(valdo, "--output", tmp_path / "out", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "sub-101: T1w, T2w, Rater1, Rater2", "sub-201: T1w, T2w, Rater1, Rater2", "cases without reference masks: 1",
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()

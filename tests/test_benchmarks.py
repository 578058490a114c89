"""What the benchmarks of accuracy share: finding labelled cases, and averaging honestly."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from benchmarks.cases import cases_of, header, mean, measured, row, sets_of, write_json
from benchmarks.frangi import vesselness
from pvs_model.errors import VolumeError
from pvs_model.synth.anatomy import Anatomy
from pvs_model.training.cases import write_case


@pytest.fixture(scope="module")
def labelled(anatomy: Anatomy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_case(folder, "one", anatomy, 3, (1.0, 1.0, 1.0))
    return folder


def test_labelled_cases_are_found_with_truth_and_regions(labelled: Path) -> None:
    (case,) = cases_of(labelled)
    assert case.name == "one" and set(case.volumes) == {"T1w", "T2w", "FLAIR"}
    assert case.truth.shape == case.prepared.grid.shape and case.truth.any()
    assert not (case.regions["BG"] & case.regions["CSO"]).any()
    assert np.array_equal(case.within("BG"), case.truth & case.regions["BG"])


def test_a_case_without_truth_is_named(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    (copied / "one" / "one_BG.nii.gz").unlink()
    with pytest.raises(VolumeError, match="_BG.nii.gz beside its images"):
        list(cases_of(copied))


def test_a_truth_that_marks_nothing_is_scored(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    path = copied / "one" / "one_PVS.nii.gz"
    stored = nibabel.load(path)
    empty = np.zeros(stored.shape, np.uint8)  # type: ignore[attr-defined]
    nibabel.save(nibabel.Nifti1Image(empty, stored.affine), path)  # type: ignore[attr-defined]
    (case,) = cases_of(copied)
    found = case.truth.copy()
    found[5, 5, 5] = True
    assert not case.truth.any()
    assert measured(found, case.truth)["precision (clusters)"] == 0 and measured(found, case.truth)["recall"] is None


def test_a_truth_that_lies_elsewhere_is_refused(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    path = copied / "one" / "one_PVS.nii.gz"
    stored = nibabel.load(path)
    moved = stored.affine.copy()  # type: ignore[attr-defined]
    moved[0, 3] += 5  # the same shape, 5 mm away
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj), moved), path)  # type: ignore[attr-defined]
    with pytest.raises(VolumeError, match="one_PVS.nii.gz: expected the grid of"):
        list(cases_of(copied))


def test_frangi_prefers_a_bright_tube_to_a_plain(labelled: Path) -> None:
    (case,) = cases_of(labelled)
    image = np.zeros_like(case.prepared.image)
    image[1, 10:13, 10:13, 5:30] = 5.0
    made = replace(case, prepared=replace(case.prepared, image=image))
    found = vesselness(made, (1.0,))
    assert found[11, 11, 15] > 100 * max(float(found[25:, 25:, 25:].max()), 1e-9)


def test_a_table_row_is_the_mean_of_what_has_a_value() -> None:
    truth, none = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    truth[0, 0, 0] = True
    line = row(("set", "CSO"), [measured(truth, truth), measured(none, none)])  # the second has no value at all
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["set", "CSO", "1.000", "0.000", "1.000", "1.000", "1.000", "1.000"]
    assert len(header("set", "region").splitlines()[0].split("|")) == len(line.split("|"))
    assert mean([1.0, math.nan, 3.0]) == 2 and mean([math.nan, None]) is None


def test_sets_have_names_and_json_has_no_nan(tmp_path: Path) -> None:
    assert sets_of(["a=/x/y", "/x/z"]) == {"a": Path("/x/y"), "z": Path("/x/z")}
    write_json(tmp_path / "out.json", [{"value": math.nan}])
    assert json.loads((tmp_path / "out.json").read_text()) == [{"value": None}]

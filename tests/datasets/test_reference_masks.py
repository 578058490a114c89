"""Reference masks of data sets with real labels: which files they are, and scores of drawn masks worked out by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pvs_model.datasets.reference_masks import compare, find_reference_masks, prepare_comparisons
from pvs_model.layouts import choose
from pvs_model.types import Case

SHAPE = (12, 8, 8)
STEM = "sub-101_space-T1_desc-"


def draw(path: Path, *boxes: tuple[slice, int], value: int = 1, flip: bool = False) -> Path:
    """A mask with rods along x, each given by its extent and its y (z is the same); stored flipped on request."""
    mask = np.zeros(SHAPE, np.uint8)
    for along, row in boxes:
        mask[along, row, row] = value
    image = nib.Nifti1Image(mask, np.eye(4))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented([[0, -1], [1, 1], [2, 1]]) if flip else image, path)
    return path


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    """A subject of VALDO: two raters, one of them stored from right to left, who annotated x < 8 only."""
    folder = tmp_path / "Task1" / "sub-101"
    for sequence in ("T1", "T2", "FLAIR"):
        draw(folder / f"{STEM}masked_{sequence}.nii.gz", (slice(1, 9), 3))
    draw(folder / f"{STEM}Rater1_PVSSeg.nii.gz", (slice(0, 4), 1), (slice(0, 4), 4))
    draw(folder / f"{STEM}Rater2_PVSSeg.nii.gz", (slice(2, 6), 1), value=255, flip=True)
    regions = np.zeros(SHAPE, np.uint8)
    regions[:4], regions[4:8] = 7, 2
    nib.save(nib.Nifti1Image(regions, np.eye(4)), folder / f"{STEM}masked_Regions.nii.gz")
    return folder


def only_case(root: Path, layout: str | None = None) -> Case:
    (case,) = choose(root, layout).find_cases(root)
    return case


def test_files_of_a_subject(subject: Path) -> None:
    case = only_case(subject.parent)
    assert choose(subject.parent).name == "valdo"
    assert (case.name, case.problem, set(case.images)) == ("sub-101", None, {"T1w", "T2w", "FLAIR"})
    reference = find_reference_masks(case)
    assert reference is not None
    assert reference.masks == {f"Rater{k}": subject / f"{STEM}Rater{k}_PVSSeg.nii.gz" for k in (1, 2)}
    assert reference.annotated == (subject / f"{STEM}masked_Regions.nii.gz",)


def test_two_raters_and_an_annotated_part(subject: Path, tmp_path: Path) -> None:
    case = only_case(subject.parent)
    reference = find_reference_masks(case)
    assert reference is not None
    # Two rods, of which 8 + 0 voxels lie in the annotated part x < 8: the rod at y = 6 is beyond it.
    draw(tmp_path / "masks" / case.output, (slice(0, 10), 1), (slice(9, 12), 6))
    results = compare(prepare_comparisons([(case, reference)], tmp_path / "masks", tmp_path / "references"))
    rows = {name: result.rows for name, result in results.items()}
    assert all([row.region for row in of] == ["all"] for of in rows.values())
    scores = {name: of[0].sets["official"] for name, of in rows.items()}
    # Either rater: 6 voxels at y = 1 and 4 at y = 4. The prediction has 8, of which 6 agree.
    assert scores["pvs-model against mean of raters"]["dice"] == pytest.approx(2 * 6 / (10 + 8))
    assert scores["pvs-model against mean of raters"]["recall"] == pytest.approx(1 / 2)
    assert scores["pvs-model against mean of raters"]["precision"] == 1
    assert scores["pvs-model against Rater1"]["dice"] == pytest.approx(2 * 4 / (8 + 8))
    assert scores["pvs-model against Rater2"]["dice"] == pytest.approx(2 * 4 / (4 + 8))
    assert scores["Rater2 against Rater1"]["dice"] == pytest.approx(2 * 2 / (8 + 4))
    assert set(scores) == {"pvs-model against mean of raters", *(f"pvs-model against Rater{k}" for k in (1, 2)),
                           "Rater2 against Rater1"}  # fmt: skip
    mean = nib.load(tmp_path / "references" / "sub-101" / "sub-101_PVS.nii.gz")
    assert np.argwhere(np.asarray(mean.dataobj)).tolist() == [
        [0, 1, 1], [0, 4, 4], [1, 1, 1], [1, 4, 4], [2, 1, 1], [2, 4, 4], [3, 1, 1], [3, 4, 4], [4, 1, 1], [5, 1, 1],
    ]  # fmt: skip


def test_raters_on_other_grids_are_a_sentence(subject: Path, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    nib.save(image, subject / f"{STEM}Rater2_PVSSeg.nii.gz")
    case = only_case(subject.parent)
    reference = find_reference_masks(case)
    assert reference is not None
    results = compare(prepare_comparisons([(case, reference)], tmp_path / "masks", tmp_path / "references"))
    problem = results["pvs-model against mean of raters"].problems[0]
    assert problem.startswith("sub-101: not scored") and "Rater2_PVSSeg.nii.gz: expected the grid of" in problem


def test_the_challenges_training_data(tmp_path: Path) -> None:
    """One reference mask and the regions beside the images; a missing mask has the worst scores."""
    folder = tmp_path / "in" / "ED" / "ED_01_01"
    for name in ("T1w", "T2w", "FLAIR", "PVS", "BG", "CSO"):
        draw(folder / f"ED_01_01_{name}.nii.gz", (slice(0, 6 if name == "BG" else 9), 2))
    case = only_case(tmp_path / "in", "epvs")
    reference = find_reference_masks(case)
    assert reference is not None and set(reference.masks) == {"reference"} and set(reference.regions) == {"BG", "CSO"}
    (result,) = compare(prepare_comparisons([(case, reference)], tmp_path / "masks", tmp_path / "refs")).values()
    assert {(row.label, row.region, row.status) for row in result.rows} == {
        ("ED/ED_01_01", region, "missing") for region in ("BG", "CSO", "all")
    }
    draw(tmp_path / "masks" / case.output, (slice(3, 12), 2))
    (result,) = compare(prepare_comparisons([(case, reference)], tmp_path / "masks", tmp_path / "refs")).values()
    dice = {row.region: row.sets["official"]["dice"] for row in result.rows}
    assert dice == pytest.approx({"BG": 6 / 9, "CSO": 12 / 15, "all": 12 / 18})
    assert not (tmp_path / "refs").exists()


def test_a_case_without_a_reference_has_none(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "a_T2w.nii.gz", (slice(0, 6), 2))
    assert find_reference_masks(only_case(tmp_path)) is None

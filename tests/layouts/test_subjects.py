"""How people arrange the files of their subjects: whose images are whose, which count, and what is no input.

Layouts look at names only, so the images here are empty files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pvs_model.errors import LayoutError
from pvs_model.layouts import Options, choose
from pvs_model.types import Case


def lay(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def cases_of(root: Path, options: Options | None = None) -> list[Case]:
    return choose(root, None, options).find_cases(root)


def shown(root: Path) -> dict[str, dict[str, str] | str]:
    """By name of the case: the file of each sequence, or what is wrong."""
    return {
        case.name: case.problem or {key: path.relative_to(root).as_posix() for key, path in case.images.items()}
        for case in cases_of(root)
    }


# ---- all subjects in one folder ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["P001_T1", "P002_FLAIR"], {"P001": "T1w", "P002": "FLAIR"}),
        (["P1_T1", "P1_T2", "P2_T1", "P2_T2"], {"P1": "T1w T2w", "P2": "T1w T2w"}),
        (["1_T1", "1_FLAIR", "2_T1", "2_FLAIR"], {"1": "T1w FLAIR", "2": "T1w FLAIR"}),
        (["001_T1", "002_T1", "003_T1"], {"001": "T1w", "002": "T1w", "003": "T1w"}),
        (["T1_P001", "FLAIR_P002"], {"P001": "T1w", "P002": "FLAIR"}),
        (["T1_mueller", "T1_schmidt"], {"mueller": "T1w", "schmidt": "T1w"}),
        (["mueller_T1", "schmidt_T1", "schmidt_FLAIR"], {"mueller": "T1w", "schmidt": "T1w FLAIR"}),
        (["sub-01_T1w", "sub-01_acq-x_FLAIR", "sub-02_T1w"], {"sub-01": "T1w FLAIR", "sub-02": "T1w"}),
        (["P1_20200101_T1", "P1_20210101_FLAIR"], {"P1_20200101": "T1w", "P1_20210101": "FLAIR"}),
        (["Müller A_T1", "Müller B_T1"], {"Müller A": "T1w", "Müller B": "T1w"}),
        # One subject: planes, pulse sequences and numbers of series do not name it.
        (["3_t1_mprage_sag", "7_t2_spc_da-fl_sag"], {"study": "T1w FLAIR"}),
        (["T1w", "7_t2_spc_da-fl_sag"], {"study": "T1w FLAIR"}),
        (["Ax_T2_FSE", "Sag_3D_T1_BRAVO", "Ax_FLAIR"], {"study": "T1w T2w FLAIR"}),
        (["s301_T1W_3D_TFE", "s401_FLAIR"], {"study": "T1w FLAIR"}),
        (["P1_3_t1_mprage", "P1_7_t2_tse"], {"P1": "T1w T2w"}),
        (["P1_t1_mprage_sag_20200101_3", "P1_t2_tse_20200101_5"], {"P1": "T1w T2w"}),
        (["T1_0.88mm_with_skull", "T2_1x1x2mm", "FLAIR_1x1x5mm"], {"study": "T1w T2w FLAIR"}),
    ],
)
def test_one_folder(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    root = lay(tmp_path / "study", *(f"{name}.nii.gz" for name in names))
    cases = cases_of(root)
    assert {case.name: " ".join(case.images) for case in cases} == expected
    assert [case.output for case in cases] == [Path(f"{case.name}_pred.nii.gz") for case in cases]


@pytest.mark.parametrize(
    "names", [["mueller_T1", "schmidt_FLAIR"], ["001_T1", "002_FLAIR"], ["1_T1", "2_FLAIR"], ["S001_T1", "S002_FLAIR"]]
)
def test_whose_images_these_are_is_not_guessed(tmp_path: Path, names: list[str]) -> None:
    (case,) = cases_of(lay(tmp_path / "in", *(f"{name}.nii.gz" for name in names)))
    assert case.problem is not None and not case.images
    assert case.problem.startswith(f"{tmp_path / 'in'}: expected images of one subject")
    assert case.problem.endswith("put each subject into its own folder") and f"{names[0]}.nii.gz" in case.problem


def test_a_folder_of_several_subjects_below_the_input(tmp_path: Path) -> None:
    root = lay(tmp_path, "all/P001_T1.nii.gz", "all/P002_FLAIR.nii.gz", "P003/P003_T1.nii.gz")
    assert shown(root) == {
        "P003": {"T1w": "P003/P003_T1.nii.gz"},
        "all/P001": {"T1w": "all/P001_T1.nii.gz"},
        "all/P002": {"FLAIR": "all/P002_FLAIR.nii.gz"},
    }
    assert [case.output.as_posix() for case in cases_of(root)][1:] == [
        "all/P001/P001_pred.nii.gz", "all/P002/P002_pred.nii.gz",
    ]  # fmt: skip


def test_series_of_one_subject_in_its_folder(tmp_path: Path) -> None:
    names = ("3_t1_mprage_sag", "5_t1_tra_KM", "7_t2_spc_da-fl_sag", "9_t2_fl2d_tra_hemo")
    root = lay(tmp_path, *(f"P1/{name}.nii.gz" for name in names), "P2/P2_T1.nii.gz")
    assert shown(root)["P1"] == {"T1w": "P1/3_t1_mprage_sag.nii.gz", "FLAIR": "P1/7_t2_spc_da-fl_sag.nii.gz"}


# ---- names of cases ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "inputs", "outputs"),
    [
        (["P1/T1.nii.gz", "P2/T1.nii.gz"], ["P1", "P2"], ["P1_pred.nii.gz", "P2_pred.nii.gz"]),
        (["P1/anat/T1.nii", "P2/anat/T1.nii"], ["P1/anat", "P2/anat"], ["P1_pred.nii.gz", "P2_pred.nii.gz"]),
        (["P1/anat/T1.nii", "P2/anat/T1.nii"], ["P1", "P2"], ["P1/anat/anat_pred.nii.gz", "P2/anat/anat_pred.nii.gz"]),
        (["P1/ses-1/T1.nii", "P1/ses-2/T1.nii"], ["P1/ses-1", "P1/ses-2"],
         ["P1_ses-1_pred.nii.gz", "P1_ses-2_pred.nii.gz"]),
        (["P1/Ax_T2.nii", "P2/Ax_T2.nii"], ["P1", "P2"], ["P1_pred.nii.gz", "P2_pred.nii.gz"]),
    ],
)  # fmt: skip
def test_one_call_per_subject(tmp_path: Path, files: list[str], inputs: list[str], outputs: list[str]) -> None:
    root = lay(tmp_path, *files)
    assert [cases_of(root / name)[0].output.as_posix() for name in inputs] == outputs


@pytest.mark.parametrize("below", ["", "sub-01", "sub-01/ses-1", "sub-01/ses-1/anat"])
def test_one_call_per_subject_of_a_bids_data_set(tmp_path: Path, below: str) -> None:
    root = lay(tmp_path / "bids", "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz")
    (case,) = cases_of(root / below)
    assert case.name == "sub-01_ses-1" and set(case.images) == {"T1w"}
    assert case.output == Path("sub-01/ses-1/anat/sub-01_ses-1_space-orig_label-PVS_mask.nii.gz")


def test_a_subject_of_bids_that_is_mounted_under_another_name(tmp_path: Path) -> None:
    (case,) = cases_of(lay(tmp_path / "input", "anat/sub-07_T1w.nii.gz"))
    assert case.name == "sub-07" and case.output.parent == Path("sub-07/anat")


# ---- a folder per sequence -----------------------------------------------------------------------------------------


def test_a_folder_per_sequence_below_the_subject(tmp_path: Path) -> None:
    root = lay(
        tmp_path, "P1/T1/scan.nii.gz", "P1/FLAIR/scan.nii.gz", "P2/t1_mprage_sag_0003/x_t1_mprage.nii.gz",
        "P2/t2_spc_da-fl_0007/y.nii.gz", "P2/t1_tra_KM_0009/z.nii.gz", "P3/T1/a.nii",
    )  # fmt: skip
    assert shown(root) == {
        "P1": {"T1w": "P1/T1/scan.nii.gz", "FLAIR": "P1/FLAIR/scan.nii.gz"},
        "P2": {"T1w": "P2/t1_mprage_sag_0003/x_t1_mprage.nii.gz", "FLAIR": "P2/t2_spc_da-fl_0007/y.nii.gz"},
        "P3": {"T1w": "P3/T1/a.nii"},
    }
    assert cases_of(root)[0].output.as_posix() == "P1/P1_pred.nii.gz"
    assert set(shown(root / "P1")) == {"P1"}


@pytest.mark.parametrize("above", ["", "all/"])
def test_two_subjects_in_folders_of_sequences_are_not_fused(tmp_path: Path, above: str) -> None:
    root = lay(tmp_path / "in", f"{above}T1/P001.nii", f"{above}FLAIR/P002.nii")
    assert {name: set(images) for name, images in shown(root).items()} == {
        f"{above}P001": {"T1w"}, f"{above}P002": {"FLAIR"},
    }  # fmt: skip
    root = lay(tmp_path / "one", "P1_T1/scan.nii", "P1_FLAIR/scan.nii", "P2_T1/scan.nii")
    assert {name: set(images) for name, images in shown(root).items()} == {"P1": {"T1w", "FLAIR"}, "P2": {"T1w"}}
    (case,) = cases_of(lay(tmp_path / "other", "T1/mueller.nii", "FLAIR/schmidt.nii"))
    assert case.problem and "expected images of one subject" in case.problem


def test_a_folder_per_sequence_with_the_images_deeper(tmp_path: Path) -> None:
    root = lay(
        tmp_path, "P1/scans/3-t1_mprage/resources/NIFTI/files/image.nii.gz",
        "P1/scans/5-t2_flair/resources/NIFTI/files/image.nii.gz", "P2/scans/3-t1_mprage/NIFTI/image.nii.gz",
        "S_01/MPRAGE/2005-08-26/I9010/ADNI_S_01_MPRAGE_I9010.nii", "S_01/Axial_FLAIR/2005-08-26/I9011/ADNI_S_01.nii",
    )  # fmt: skip
    assert {name: set(images) for name, images in shown(root).items()} == {
        "P1/scans": {"T1w", "FLAIR"}, "P2/scans": {"T1w"}, "S_01": {"T1w", "FLAIR"},
    }  # fmt: skip


def test_cases_that_are_called_by_a_sequence_are_no_folders_of_it(tmp_path: Path) -> None:
    names = ("T1w-alone", "FLAIR-alone")
    root = lay(tmp_path, "T1w-alone/T1w-alone_T1w.nii.gz", "FLAIR-alone/FLAIR-alone_FLAIR.nii", "a/scan.nii")
    assert {name for name, images in shown(root).items() if isinstance(images, dict)} == set(names)
    assert isinstance(shown(root)["a"], str)


def test_a_folder_per_sequence_above_the_subjects(tmp_path: Path) -> None:
    names = ("T1/P001.nii.gz", "T1/P002.nii.gz", "FLAIR/P001.nii.gz", "FLAIR/P003.nii.gz")
    root = lay(tmp_path / "in", *names)
    assert shown(root) == {
        "P001": {"T1w": "T1/P001.nii.gz", "FLAIR": "FLAIR/P001.nii.gz"},
        "P002": {"T1w": "T1/P002.nii.gz"},
        "P003": {"FLAIR": "FLAIR/P003.nii.gz"},
    }


# ---- FreeSurfer ----------------------------------------------------------------------------------------------------

MRI = ("orig.mgz", "nu.mgz", "T1.mgz", "brain.mgz", "T2.mgz", "T2.norm.mgz", "T2.prenorm.mgz", "aseg.mgz")


@pytest.mark.parametrize(("below", "name"), [("", "S1"), ("S1", "S1"), ("S1/mri", "S1")])
def test_a_subject_of_freesurfer_is_one_case(tmp_path: Path, below: str, name: str) -> None:
    files = (*(f"mri/{name}" for name in MRI), "mri/transforms/x.lta", "label/a.annot")
    root = lay(tmp_path / "subjects", *(f"S1/{name}" for name in files))
    for folder in ("tmp", "trash", "surf"):
        (root / "S1" / folder).mkdir()
    (root / "fsaverage").symlink_to("/nowhere/fsaverage")
    (case,) = cases_of(root / below)
    assert case.name == name and case.problem is None
    assert {key: path.name for key, path in case.images.items()} == {"T1w": "nu.mgz", "T2w": "T2.prenorm.mgz"}


# ---- links that lead nowhere ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["sub-02", "sub-02/anat", "sub-02/ses-1", "sub-02/ses-1/anat"])
def test_links_that_lead_nowhere_fail_in_bids(tmp_path: Path, link: str) -> None:
    root = lay(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to("/outside/of/the/mount")
    good, bad = cases_of(root)
    assert good.problem is None and bad.name.startswith("sub-02")
    assert bad.problem == (
        f"{root / link}: expected a folder of images, got a broken link to /outside/of/the/mount: "
        "its target may not be mounted"
    )


@pytest.mark.parametrize("link", ["P2", "P2/anat", "site/P2", "P.2"])
def test_links_that_lead_nowhere_fail_elsewhere(tmp_path: Path, link: str) -> None:
    root = lay(tmp_path, "P1/P1_T1.nii.gz")
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(root / link)  # a ring leads nowhere, too
    (root / "notes.txt").symlink_to("/outside")
    bad, good = sorted(cases_of(root), key=lambda case: case.problem is None)
    assert good.name == "P1" and bad.name == link
    assert bad.problem is not None and "a broken link" in bad.problem


def test_links_to_good_folders_and_files_are_followed(tmp_path: Path) -> None:
    store = lay(tmp_path / "store", "a/T1.nii.gz", "x.nii.gz")
    root = lay(tmp_path / "in", "P2/readme.txt")
    (root / "P1").symlink_to(store / "a")
    (root / "P2" / "FLAIR.nii.gz").symlink_to(store / "x.nii.gz")
    assert {name: set(images) for name, images in shown(root).items()} == {"P1": {"T1w"}, "P2": {"FLAIR"}}


def test_an_empty_anat_folder_fails(tmp_path: Path) -> None:
    root = lay(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/func/sub-02_bold.nii.gz")
    (root / "sub-03" / "anat").mkdir(parents=True)
    good, bad = cases_of(root)
    assert good.problem is None and bad.name == "sub-03" and bad.problem and bad.problem.endswith("an empty folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_subject_that_may_not_be_listed_fails(tmp_path: Path) -> None:
    root = lay(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    (root / "sub-02").chmod(0)
    good, bad = cases_of(root)
    (root / "sub-02").chmod(0o755)
    assert good.problem is None and bad.problem and "cannot be read" in bad.problem


# ---- what is no input ----------------------------------------------------------------------------------------------


def test_outputs_within_the_input_are_no_inputs(tmp_path: Path) -> None:
    root = lay(
        tmp_path, "a/a_T1w.nii.gz", "out/a/a_pred.nii.gz", "report/probability/a_prob.nii.gz", "old/a/a_pred.nii.gz",
        "new/b/T1.nii.gz", "derivatives/x/sub-1/T1.nii.gz",
    )  # fmt: skip
    options = Options(outputs=(root / "out", root / "report", root / "new"))
    assert [(case.name, case.problem) for case in cases_of(root, options)] == [("a", None)]


def test_what_macos_and_dcm2niix_leave_is_passed_over(tmp_path: Path) -> None:
    root = lay(
        tmp_path, "P 1/T1.NII.GZ", "P 1/._T1.NII.GZ", "P 1/T1.json", "P 1/dwi.bval", "P 1/.DS_Store", ".DS_Store",
        "__MACOSX/P 1/._T1.nii.gz", "P 1/ROI.mat",
    )  # fmt: skip
    cases = {case.name: case.problem for case in cases_of(root)}
    assert cases["P 1"] is None


def test_other_folders_of_a_subject_are_no_cases(tmp_path: Path) -> None:
    root = lay(tmp_path, "P1/anat/T1.nii", "P1/dwi/dwi.nii", "visit/T1.nii", "P3/scan.nii")
    (root / "P1" / "empty").mkdir()
    assert {case.name: case.problem is None for case in cases_of(root)} == {"P1/anat": True, "visit": True, "P3": False}
    assert [case.name for case in cases_of(root / "P1")] == ["P1/anat"]


def test_two_cases_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    root = lay(tmp_path / "in", "T1/P001.nii", "FLAIR/P001.nii", "P001/P001_T2.nii", "P002/P002_T1.nii")
    cases = {case.name: case.problem for case in cases_of(root)}
    assert cases["P002"] is None and "P001/P001_pred.nii.gz: expected one case with this mask" in str(cases["P001"])


def test_two_copies_of_one_image_are_not_chosen_between(tmp_path: Path) -> None:
    root = lay(tmp_path / "P1", "T1.nii", "T1.nii.gz")
    (case,) = cases_of(root)
    problem = "expected one file per sequence, got T1.nii, T1.nii.gz for T1w: exclude the others with --ignore"
    assert case.problem and problem in case.problem
    (case,) = cases_of(root, Options(ignore=("*.nii",)))
    assert case.problem is None and case.images == {"T1w": root / "T1.nii.gz"}


@pytest.mark.parametrize("patterns", [("*_brain.*",), ("*/*_BRAIN*",), ("P1/T1/T1_brain*", "*FLAIR_brain*")])
def test_names_can_be_passed_over(tmp_path: Path, patterns: tuple[str, ...]) -> None:
    names = ("T1/T1", "T1/T1_brain", "T2_FLAIR/T2_FLAIR", "T2_FLAIR/T2_FLAIR_brain")
    root = lay(tmp_path, *(f"P1/{name}.nii.gz" for name in names))
    assert "got T1.nii.gz, T1_brain.nii.gz for T1w" in str(cases_of(root)[0].problem)
    (case,) = cases_of(root, Options(ignore=patterns))
    assert {key: path.name for key, path in case.images.items()} == {"T1w": "T1.nii.gz", "FLAIR": "T2_FLAIR.nii.gz"}
    bids = lay(tmp_path / "bids", "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_rec-norm_T1w.nii.gz")
    (case,) = cases_of(bids, Options(ignore=("*rec-*",)))
    assert case.problem is None and case.images["T1w"].name == "sub-1_T1w.nii.gz"


# ---- which of several images of a BIDS data set --------------------------------------------------------------------


def filtered(root: Path, content: object) -> Case:
    file = root.parent / "filter.json"
    file.write_text(json.dumps(content))
    (case,) = cases_of(root, Options(bids_filter=file))
    return case


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"t1w": {"reconstruction": "norm"}}, "sub-01_rec-norm_T1w.nii.gz"),
        ({"T1w": {"rec": "norm"}}, "sub-01_rec-norm_T1w.nii.gz"),
        ({"t1w": {"reconstruction": None, "run": None, "ceagent": None}}, "sub-01_T1w.nii.gz"),
        ({"t1w": {"run": 2, "datatype": "anat"}}, "sub-01_run-02_T1w.nii.gz"),
        ({"t1w": {"ceagent": ["gad", "other"]}, "bold": {"task": "rest"}}, "sub-01_ce-gad_T1w.nii.gz"),
    ],
)
def test_a_filter_chooses(tmp_path: Path, content: object, name: str) -> None:
    names = ("sub-01_T1w", "sub-01_rec-norm_T1w", "sub-01_run-02_T1w", "sub-01_ce-gad_T1w", "sub-01_FLAIR")
    root = lay(tmp_path / "in", *(f"sub-01/anat/{name}.nii.gz" for name in names))
    (plain,) = cases_of(root)
    assert plain.problem is not None and "--bids-filter-file FILE" in plain.problem
    case = filtered(root, content)
    assert case.problem is None and case.images["T1w"].name == name and "FLAIR" in case.images


@pytest.mark.parametrize("content", [[], {}, {"t1w": "norm"}, {"t1w": {"flavour": "x"}}, {"bold": {"task": "rest"}}])
def test_a_filter_that_is_none(tmp_path: Path, content: object) -> None:
    with pytest.raises(LayoutError, match=r"filter.json: expected a filter such as"):
        filtered(lay(tmp_path / "in", "sub-01/anat/sub-01_T1w.nii.gz"), content)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["T1w", "desc-preproc_T1w"], "T1w"),
        (["desc-preproc_T1w", "space-MNI152NLin2009cAsym_res-2_desc-preproc_T1w"], "desc-preproc_T1w"),
        (["space-MNI152NLin2009cAsym_T1w", "T1w"], "T1w"),
        (["space-T1w_desc-preproc_T1w", "desc-brain_mask", "label-GM_probseg", "dseg"], "space-T1w_desc-preproc_T1w"),
    ],
)
def test_images_of_bids_derivatives(tmp_path: Path, names: list[str], chosen: str) -> None:
    (case,) = cases_of(lay(tmp_path, *(f"sub-01/anat/sub-01_{name}.nii.gz" for name in names)))
    assert case.problem is None and case.images["T1w"].name == f"sub-01_{chosen}.nii.gz"

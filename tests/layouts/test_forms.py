"""Forms of input: which is recognised, which cases are found, and what each error says.

Layouts look at names only, so the images here are empty files.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from pvs_model import config
from pvs_model.batch import inputs
from pvs_model.errors import LayoutError
from pvs_model.layouts import LAYOUTS, Layout, Options, choose
from pvs_model.types import SEQUENCES, Case


def lay(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def find(root: Path, name: str | None = None, options: Options | None = None) -> list[Case]:
    return choose(root, name, options).find_cases(root)


def images(case: Case) -> dict[str, str]:
    return {sequence: path.name for sequence, path in case.images.items()}


# choose


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["001/001_T1w.nii.gz"], "epvs"),
        (["site/001/001_T1w.nii.gz"], "epvs"),
        (["images/001/001_T1w.nii.gz"], "epvs"),
        (["001/t1.nii.gz"], "epvs"),
        (["001/001_T1w.nii.gz", "MNI152_T1_1mm.nii.gz"], "epvs"),
        (["T1.nii.gz", "old/T1.nii.gz"], "flat"),
        (["T1.nii.gz"], "flat"),
        (["sub-1/anat/sub-1_T1w.nii"], "bids"),
        (["sub-1/ses-2/anat/sub-1_ses-2_flair.nii.gz"], "bids"),
        (["Task1/sub-101/sub-101_space-T1_desc-masked_T2.nii.gz"], "valdo"),
        (["inputs.json"], "grand_challenge"),
        (["images/t2-brain-mri/0a1b.mha"], "grand_challenge"),
    ],
)
def test_the_form_is_recognised(tmp_path: Path, files: list[str], name: str) -> None:
    assert choose(lay(tmp_path, *files)).name == name


def test_the_form_can_be_said(tmp_path: Path) -> None:
    assert choose(lay(tmp_path, "001/001_T1w.nii.gz"), "flat").name == "flat"
    assert list(LAYOUTS) == ["grand_challenge", "valdo", "bids", "epvs", "flat"]
    assert all(issubclass(layout, Layout) for layout in LAYOUTS.values())


def test_choose_refuses(tmp_path: Path) -> None:
    lay(tmp_path / "in", "scan1.nii.gz", "notes.txt")
    with pytest.raises(LayoutError, match=r"in: expected one of .*notes.txt, scan1.nii.gz$"):
        choose(tmp_path / "in")
    (tmp_path / "none").mkdir()
    with pytest.raises(LayoutError, match="got an empty folder"):
        choose(tmp_path / "none")
    with pytest.raises(LayoutError, match=r"layout 'dicom': expected one of grand_challenge, valdo, bids"):
        choose(tmp_path, "dicom")
    with pytest.raises(LayoutError, match="missing: expected an input folder, but it does not exist"):
        choose(tmp_path / "missing")
    with pytest.raises(LayoutError, match="notes.txt: expected an input folder, got a file"):
        choose(tmp_path / "in" / "notes.txt")
    with pytest.raises(LayoutError, match="suffix 'a/b': expected letters"):
        Options(suffix="a/b")


@pytest.mark.parametrize("name", ["grand_challenge", "bids", "epvs", "flat"])
def test_a_form_without_any_case_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(LayoutError, match=f"{tmp_path.name}: expected "):
        find(tmp_path, name)


def test_output_folder(tmp_path: Path) -> None:
    layout = LAYOUTS["flat"]()
    layout.prepare_output(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(LayoutError, match="file: expected a writable output folder"):
        layout.prepare_output(tmp_path / "file")


# epvs


def test_epvs(tmp_path: Path) -> None:
    lay(
        tmp_path,
        "site B/x.1/x.1_T1w.nii.gz", "site B/x.1/x.1_T2w.nii.gz", "site B/x.1/x.1_FLAIR.nii.gz",
        "site B/x.1/x.1_PVS.nii.gz", "site B/x.1/x.1_BG.nii.gz", "site B/x.1/masks/CSO.nii.gz",
        "site B/x.1/readme.txt", "A/Ü/t2-flair.NII", "docs/readme.txt", ".hidden/x_T1.nii",
    )  # fmt: skip
    first, second = find(tmp_path, options=Options(suffix="seg2"))
    assert (first.name, first.output) == ("A/Ü", Path("A/Ü/Ü_seg2.nii.gz"))
    assert images(first) == {"FLAIR": "t2-flair.NII"}
    assert (second.name, second.output) == ("site B/x.1", Path("site B/x.1/x.1_seg2.nii.gz"))
    assert list(second.images) == ["T1w", "T2w", "FLAIR"]
    assert first.problem is None is second.problem


def test_epvs_problems_leave_the_others(tmp_path: Path) -> None:
    lay(tmp_path, "a/a_T1w.nii.gz", "a/a_T1w.nii", "a/a_T2w.nii", "a/a_t2.mha", "b/b_T1w.nii.gz",
        "c/c_PVS.nii.gz", "d/scan.nii.gz")  # fmt: skip
    (tmp_path / "e").mkdir()
    a, b, c, d, e = find(tmp_path)
    assert a.problem == (
        f"{tmp_path}/a: expected one file per sequence, got a_T1w.nii, a_T1w.nii.gz for T1w "
        "and a_T2w.nii, a_t2.mha for T2w: exclude the others with --ignore PATTERN"
    )
    assert b.problem is None and images(b) == {"T1w": "b_T1w.nii.gz"}
    wanted = "expected a T1w, T2w or FLAIR image"
    assert c.problem == f"{tmp_path}/c: {wanted} by its name, got c_PVS.nii.gz"
    assert d.problem == f"{tmp_path}/d: {wanted} by its name, got scan.nii.gz"
    assert e.problem == f"{tmp_path}/e: {wanted}, got an empty folder"
    assert not any(case.images for case in (a, c, d, e))


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    lay(tmp_path / "store", "001_T1w.nii.gz")
    root = tmp_path / "in"
    root.mkdir()
    (root / "001").symlink_to(tmp_path / "store")
    (root / "loop").symlink_to(root)
    (case,) = find(root)
    assert (case.name, case.images["T1w"]) == ("001", root / "001" / "001_T1w.nii.gz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list any folder")
def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    lay(tmp_path, "a/a_T1w.nii.gz")
    lay(tmp_path, "b/b_T1w.nii.gz")
    (tmp_path / "a").chmod(0)
    closed, good = find(tmp_path, "epvs")
    assert closed.problem is not None and "got a folder that cannot be read" in closed.problem
    assert good.problem is None
    (tmp_path / "a").chmod(0o755)


# flat


@pytest.mark.parametrize(
    ("files", "output"),
    [
        (["T1.nii.gz", "t2w.nii", "my_FLAIR.mha"], "case_pred.nii.gz"),
        (["p 7_T1.mha", "p 7_T2.mhd"], "p 7_pred.mha"),
        (["my_FLAIR.mha"], "case_pred.mha"),
        (["T1_orig_with_skull.mgz", "T1_orig_labels.mgz"], "case_pred.nii.gz"),
    ],
)
def test_flat(tmp_path: Path, files: list[str], output: str) -> None:
    (case,) = find(lay(tmp_path / "input", *files))
    assert case.output == Path(output) and case.problem is None
    assert f"{case.name}_pred" == case.output.name.split(".")[0]


@pytest.mark.parametrize("third", ["p3", "flair", "T1-004"])
def test_subjects_of_a_flat_folder_that_are_named_like_sequences(third: str, tmp_path: Path) -> None:
    files = [f"{name}_{sequence}.nii.gz" for name in ("t1", "t2") for sequence in SEQUENCES] + [f"{third}_T1w.nii.gz"]
    cases = find(lay(tmp_path / "input", *files, "t1_T1w_mask.nii.gz", "t1_PVS.nii.gz"))
    assert {case.name: images(case) for case in cases} == {
        **{name: {sequence: f"{name}_{sequence}.nii.gz" for sequence in SEQUENCES} for name in ("t1", "t2")},
        third: {"T1w": f"{third}_T1w.nii.gz"},
    }
    assert all(case.problem is None and case.output == Path(f"{case.name}_pred.nii.gz") for case in cases)
    problems = {case.name: case.problem for case in find(lay(tmp_path / "double", *files, "t1_T1w.nii"))}
    assert "t1_T1w.nii, t1_T1w.nii.gz for T1w" in str(problems.pop("t1")) and set(problems.values()) == {None}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        (
            ["T1_T1w.nii", "T2_T2w.nii", "T2_FLAIR.nii"],
            {"T1w": "T1_T1w.nii", "T2w": "T2_T2w.nii", "FLAIR": "T2_FLAIR.nii"},
        ),
        (
            ["T1_T1w.nii", "T2_to_T1w.nii", "FLAIR_to_T1w.nii"],
            {"T1w": "T1_T1w.nii", "T2w": "T2_to_T1w.nii", "FLAIR": "FLAIR_to_T1w.nii"},
        ),
        (["T1_T2w.nii", "T1_T1w.nii"], {"T1w": "T1_T1w.nii"}),
        (["T2_reg_T1w.nii", "T1_T1w.nii"], {"T1w": "T1_T1w.nii"}),
        (
            ["T2_FLAIR.nii", "T2_T2w.nii", "T1_T1w.nii"],
            {"T1w": "T1_T1w.nii", "T2w": "T2_T2w.nii", "FLAIR": "T2_FLAIR.nii"},
        ),
    ],
)
def test_sequences_of_a_flat_folder_that_could_be_subjects(
    files: list[str], wanted: dict[str, str], tmp_path: Path
) -> None:
    (case,) = find(lay(tmp_path / "input", *files))
    assert (case.name, images(case)) == ("case", wanted)


def test_flat_problems(tmp_path: Path) -> None:
    (case,) = find(lay(tmp_path / "a", "T1.nii", "t1_mprage.nii", "T2.nii"))
    assert case.problem and "got T1.nii, t1_mprage.nii for T1w" in case.problem
    (case,) = find(lay(tmp_path / "b", "scan.nii"), "flat")
    assert case.problem and case.problem.endswith("by its name, got scan.nii")
    (case,) = find(lay(tmp_path / "c", *(f"s{i}.nii" for i in range(10))), "flat")
    assert case.problem and case.problem.endswith("s7.nii and 2 more")


# bids


def test_bids(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "in", "dataset_description.json", "participants.tsv",
        "sub-02/ses-b/anat/sub-02_ses-b_acq-3D_run-1_T2w.nii", "sub-02/ses-b/func/x_bold.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_ce-gad_T1w.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_FLAIR.nii.gz", "sub-01/anat/sub-01_T1w.json",
        "sub-01/anat/sub-01_label-PVS_mask.nii.gz",
        "derivatives/x/sub-03/anat/sub-03_T1w.nii.gz", "sourcedata/sub-04/anat/sub-04_T1w.nii",
    )  # fmt: skip
    layout = choose(root)
    first, second = layout.find_cases(root)
    assert first.output == Path("sub-01/anat/sub-01_space-orig_label-PVS_mask.nii.gz")
    assert images(first) == {"T1w": "sub-01_T1w.nii.gz", "FLAIR": "sub-01_FLAIR.nii.gz"}
    assert second.name == "sub-02_ses-b" and list(second.images) == ["T2w"]
    assert second.output == Path("sub-02/ses-b/anat/sub-02_ses-b_space-orig_label-PVS_mask.nii.gz")

    out = tmp_path / "out"
    layout.prepare_output(out)
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "pvs_model"
    mask = out / first.output
    mask.parent.mkdir(parents=True)
    layout.finish(first, mask, out, {"Threshold": 0.3, "Type": "overruled"})
    sidecar = json.loads(mask.with_name("sub-01_space-orig_label-PVS_mask.json").read_text())
    assert sidecar["Threshold"] == 0.3 and sidecar["Type"] == "ROI"
    anat = "sub-01/anat/sub-01"
    assert sidecar["RawSources"] == [f"{anat}_T1w.nii.gz", f"{anat}_FLAIR.nii.gz"]
    assert sorted(path.suffix for path in mask.parent.iterdir()) == [".json"]


def test_bids_keeps_a_description_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "dataset_description.json").write_text("{}")
    LAYOUTS["bids"]().prepare_output(tmp_path)
    assert (tmp_path / "dataset_description.json").read_text() == "{}"


def test_bids_problems(tmp_path: Path) -> None:
    lay(tmp_path, "sub-1/anat/sub-1_run-1_T1w.nii", "sub-1/anat/sub-1_run-2_T1w.nii",
        "sub-2/anat/sub-2_PDw.nii", "sub-3/anat/sub-3_T1w.nii")  # fmt: skip
    one, two, three = find(tmp_path)
    assert one.problem and "got sub-1_run-1_T1w.nii, sub-1_run-2_T1w.nii for T1w" in one.problem
    assert two.problem and two.problem.endswith("_FLAIR, got sub-2_PDw.nii")
    assert three.problem is None


# grand_challenge


def socket(slug: str, relative_path: str, key: str = "socket", **more: Any) -> dict[str, Any]:
    """An entry as the site writes it, cut to what matters."""
    kind = {"slug": slug, "relative_path": relative_path, "kind": "Image", "super_kind": "Image"}
    return {key: kind, "image": {"name": "scan.mha"}, "file": None, "value": None, **more}


def sockets(root: Path, *content: dict[str, Any]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "inputs.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("key", ["socket", "interface"])
def test_grand_challenge_by_inputs_json(tmp_path: Path, key: str) -> None:
    lay(tmp_path, "images/t1/a.b.mha", "images/t2-brain/u.mha", "images/other/v.mha", "age.json")
    sockets(
        tmp_path,
        socket("t1-weighted-brain-mri", "images/t1", key),
        socket("t2-brain-mri", "images/t2-brain/u.mha", key),
        socket("brain-mask", "images/other", key),
        socket("t1-age", "age.json", key),
    )
    (case,) = find(tmp_path)
    assert images(case) == {"T1w": "a.b.mha", "T2w": "u.mha"} and case.problem is None
    assert case.output == Path("images/perivascular-space-segmentation/u.mha")


def test_grand_challenge_by_folders(tmp_path: Path) -> None:
    lay(tmp_path, "images/flair-brain-mri/a.tif", "images/t1-mri/x.mha", "images/t2-mri/.keep")
    (case,) = find(tmp_path)
    assert images(case) == {"T1w": "x.mha", "FLAIR": "a.tif"} and case.problem is None
    assert case.output.name == "x.mha"


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("interface", [names for n in (1, 2, 3) for names in combinations(("T1w", "T2w", "FLAIR"), n)])
def test_every_subset_of_the_sequences_is_an_interface(
    tmp_path: Path, interface: tuple[str, ...], declared: bool
) -> None:
    """``inputs.json`` as the site writes it now: the sockets of the job's interface, with those that are no images."""
    slugs = {"T1w": "t1-brain-mri", "T2w": "t2-brain-mri", "FLAIR": "flair-brain-mri"}
    lay(tmp_path, *(f"images/{slugs[name]}/{name}.mha" for name in interface), "age-in-months.json")
    if declared:
        age = {"slug": "age-in-months", "relative_path": "age-in-months.json", "super_kind": "Value"}
        entries = [socket(slugs[name], f"images/{slugs[name]}") for name in interface]
        sockets(tmp_path, {"socket": age, "value": 840, "image": None, "file": None}, *entries)
    (case,) = find(tmp_path)
    assert images(case) == {name: f"{name}.mha" for name in interface} and case.problem is None
    first = next(name for name in ("T2w", "T1w", "FLAIR") if name in interface)
    assert case.output == Path(f"images/perivascular-space-segmentation/{first}.mha")


def test_the_interface_is_logged_and_two_sockets_of_a_sequence_are_a_problem(tmp_path: Path, caplog: Any) -> None:
    slugs = ("t1-brain-mri", "skull-stripped-t1-brain-mri", "brain-atlas")
    lay(tmp_path, *(f"images/{slug}/a.mha" for slug in slugs))
    with caplog.at_level("INFO"):
        (case,) = find(sockets(tmp_path, *(socket(slug, f"images/{slug}") for slug in slugs)))
    assert "interface: 'brain-atlas' (unused), 'skull-stripped-t1-brain-mri' (T1w), 't1-brain-mri' (T1w)" in caplog.text
    assert case.problem and case.problem.endswith("for T1w: name the sockets to use (--sockets FILE.json)")


def test_sockets_are_named_by_a_model_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MOUNTED_WEIGHTS", tmp_path)
    assert config.default_sockets() is None
    (tmp_path / "sockets.json").write_text("{}")
    parser = argparse.ArgumentParser()
    inputs.add_arguments(parser, tmp_path)
    assert parser.parse_args([]).sockets == tmp_path / "sockets.json"


def test_grand_challenge_with_own_sockets(tmp_path: Path) -> None:
    lay(tmp_path / "in", "images/structural/a.mha", "images/t2-mri/b.mha")
    file = tmp_path / "sockets.json"
    file.write_text(json.dumps({"inputs": {"structural": "t1w"}, "output": "my-mask"}))
    (case,) = find(tmp_path / "in", options=Options(sockets=file))
    assert images(case) == {"T1w": "a.mha"} and case.output == Path("images/my-mask/a.mha")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "expected a readable JSON file"),
        ("{", "expected JSON, got"),
        ("[1]", 'expected an object with "inputs" and "output", got \\[1\\]'),
        ('{"input": {}}', 'expected only the keys "inputs" and "output", got input'),
        ('{"inputs": {}}', 'expected "inputs" to map slugs to sequences'),
        ('{"inputs": {"a": "DWI"}}', "expected T1w, T2w or FLAIR for the socket 'a', got 'DWI'"),
        ('{"output": "../x"}', 'expected "output" to be a slug'),
    ],
)
def test_an_unusable_sockets_file(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "sockets.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LayoutError, match=f"sockets.json: {words}"):
        choose(lay(tmp_path / "in", "T1.nii"), None, Options(sockets=file))


@pytest.mark.parametrize("path", ["../secret", "images/../../secret", "/etc", "images/x\\..\\y"])
def test_a_path_that_leaves_the_input(tmp_path: Path, path: str) -> None:
    root = sockets(tmp_path / "in", socket("t1-mri", path))
    with pytest.raises(LayoutError, match="inputs.json: expected a path inside the input folder"):
        find(root)


def test_a_link_that_leaves_the_input(tmp_path: Path) -> None:
    lay(tmp_path / "secret", "a.mha")
    root = sockets(tmp_path / "in", socket("t1-mri", "images/t1"))
    (root / "images").mkdir()
    (root / "images" / "t1").symlink_to(tmp_path / "secret")
    with pytest.raises(LayoutError, match="which leads to .*secret"):
        find(root)
    (root / "images" / "t1").unlink()
    (root / "images" / "t1").mkdir()
    (root / "images" / "t1" / "x.mha").symlink_to(tmp_path / "secret" / "a.mha")
    with pytest.raises(LayoutError, match="which leads to .*a.mha"):
        find(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{nope", "expected JSON"),
        ("{}", "expected a list of sockets, got {}"),
        ("[1]", 'expected entry 1 to have a "socket" with "slug" and "relative_path", got 1'),
        ("[]", "expected sockets with T1w, T2w or FLAIR images .*got none"),
    ],
)
def test_an_unusable_inputs_json(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "inputs.json").write_text(text)
    with pytest.raises(LayoutError, match=f"inputs.json: {words}"):
        find(tmp_path)


def test_grand_challenge_problems(tmp_path: Path) -> None:
    root = lay(tmp_path / "a", "images/t1/a.mha", "images/t1/b.mha")
    (case,) = find(sockets(root, socket("t1-mri", "images/t1")))
    assert case.problem and "got a.mha, b.mha for T1w" in case.problem and not case.images
    root = lay(tmp_path / "b", "images/t1/a.mha")
    sockets(root, socket("t1-mri", "images/t1"), socket("t2-mri", "images/t2"))
    (case,) = find(root)
    assert case.problem and "an image in " in case.problem
    assert case.problem.endswith("images/t2 for the socket t2-mri, got none")
    sockets(root, socket("ct", "images/t1"))
    with pytest.raises(LayoutError, match=r"\(--sockets FILE.json names them\), got ct"):
        find(root)


def test_a_dangling_link_is_no_missing_sequence(tmp_path: Path) -> None:
    lay(tmp_path, "T1.nii.gz")
    (tmp_path / "T2.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (case,) = find(tmp_path, "flat")
    assert set(case.images) == {"T1w", "T2w"}  # reading it says that nothing is there

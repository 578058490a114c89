"""Which prediction belongs to which truth: by name, in every form that is written; nothing is read here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvs_model.errors import LayoutError
from pvs_model.evaluation.file_matching import CaseFiles, match_files


def tree(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def paired(pairs: list[CaseFiles], predictions: Path) -> dict[str, str | None]:
    return {p.label: None if p.prediction is None else p.prediction.relative_to(predictions).as_posix() for p in pairs}


FORMS = [
    pytest.param(
        ["a/a_PVS.nii.gz", "b/b_PVS.nii.gz"],
        ["a/a_pred.nii.gz", "b/b_pred.nii.gz"],
        {"a": "a/a_pred.nii.gz", "b": "b/b_pred.nii.gz"},
        id="epvs",
    ),
    pytest.param(
        ["s1/a/PVS.nii.gz", "s2/a/PVS.nii.gz"],
        ["s1/a/a_pred.nii.gz", "s2/a/a_pred.nii.gz"],
        {"s1/a": "s1/a/a_pred.nii.gz", "s2/a": "s2/a/a_pred.nii.gz"},
        id="one name at two sites",
    ),
    pytest.param(
        ["s1/a/a_PVS.nii.gz", "s2/b/b_PVS.nii.gz"],
        ["a_pred.nii.gz", "b.nii"],
        {"s1/a": "a_pred.nii.gz", "s2/b": "b.nii"},
        id="predictions in one folder",
    ),
    pytest.param(
        ["a_PVS.nii.gz", "b_PVS.nii.gz"],
        ["a/anything.nii.gz", "b/output/images/some-slug/0f3a.mha"],
        {"a": "a/anything.nii.gz", "b": "b/output/images/some-slug/0f3a.mha"},
        id="alone in a folder of the case's name",
    ),
    pytest.param(
        ["sub-1/ses-2/anat/sub-1_ses-2_space-orig_label-PVS_mask.nii.gz"],
        ["sub-1/ses-2/anat/sub-1_ses-2_space-orig_label-PVS_mask.nii.gz", "sub-1/ses-2/anat/readme.txt"],
        {"sub-1_ses-2": "sub-1/ses-2/anat/sub-1_ses-2_space-orig_label-PVS_mask.nii.gz"},
        id="bids",
    ),
    pytest.param(["sub-1_PVS.nii.gz"], ["sub-1/anat/sub-1_space-orig_label-PVS_mask.nii.gz"],
                 {"sub-1": "sub-1/anat/sub-1_space-orig_label-PVS_mask.nii.gz"}, id="bids predictions"),
    pytest.param(["x.nii.gz", "y.nii.gz"], ["x.nii.gz", "y.nii.gz"], {"x": "x.nii.gz", "y": "y.nii.gz"}, id="plain"),
    pytest.param(["a_PVS.nii.gz", "ab_PVS.nii.gz"], ["ab_pred.nii.gz"], {"a": None, "ab": "ab_pred.nii.gz"},
                 id="a name that begins another"),
    pytest.param(["Case1_PVS.nii.gz"], ["case1_SEG.nii.gz"], {"Case1": "case1_SEG.nii.gz"}, id="capitals"),
    pytest.param(["a_PVS.nii.gz", "b_PVS.nii.gz"], ["a/b_pred.nii.gz"], {"a": None, "b": "a/b_pred.nii.gz"},
                 id="its own name counts before its folder's"),
    pytest.param(["s1/a_PVS.nii.gz", "s2/a_PVS.nii.gz"], ["s1/a.nii.gz"], {"s1/a": "s1/a.nii.gz", "s2/a": None},
                 id="missing at one of two sites"),
    pytest.param(["x_PVS.nii.gz", "x_seg_PVS.nii.gz"], ["x.nii.gz", "x_seg.nii.gz"],
                 {"x": "x.nii.gz", "x_seg": "x_seg.nii.gz"}, id="a name that is another with an ending"),
    pytest.param(["x_PVS.nii.gz", "x_mask_PVS.nii.gz"], ["x_mask.nii.gz"], {"x": None, "x_mask": "x_mask.nii.gz"},
                 id="one file for two cases"),
    pytest.param(["x_PVS.nii.gz", "X_pred_PVS.nii.gz"], ["x_pred_seg.nii.gz", "x.nii.gz"],
                 {"x": "x.nii.gz", "X_pred": "x_pred_seg.nii.gz"}, id="with an ending of its own"),
    pytest.param(["s1/x_PVS.nii.gz", "s2/x_mask_PVS.nii.gz"], ["s1/x_mask.nii.gz"],
                 {"s1/x": "s1/x_mask.nii.gz", "s2/x_mask": None}, id="the longer name is of another site"),
    pytest.param(["a/a_PVS.nii.gz", "a/b_PVS.nii.gz"], ["a/a_pred.nii.gz", "b_pred.nii.gz"],
                 {"a": "a/a_pred.nii.gz", "a/b": "b_pred.nii.gz"}, id="a folder that is case and site"),
]  # fmt: skip


@pytest.mark.parametrize(("truths", "guesses", "wanted"), FORMS)
def test_forms(truths: list[str], guesses: list[str], wanted: dict[str, str | None], tmp_path: Path) -> None:
    predictions = tree(tmp_path / "pred", *guesses)
    pairs, extra = match_files(tree(tmp_path / "truth", *truths), predictions)
    assert paired(pairs, predictions) == wanted
    assert extra == [] and all(pair.problem is None for pair in pairs)


def test_images_and_region_masks_beside_the_truth_are_no_truths(tmp_path: Path) -> None:
    names = [f"a/a_{part}.nii.gz" for part in ("PVS", "BG", "CSO", "T1w", "T2w", "FLAIR")]
    truth = tree(tmp_path / "truth", *names)
    (pair,), _ = match_files(truth, tree(tmp_path / "pred", "a.nii.gz"))
    assert pair.reference.name == "a_PVS.nii.gz"
    assert {k: [p.name for p in v] for k, v in pair.regions.items()} == {"CSO": ["a_CSO.nii.gz"], "BG": ["a_BG.nii.gz"]}
    assert {k: p.name for k, p in pair.images.items()} == {k: f"a_{k}.nii.gz" for k in ("T1w", "T2w", "FLAIR")}


def test_region_masks_of_a_flat_folder_are_those_of_the_case(tmp_path: Path) -> None:
    truth = tree(tmp_path / "truth", "a_PVS.nii.gz", "b_PVS.nii.gz", "a_BG.nii.gz", "BG.nii.gz")
    pairs, _ = match_files(truth, tree(tmp_path / "pred", "a.nii.gz"))
    assert [list(pair.regions) for pair in pairs] == [["BG"], []]  # whose the bare BG is, nobody can say


@pytest.mark.parametrize("folder", ["s/a", "a", "."])
def test_region_masks_elsewhere_and_the_challenges_atlas_names(folder: str, tmp_path: Path) -> None:
    truth = tree(tmp_path / "truth", "s/a/a_PVS.nii.gz", "s/a/a_BG.nii.gz")
    bare = "" if folder != "." else "a_"
    names = [f"{folder}/{bare}{part}_native_space.nii.gz" for part in ("cso", "lbg", "rbg")]
    atlas = tree(tmp_path / "atlas", *names)
    (pair,), _ = match_files(truth, tree(tmp_path / "pred", "a.nii.gz"), atlas)
    assert [len(pair.regions[name]) for name in ("CSO", "BG")] == [1, 2]
    assert all(path.is_relative_to(atlas) for paths in pair.regions.values() for path in paths)


def test_two_predictions_of_one_case_are_not_chosen_between(tmp_path: Path) -> None:
    truth = tree(tmp_path / "truth", "a_PVS.nii.gz")
    (pair,), extra = match_files(truth, tree(tmp_path / "pred", "x/a.nii.gz", "y/a_pred.nii.gz"))
    assert pair.prediction is None and extra == []
    assert pair.problem is not None and "expected one prediction for a, got a.nii.gz, a_pred.nii.gz" in pair.problem


@pytest.mark.parametrize("path", ["s2/a/a_pred.nii.gz", "s2/a_pred.nii.gz", "s2/a/any.nii.gz", "s2/runs/a/a.mha"])
def test_a_mask_of_another_site_is_not_taken_for_a_missing_one(path: str, tmp_path: Path) -> None:
    for truths in (["s1/a/a_PVS.nii.gz", "s2/b/b_PVS.nii.gz"], ["a/a_PVS.nii.gz", "s2/b_PVS.nii.gz"]):
        truth = tree(tmp_path / truths[0][:2], *truths)
        predictions = tree(tmp_path / "pred", path, "s2/b/b_pred.nii.gz")
        pairs, extra = match_files(truth, predictions)
        assert list(paired(pairs, predictions).values()) == [None, "s2/b/b_pred.nii.gz"]
        assert extra == [predictions / path]


def test_predictions_without_truth_are_told(tmp_path: Path) -> None:
    predictions = tree(tmp_path / "pred", "a.nii.gz", "zz.nii.gz")
    _, extra = match_files(tree(tmp_path / "truth", "a_PVS.nii.gz"), predictions)
    assert extra == [predictions / "zz.nii.gz"]


def test_a_suffix_of_ones_own(tmp_path: Path) -> None:
    truth, predictions = tree(tmp_path / "truth", "a_PVS.nii.gz"), tree(tmp_path / "pred", "a_mine.nii.gz")
    assert paired(match_files(truth, predictions)[0], predictions) == {"a": None}
    assert paired(match_files(truth, predictions, suffix="mine")[0], predictions) == {"a": "a_mine.nii.gz"}


@pytest.mark.parametrize(
    ("truths", "guesses", "said"),
    [
        ([], ["a.nii.gz"], r"truth: expected reference masks .* got no image"),
        (["a_PVS.nii.gz"], [], r"pred: expected masks to score, got no image"),
    ],
)
def test_what_cannot_be_paired_is_told(truths: list[str], guesses: list[str], said: str, tmp_path: Path) -> None:
    for name in ("truth", "pred"):
        (tmp_path / name).mkdir()
    with pytest.raises(LayoutError, match=said):
        match_files(tree(tmp_path / "truth", *truths), tree(tmp_path / "pred", *guesses))
    with pytest.raises(LayoutError, match=r"nowhere: expected a folder, got no such folder"):
        match_files(tmp_path / "nowhere", tmp_path / "pred")


# ---- runs, raters and other cases with several masks ---------------------------------------------------------------

BIDS = "sub-1/anat/sub-1{}_space-orig_label-PVS_mask.nii.gz"


def test_runs_are_cases_of_their_own(tmp_path: Path) -> None:
    names = [BIDS.format(run) for run in ("_run-1", "_run-2")]
    predictions = tree(tmp_path / "pred", *names)
    pairs, extra = match_files(tree(tmp_path / "truth", *names), predictions)
    assert paired(pairs, predictions) == {"sub-1_run-1": names[0], "sub-1_run-2": names[1]} and not extra


def test_a_prediction_without_a_run_is_of_the_only_one(tmp_path: Path) -> None:
    predictions = tree(tmp_path / "pred", BIDS.format(""), "sub-2_pred.nii.gz")
    truth = tree(tmp_path / "truth", BIDS.format("_run-2"), "sub-2_PVS.nii.gz")
    pairs, extra = match_files(truth, predictions)
    assert paired(pairs, predictions) == {"sub-1_run-2": BIDS.format(""), "sub-2": "sub-2_pred.nii.gz"} and not extra


def test_a_prediction_of_one_run_is_of_no_other(tmp_path: Path) -> None:
    predictions = tree(tmp_path / "pred", BIDS.format("_run-1"), "sub-2/anat/sub-2_run-1_label-PVS_mask.nii.gz")
    pairs, extra = match_files(tree(tmp_path / "truth", BIDS.format("_run-2"), "sub-2_PVS.nii.gz"), predictions)
    assert paired(pairs, predictions) == {
        "sub-1_run-2": None, "sub-2": "sub-2/anat/sub-2_run-1_label-PVS_mask.nii.gz",
    }  # fmt: skip
    assert extra == [predictions / BIDS.format("_run-1")]


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize(
    "files",
    [
        ["a/a_PVS.nii.gz", "a/a_pred.nii.gz", "b/b_PVS.nii.gz"],
        ["a_PVS.nii.gz", "a_pred.nii.gz", "b_PVS.nii.gz", "b_BG.nii.gz", "b_IGNORE.nii.gz"],
        ["a/PVS.nii.gz", "a/pred/a_pred.nii.gz", "b/PVS.nii.gz", "b/BG.nii.gz", "atlas/b/CSO.nii.gz"],
        ["a/a_PVS.nii.gz", "a/a_mask.nii.gz", "b/b_PVS.nii.gz", "b_IGNORE_PVS.nii.gz"],
    ],
)
def test_files_of_the_reference_are_no_predictions(files: list[str], links: bool, tmp_path: Path) -> None:
    """Predictions in the folder of the references; b has none."""
    truth = predictions = tree(tmp_path / "truth", *files)
    if links:
        (tmp_path / "pred").symlink_to("truth")
        predictions = tmp_path / "pred"
    pairs, _ = match_files(truth, predictions)
    (prediction,) = [name for name in files if "pred" in name or "mask" in name]
    matched = paired([pair for pair in pairs if pair.case in "ab"], predictions)
    assert matched == {"a": prediction, "b": None} and all(pair.problem is None for pair in pairs)


def test_a_link_to_the_reference_is_a_prediction(tmp_path: Path) -> None:
    truth, predictions = tree(tmp_path / "truth", "a_PVS.nii.gz"), tmp_path / "pred"
    predictions.mkdir()
    (predictions / "a_pred.nii.gz").symlink_to(truth / "a_PVS.nii.gz")
    assert paired(match_files(truth, predictions)[0], predictions) == {"a": "a_pred.nii.gz"}


def test_masks_of_other_labels_are_no_predictions(tmp_path: Path) -> None:
    """The output of the BIDS App; of sub-2 the PVS are missing, of sub-3 they are in capitals of another kind."""
    others = ["sub-{0}/anat/sub-{0}_space-orig_label-brain_mask.nii.gz", "sub-{0}/anat/sub-{0}_seg-regions_dseg.nii.gz"]
    names = [BIDS.format(""), "sub-3/anat/sub-3_label-pvs_mask.nii.gz"]
    names += [other.format(subject) for subject in "123" for other in others]
    predictions = tree(tmp_path / "pred", *names, "sub-4/anat/sub-4_label-brain_mask.nii.gz")
    truth = tree(tmp_path / "truth", *(f"sub-{subject}_PVS.nii.gz" for subject in "1234"))
    pairs, extra = match_files(truth, predictions)
    assert paired(pairs, predictions) == {"sub-1": names[0], "sub-2": None, "sub-3": names[1], "sub-4": None}
    assert all(pair.problem is None for pair in pairs) and not any("brain" in path.name for path in extra)


@pytest.mark.parametrize(
    ("truths", "prediction"),
    [
        ([BIDS.format("_run-1"), BIDS.format("_run-2")], BIDS.format("")),
        (["x/x_rater1_PVS.nii.gz", "x/x_rater2_PVS.nii.gz"], "x/x_pred.nii.gz"),
        (["x_PVS.nii.gz", "x_PVS.mha"], "x.nii.gz"),
        (["x/x_PVS.nii.gz", "x/PVS.nii.gz"], "x/x_pred.nii.gz"),
        (["sub-1_desc-a_label-PVS_mask.nii.gz", "sub-1_desc-b_label-PVS_mask.nii.gz"], BIDS.format("")),
    ],
)
def test_a_case_of_two_truths_is_named_and_the_others_are_paired(
    truths: list[str], prediction: str, tmp_path: Path
) -> None:
    truth = tree(tmp_path / "truth", *truths, "good/good_PVS.nii.gz")
    predictions = tree(tmp_path / "pred", prediction, "good/good_pred.nii.gz")
    pairs, extra = match_files(truth, predictions)
    good = [pair for pair in pairs if pair.case == "good"]
    assert good[0].prediction == predictions / "good/good_pred.nii.gz" and good[0].data_error is None and not extra
    others = [pair for pair in pairs if pair.case != "good"]
    assert others and all(
        pair.data_error is not None and "expected one reference mask" in pair.data_error for pair in others
    )

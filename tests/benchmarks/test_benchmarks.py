"""Benchmarks: labelled cases, scores and tables, speed and memory, and where clusters lie in unlabelled scans."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

import benchmarks.cases
from benchmarks import calibrate
from benchmarks.accuracy import with_sequences
from benchmarks.cases import (
    box_around,
    load_cases,
    mask_of,
    mean,
    parse_sets,
    score,
    score_regions,
    table_header,
    table_row,
    write_json,
)
from benchmarks.specificity import PLACES, centres, count_by_place, find_scans, places_of
from benchmarks.speed import ROOT, STAGES, measure, summary, weights_with
from pvs_model.anatomy.regions import Anatomy as Regions
from pvs_model.config import shipped_weights
from pvs_model.datasets.simulated_cases import write_case
from pvs_model.errors import VolumeError
from pvs_model.inference.weights import Weights
from pvs_model.simulation.head import HeadModel


@pytest.fixture(scope="module")
def labelled(anatomy: HeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    write_case(folder, "one", anatomy, 3, (1.0, 1.0, 1.0))
    return folder


def test_labelled_cases_have_reference_masks_and_regions(labelled: Path) -> None:
    (case,) = load_cases(labelled)
    assert case.name == "one" and set(case.volumes) == set(case.sequences) == {"T1w", "T2w", "FLAIR"}
    assert case.thickness_mm == pytest.approx(1.0) and case.voxel_mm3 == pytest.approx(1.0)
    assert case.reference.shape == case.prepared.grid.shape and case.reference.any()
    assert not (case.regions["BG"] & case.regions["CSO"]).any()
    assert case.regions["brain"].all() and not np.array_equal(case.within("BG"), case.reference)
    assert np.array_equal(case.within("BG"), case.reference & case.regions["BG"])


def test_a_case_without_a_detected_brain_is_scored_without_regions(
    labelled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise VolumeError("no brain was detected")

    monkeypatch.setattr(benchmarks.cases, "estimate_anatomy", fail)
    (case,) = load_cases(labelled, anatomy_weights=shipped_weights())
    assert case.prepared.anatomy is None and "one: no regions: no brain was detected" in capsys.readouterr().err


def test_a_cropped_case_is_scored_within_a_box(labelled: Path) -> None:
    (whole,), (cropped,) = load_cases(labelled), load_cases(labelled, crop_mm=20.0)
    box = box_around(whole.regions["BG"], (1.0, 1.0, 1.0), 20.0)
    assert np.array_equal(cropped.regions["brain"], box) and box.sum() == 20**3
    assert np.array_equal(cropped.reference, whole.reference & box)
    assert np.array_equal(cropped.prepared.foreground, whole.prepared.foreground & box)
    mask = mask_of(cropped.prepared, np.ones(box.shape, np.float32), Weights(shipped_weights()).ensemble("3d"))
    assert np.array_equal(mask, cropped.prepared.foreground)
    assert list(score_regions(cropped, mask)) == ["CSO", "BG", "brain"]


def test_removed_sequences_are_zero_for_networks_and_postprocessing(labelled: Path) -> None:
    (case,) = load_cases(labelled)
    reduced = with_sequences(case, ["T2w"])
    assert reduced.sequences == ("T2w",) and not reduced.prepared.image[[0, 2]].any()
    assert np.array_equal(reduced.prepared.image[1], case.prepared.image[1]) and len(case.sequences) > 1


def test_box_around_a_region() -> None:
    region = np.zeros((20, 20, 10), bool)
    region[9:12, 4:7, 5] = True
    box = box_around(region, (1.0, 2.0, 4.0), 8.0)
    places = [(int(axis.min()), int(axis.max())) for axis in np.nonzero(box)]
    assert places == [(6, 13), (3, 6), (4, 5)]  # 8 voxels around 10, 4 around 5, 2 around 5
    assert box_around(region, (1.0, 1.0, 1.0), 0.0).all()
    assert box_around(region & False, (1.0, 1.0, 1.0), 8.0).all()


def test_a_case_without_a_reference_mask_is_named(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    (copied / "one" / "one_BG.nii.gz").unlink()
    with pytest.raises(VolumeError, match="_BG.nii.gz beside its images"):
        list(load_cases(copied))


def test_an_empty_reference_mask_is_scored(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    path = copied / "one" / "one_PVS.nii.gz"
    stored = nibabel.load(path)
    empty = np.zeros(stored.shape, np.uint8)  # type: ignore[attr-defined]
    nibabel.save(nibabel.Nifti1Image(empty, stored.affine), path)  # type: ignore[attr-defined]
    (case,) = load_cases(copied)
    prediction = case.reference.copy()
    prediction[5, 5, 5] = True
    assert not case.reference.any()
    assert score(prediction, case.reference)["precision"] == 0 and score(prediction, case.reference)["recall"] is None


def test_a_reference_mask_on_another_grid_is_rejected(labelled: Path, tmp_path: Path) -> None:
    copied = tmp_path / "set"
    shutil.copytree(labelled, copied)
    path = copied / "one" / "one_PVS.nii.gz"
    stored = nibabel.load(path)
    moved = stored.affine.copy()  # type: ignore[attr-defined]
    moved[0, 3] += 5  # the same shape, 5 mm away
    nibabel.save(nibabel.Nifti1Image(np.asarray(stored.dataobj), moved), path)  # type: ignore[attr-defined]
    with pytest.raises(VolumeError, match="one_PVS.nii.gz: expected the grid of"):
        list(load_cases(copied))


def test_a_table_row_has_the_means_of_existing_values() -> None:
    mask, empty = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = True
    line = table_row(("set", "CSO"), [score(mask, mask), score(empty, empty)])  # the second has no value at all
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["set", "CSO", "1.000", "0.000", "1.000", "1.000", "1.000", "1.000"]
    assert len(table_header("set", "region").splitlines()[0].split("|")) == len(line.split("|"))
    assert mean([1.0, math.nan, 3.0]) == 2 and mean([math.nan, None]) is None


def test_sets_have_names_and_json_has_no_nan(tmp_path: Path) -> None:
    assert parse_sets(["a=/x/y", "/x/z"]) == {"a": Path("/x/y"), "z": Path("/x/z")}
    write_json(tmp_path / "out.json", [{"value": math.nan}])
    assert json.loads((tmp_path / "out.json").read_text()) == [{"value": None}]


def test_runs_are_summarised_by_medians_and_by_ratios_within_rounds() -> None:
    def runs(*totals: float) -> list[dict[str, float | str]]:
        return [dict.fromkeys(STAGES, 0.0) | {"backend": "3d", "total": t, "cpu": t, "peak_mib": 100.0} for t in totals]

    # A machine that becomes slower affects both: 4 / 2, 8 / 4 and 30 / 10, while the medians' ratio is 8 / 4.
    result = summary(runs(4.0, 8.0, 30.0), runs(2.0, 4.0, 10.0))
    assert result["total"] == 8.0 and result["ratio"] == 2.0 and result["totals"] == [4.0, 8.0, 30.0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_with_the_cases(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, workers: int
) -> None:
    """Images and features of one of these cases take about 1 MiB, so 60 that stay in memory would be noticed."""
    images = write_body(tmp_path / "image_{}.nii.gz", spacing_mm=(1.3, 1.3, 1.3))
    peaks = []
    for count in (10, 70):
        for number in range(count):
            for sequence, path in images.items():
                link = tmp_path / str(count) / f"case{number}" / f"case{number}_{sequence}.nii.gz"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
        report = ["--report", str(tmp_path / f"report{count}"), "--workers", str(workers)]
        options = ["--device", "cpu", "--weights", str(weights), *report]
        peaks.append(float(measure(tmp_path / str(count), options)["peak_mib"]))
    assert peaks[1] < peaks[0] + 30, peaks


def test_weights_with_copies_of_a_member(tmp_path: Path) -> None:
    manifest = json.loads((weights_with(ROOT / "weights", tmp_path, 5) / "MANIFEST.json").read_text())
    assert {len(ensemble["members"]) for ensemble in manifest["ensembles"].values()} == {5}


def test_clusters_are_counted_at_their_centres() -> None:
    places = np.full((10, 10, 10), PLACES.index("outside"), np.uint8)  # voxels of 1 x 1 x 2 mm
    places[:5] = PLACES.index("deep")  # 500 voxels, 1 cm3
    places[5:7] = PLACES.index("cortex")  # 200 voxels, 0.4 cm3
    mask = np.zeros(places.shape, np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[3, 3, 3] = 1  # one cluster: corners touch
    mask[3:7, 8, 8] = 1  # centroid 4.5: the first of two nearest voxels, which is deep
    mask[4:7, 1, 8] = 1  # most of it is cortex, and so is its centre
    mask[9, 9, 0] = 1
    assert centres(mask, (1.0, 1.0, 2.0)).tolist() == [[2, 2, 2], [4, 8, 8], [5, 1, 8], [9, 9, 0]]
    values = count_by_place(mask, places, (1.0, 1.0, 2.0))
    assert values["clusters"] == 4
    assert [values[name] for name in PLACES] == [2 / 4, 1 / 4, 0, 0, 1 / 4, 0]
    assert values["per cm3 deep"] == pytest.approx(2 / 1.0) and values["per cm3 cortex"] == pytest.approx(1 / 0.4)


def test_a_ring_has_its_centre_on_itself_and_an_empty_mask_no_shares() -> None:
    places = np.full((5, 5, 1), PLACES.index("outside"), np.uint8)
    ring = np.ones((5, 5, 1), bool)
    ring[1:4, 1:4] = False
    assert centres(ring, (1.0, 1.0, 1.0)).tolist() == [[0, 2, 0]]
    values = count_by_place(~places.astype(bool), places, (1.0, 1.0, 1.0))
    assert values["clusters"] == 0 and values["deep"] is None and values["per cm3 deep"] is None


def test_dura_is_a_band_around_the_intracranial_surface() -> None:
    line = [0] * 6 + [24] * 5 + [3, 2, 2, 4, 10, 8, 16]  # background, CSF, cortex, white matter, ventricle, ...
    labels = np.array(line, np.uint8)[:, None, None]
    places = places_of(Regions(labels, labels % 24 > 0), (1.0, 1.0, 1.0))
    expected = ["outside"] * 3 + ["dura"] * 6 + ["CSF"] * 2
    expected += ["cortex", "deep", "deep", "CSF", "deep", "cerebellum + brainstem", "cerebellum + brainstem"]
    assert [PLACES[index] for index in places[:, 0, 0]] == expected


def test_scans_of_a_folder_are_grouped_by_the_beginning_of_their_names(tmp_path: Path) -> None:
    names = ("visits/a_T1w.nii", "visits/a_T2w.nii", "visits/b_T2w.nii", "single/T2_1mm.nii", "single/T2_old.mgz")
    for name in (*names, "single/T2_labels.nii", "patient/T1.nii", "patient/FLAIR.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = {
        "patient": {"T1w", "FLAIR"},
        "visits/a": {"T1w", "T2w"},
        "visits/b": {"T2w"},
        "T2_1mm": {"T2w"},
        "T2_old": {"T2w"},
    }
    # Named by itself, a folder may hold several subjects; below another it is one subject's, else each image is one.
    apart = [case for folder in ("patient", "single") for case in find_scans(tmp_path / folder)]
    assert {case.name: set(case.images) for case in apart} == {k: v for k, v in expected.items() if "/" not in k}
    visits = {case.name: set(case.images) for case in find_scans(tmp_path / "visits")}
    assert visits == {k: v for k, v in expected.items() if "/" in k}
    names_of_all = {case.name for case in find_scans(tmp_path)}
    assert names_of_all == {"patient", "T2_1mm", "T2_old", "a_T1w", "a_T2w", "b_T2w"}
    (unknown,) = find_scans(tmp_path / "single" / "T2_labels.nii")
    assert unknown.problem is not None and not unknown.images


def test_reliability_bins_by_hand(tmp_path: Path) -> None:
    probability = np.array([0.05, 0.32, 0.38, 0.999, 1.0], np.float32)
    count, total, labelled = calibrate.count_bins(probability, np.array([False, True, False, True, True]))
    assert count[[0, 3, 9]].tolist() == [1, 2, 2] and count.sum() == 5
    assert total[3] == pytest.approx(0.7) and labelled[[0, 3, 9]].tolist() == [0, 1, 2]
    calibrate.draw_reliability(tmp_path / "r.png", {"thin": np.stack([count * 20, total * 20, labelled * 20])})
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"

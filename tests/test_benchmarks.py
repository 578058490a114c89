"""What the benchmarks of accuracy share: finding labelled cases, and averaging honestly; and that of many cases."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from benchmarks import many
from benchmarks.cases import cases_of, header, mean, measured, row, sets_of, write_json
from benchmarks.compare import compared
from benchmarks.compare import read as read_benchmark
from benchmarks.frangi import vesselness
from benchmarks.run import STAGES, summary, weights_with
from benchmarks.specificity import PLACES, centres, counted, places_of
from benchmarks.specificity import cases_of as scans_of
from benchmarks.windows import gflop
from pvs_model.anatomy.regions import Anatomy as Regions
from pvs_model.errors import PVSError, VolumeError
from pvs_model.layouts import choose
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


# ---- many cases ----------------------------------------------------------------------------------------------------


def test_many_cases_are_links_to_a_few(labelled: Path, tmp_path: Path) -> None:
    many.linked(labelled, tmp_path / "in", 3)
    found = choose(tmp_path / "in").find_cases(tmp_path / "in")
    assert [case.name for case in found] == ["case0000", "case0001", "case0002"]
    assert all(set(case.images) == {"T1w", "T2w", "FLAIR"} and case.problem is None for case in found)


def test_ratios_of_many_cases_are_taken_within_a_round() -> None:
    # The second round was twice as slow for both; memory climbs by 1 MiB per case, in the first half by 100.
    climbing = (0.0, 100.0, 200.0, 201.0, 202.0, 203.0)
    made = [
        many.Run(workers, 6, seconds, 2 * seconds, climbing, 300.0)
        for workers, seconds in ((0, 30.0), (2, 20.0), (0, 60.0), (2, 40.0), (0, 30.0), (2, 24.0))
    ]
    alone, together = many.summary(made)
    assert (alone["cases_per_minute"], alone["times_as_fast"], alone["workers"]) == (12.0, 1.0, 0)
    assert (together["cases_per_minute"], together["times_as_fast"], together["cpu_ratio"]) == (15.0, 1.5, 0.667)
    assert alone["slope_mib_per_100"] == 100.0 and alone["max_resident_mib"] == 203.0


def measured_cases(write_body: Callable[..., dict[str, Path]], folder: Path, count: int) -> Path:
    write_body(folder / "few" / "a" / "a_{}.nii.gz", ("T2w",), spacing_mm=(1.3, 1.3, 1.3))
    write_body(folder / "few" / "b" / "b_{}.nii.gz", spacing_mm=(1.3, 1.3, 4.0))
    many.linked(folder / "few", folder / "in", count)
    return folder / "in"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_many_cases_are_measured(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_cases(write_body, tmp_path, 0)
    given = ["--source", str(tmp_path / "few"), "--cases", "4", "--workers", "0", "1", "--repeats", "1"]
    many.main([*given, "--json", str(tmp_path / "out.json"), "--", "--device", "cpu", "--weights", str(weights)])
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["workers"] for row in found["results"]] == [0, 1] and found["results"][0]["times_as_fast"] == 1
    assert all(len(run["resident_mib"]) == 4 and 50 < run["resident_mib"][0] < run["peak_mib"] for run in found["runs"])
    assert "| workers | cases per minute |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_with_the_cases(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path, workers: int
) -> None:
    """Of 200: one case of these is a MiB in memory, so a hundred that were kept would show."""
    source = measured_cases(write_body, tmp_path, 200)
    run = many.measure(source, workers, ["--device", "cpu", "--weights", str(weights), "--report", str(tmp_path / "r")])
    assert run.cases == 200 and run.slope_mib < 15, run


def test_two_files_are_compared_figure_by_figure(tmp_path: Path) -> None:
    rows = {"1 mm": {"how": "3d", "total": 20.0, "peak_mib": 1000}, "only before": {"total": 1.0}}
    before = {"machine": {"cores": 2}, "results": rows}
    after = {"machine": {"cores": 2}, "results": {"1 mm": {"how": "3d", "total": 5.0, "peak_mib": 1500}}}
    assert compared(before, after) == [
        ("1 mm", "total", 20.0, 5.0, 0.25),
        ("1 mm", "peak_mib", 1000.0, 1500.0, 1.5),
    ]
    path = tmp_path / "no.json"
    path.write_text("[]")
    with pytest.raises(PVSError, match=r"no\.json: expected the JSON file of a benchmark"):
        read_benchmark(path)


def test_runs_are_summed_up_by_medians_and_by_ratios_of_their_own_round() -> None:
    def runs(*totals: float) -> list[dict[str, float | str]]:
        return [dict.fromkeys(STAGES, 0.0) | {"how": "3d", "total": t, "peak_mib": 100.0} for t in totals]

    # A machine that slows down slows both: 4 / 2, 8 / 4 and 30 / 10, while the medians' ratio is 8 / 4.
    found = summary(runs(4.0, 8.0, 30.0), runs(2.0, 4.0, 10.0))
    assert found["total"] == 8.0 and found["ratio"] == 2.0 and found["totals"] == [4.0, 8.0, 30.0]


def test_weights_of_so_many_members(tmp_path: Path) -> None:
    manifest = json.loads((weights_with(tmp_path, 5) / "MANIFEST.json").read_text())
    assert {len(ensemble["members"]) for ensemble in manifest["ensembles"].values()} == {5}


def test_flops_are_counted_as_two_per_multiplication() -> None:
    class Line(torch.nn.Module):
        def forward(self, windows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return windows @ words

    # 3 x 4 times 4 x 5: 60 multiplications and as many additions.
    assert gflop(Line(), torch.ones(3, 4), torch.ones(4, 5)) == pytest.approx(120e-9)  # type: ignore[arg-type]


def test_clusters_are_counted_where_their_centres_lie() -> None:
    places = np.full((10, 10, 10), PLACES.index("outside"), np.uint8)  # voxels of 1 x 1 x 2 mm
    places[:5] = PLACES.index("deep")  # 500 voxels, 1 cm3
    places[5:7] = PLACES.index("cortex")  # 200 voxels, 0.4 cm3
    mask = np.zeros(places.shape, np.uint8)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[3, 3, 3] = 1  # one cluster: corners touch
    mask[3:7, 8, 8] = 1  # centroid 4.5: the first of two nearest voxels, which is deep
    mask[4:7, 1, 8] = 1  # most of it is cortex, and so is its centre
    mask[9, 9, 0] = 1
    assert centres(mask, (1.0, 1.0, 2.0)).tolist() == [[2, 2, 2], [4, 8, 8], [5, 1, 8], [9, 9, 0]]
    values = counted(mask, places, (1.0, 1.0, 2.0))
    assert values["clusters"] == 4
    assert [values[name] for name in PLACES] == [2 / 4, 1 / 4, 0, 0, 1 / 4, 0]
    assert values["per cm3 deep"] == pytest.approx(2 / 1.0) and values["per cm3 cortex"] == pytest.approx(1 / 0.4)


def test_a_ring_has_its_centre_on_itself_and_an_empty_mask_no_shares() -> None:
    places = np.full((5, 5, 1), PLACES.index("outside"), np.uint8)
    ring = np.ones((5, 5, 1), bool)
    ring[1:4, 1:4] = False
    assert centres(ring, (1.0, 1.0, 1.0)).tolist() == [[0, 2, 0]]
    values = counted(~places.astype(bool), places, (1.0, 1.0, 1.0))
    assert values["clusters"] == 0 and values["deep"] is None and values["per cm3 deep"] is None


def test_dura_is_what_lies_about_the_intracranial_surface() -> None:
    line = [0] * 6 + [24] * 5 + [3, 2, 2, 4, 10, 8, 16]  # background, CSF, cortex, white matter, ventricle, ...
    labels = np.array(line, np.uint8)[:, None, None]
    places = places_of(Regions(labels, labels % 24 > 0), (1.0, 1.0, 1.0))
    expected = ["outside"] * 3 + ["dura"] * 6 + ["CSF"] * 2
    expected += ["cortex", "deep", "deep", "CSF", "deep", "cerebellum + brainstem", "cerebellum + brainstem"]
    assert [PLACES[index] for index in places[:, 0, 0]] == expected


def test_scans_of_a_folder_are_told_apart_by_how_their_names_begin(tmp_path: Path) -> None:
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
    apart = [case for folder in ("patient", "single") for case in scans_of(tmp_path / folder)]
    assert {case.name: set(case.images) for case in apart} == {k: v for k, v in expected.items() if "/" not in k}
    visits = {case.name: set(case.images) for case in scans_of(tmp_path / "visits")}
    assert visits == {k: v for k, v in expected.items() if "/" in k}
    names_of_all = {case.name for case in scans_of(tmp_path)}
    assert names_of_all == {"patient", "T2_1mm", "T2_old", "a_T1w", "a_T2w", "b_T2w"}
    (unknown,) = scans_of(tmp_path / "single" / "T2_labels.nii")
    assert unknown.problem is not None and not unknown.images

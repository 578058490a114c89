"""Grand-challenge's evaluation: predictions.json and a folder of truth in, metrics.json out."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pvs_model.errors import LayoutError
from pvs_model.evaluation.grand_challenge import evaluate_jobs, evaluate_submission
from pvs_model.layouts.grand_challenge import OUTPUT_SLUG, Sockets
from tests import processes

SHAPE = (6, 7, 8)


def save(path: Path, *voxels: tuple[int, int, int], shape: tuple[int, int, int] = SHAPE) -> None:
    """A mask of (x, y, z), True at the voxels."""
    mask = np.zeros(shape, np.uint8)
    for voxel in voxels:
        mask[voxel] = 1
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(mask.transpose(2, 1, 0)), str(path))


def job(pk: str, case: str, **more: Any) -> dict[str, Any]:
    """An entry of predictions.json as the site writes it."""
    return {
        "pk": pk,
        "inputs": [
            {"socket": {"slug": slug, "relative_path": f"images/{slug}"}, "image": {"name": f"{case}_{end}.mha"}}
            for slug, end in (("t1-brain-mri", "T1w"), ("t2-brain-mri", "T2w"))
        ],
        "outputs": [
            {"socket": {"slug": OUTPUT_SLUG, "relative_path": f"images/{OUTPUT_SLUG}"}, "image": {"name": "x.mha"}}
        ],
        "status": "Succeeded",
        **more,
    }


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Four cases; jobs in no order: c2 half right, c1 perfect, c3 failed; c4 has no job."""
    for case in ("c1", "c2", "c3", "c4"):
        save(tmp_path / "truth" / case / f"{case}_PVS.mha", (1, 1, 1), (4, 4, 4))
        save(tmp_path / "truth" / case / f"{case}_CSO.mha", *np.ndindex((3, 7, 8)))
        save(tmp_path / "truth" / case / f"{case}_BG.mha", *((x + 3, y, z) for x, y, z in np.ndindex((3, 7, 8))))
    save(tmp_path / "in" / "p2" / "output" / "images" / OUTPUT_SLUG / "f00.mha", (1, 1, 1), (4, 1, 1))
    save(tmp_path / "in" / "p1" / "output" / "images" / OUTPUT_SLUG / "f01.mha", (1, 1, 1), (4, 4, 4))
    list_jobs(tmp_path, [job("p2", "c2"), job("p1", "c1"), job("p3", "c3", status="Failed", outputs=[])])
    return tmp_path


def list_jobs(site: Path, jobs: Any) -> None:
    (site / "in").mkdir(exist_ok=True)
    (site / "in" / "predictions.json").write_text(json.dumps(jobs))


def metrics(site: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(
        (site / "out" / "metrics.json").read_text(), parse_constant=lambda c: pytest.fail(c)
    )
    return content


def test_a_submission_by_hand(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate_submission(site / "in", site / "out", site / "truth") == 0
    content = metrics(site)
    assert [(r["case"], r["job"], r["status"]) for r in content["results"]] == [
        ("c1", "p1", "scored"), ("c2", "p2", "scored"), ("c3", "p3", "missing"), ("c4", None, "missing"),
    ]  # fmt: skip
    by_case = {result["case"]: result["regions"] for result in content["results"]}
    assert by_case["c2"]["CSO"]["official"] == {"dice": 1, "avd": 0, "avd_capped": 0, "recall": 1, "precision": 1}
    assert by_case["c2"]["BG"]["official"] == {"dice": 0, "avd": 0, "avd_capped": 0, "recall": 0, "precision": 0}
    assert by_case["c2"]["all"]["official"]["dice"] == 0.5
    assert by_case["c3"]["CSO"]["official"] == {"dice": 0, "avd": 1, "avd_capped": 1, "recall": 0, "precision": 0}
    assert content["aggregates"]["CSO"]["official"]["dice"]["mean"] == 0.5  # 1, 1, 0, 0
    assert content["aggregates"]["BG"]["official"]["avd_capped"]["mean"] == 0.5
    assert content["aggregates"]["BG"]["official"]["dice"]["n"] == 4
    output = capsys.readouterr()
    assert (
        "2 of 4 cases have no prediction and get the worst scores: c3, c4" in output.err and "error" not in output.err
    )
    assert [path.name for path in (site / "out").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda folder: save(folder / "f00.mha", shape=(6, 7, 9)), "refused"),
        (lambda folder: (folder / "f00.mha").write_bytes(b"no image"), "refused"),
        (lambda folder: save(folder / "f02.mha"), "refused"),
        (lambda folder: (folder / "f00.mha").unlink(), "missing"),
    ],
    ids=["another grid", "broken", "two masks", "none"],
)
def test_what_a_participant_did_wrong_gets_the_worst_scores_and_ends_well(
    spoil: Any, status: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(site / "in" / "p2" / "output" / "images" / OUTPUT_SLUG)
    assert evaluate_submission(site / "in", site / "out", site / "truth") == 0
    (case,) = [result for result in metrics(site)["results"] if result["case"] == "c2"]
    assert case["status"] == status and case["regions"]["CSO"]["official"]["dice"] == 0
    assert "c2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda jobs: [*jobs, job("p9", "c1")], "job p9: expected one job for c1, got p1, too"),
        (lambda jobs: [*jobs, job("p9", "unknown")], r"job p9: expected .* one reference mask, got unknown_T1w.mha"),
        (lambda jobs: [*jobs, {}], r"job 4: expected a .pk. and images"),
        (lambda jobs: [*jobs, {"pk": 7, "inputs": "x", "outputs": None}], r"job 7: expected a .pk. and images"),
    ],
    ids=["twice", "unknown", "empty", "odd"],
)  # fmt: skip
def test_what_the_organiser_did_wrong_is_an_error_though_the_rest_is_scored(
    change: Any, said: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    list_jobs(site, change(json.loads((site / "in" / "predictions.json").read_text())))
    assert evaluate_submission(site / "in", site / "out", site / "truth") == 1
    assert metrics(site)["results"][0]["status"] == "scored"
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("where", ["images/../../../secret", "/etc", f"images/../../../p1/output/images/{OUTPUT_SLUG}"])
def test_a_path_cannot_leave_the_input(where: str, site: Path) -> None:
    save(site / "secret" / "x.mha", (1, 1, 1), (4, 4, 4))
    evil = job("p2", "c2")
    evil["outputs"][0]["socket"]["relative_path"] = where
    list_jobs(site, [evil, job("p1", "c1"), job("../../secret", "c3")])
    report = evaluate_jobs(site / "in", site / "out", site / "truth")
    scored = {row.case for row in report.rows if row.prediction is not None}
    assert scored == {"c1"}


def test_a_mask_that_is_a_link_out_of_the_input_is_not_followed(site: Path) -> None:
    save(site / "secret.mha", (1, 1, 1), (4, 4, 4))
    path = site / "in" / "p2" / "output" / "images" / OUTPUT_SLUG / "f00.mha"
    path.unlink()
    os.symlink(site / "secret.mha", path)
    report = evaluate_jobs(site / "in", site / "out", site / "truth")
    assert {row.case: row.status for row in report.rows}["c2"] == "missing"


def test_the_output_socket_can_be_named(site: Path) -> None:
    several = job("p2", "c2")
    other = {"socket": {"slug": "probability", "relative_path": "images/probability"}, "image": {"name": "p.mha"}}
    renamed = {"socket": {"slug": "mine", "relative_path": f"images/{OUTPUT_SLUG}"}, "image": {"name": "x.mha"}}
    several["outputs"] = [other, renamed]
    list_jobs(site, [several])
    status = {row.case: row.status for row in evaluate_jobs(site / "in", site / "out", site / "truth").rows}
    assert status["c2"] == "refused"  # which of the two, nobody can say
    sockets = Sockets(output="mine")
    status = {row.case: row.status for row in evaluate_jobs(site / "in", site / "out", site / "truth", sockets).rows}
    assert status["c2"] == "scored"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a list of jobs"),
        ('{"pk": 1}', "expected a list of jobs"),
        (json.dumps([job("p1", "nobody")]), "expected jobs whose images are named after the cases c1, c2, c3, c4"),
    ],
)
def test_no_metrics_where_nothing_can_be_scored(content: str, said: str, site: Path) -> None:
    (site / "in" / "predictions.json").write_text(content)
    with pytest.raises(LayoutError, match=said):
        evaluate_jobs(site / "in", site / "out", site / "truth")
    assert evaluate_submission(site / "in", site / "out", site / "truth") == 2
    assert not (site / "out").exists()
    assert evaluate_submission(site / "in", site / "out", site / "nowhere") == 2


def test_the_containers_entry_point(site: Path) -> None:
    (site / "truth").rename(site / "in" / "ground_truth")  # where it also may lie
    done = processes.run(["--input", str(site / "in"), "--output", str(site / "out")])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "| all cases |" in done.stdout
    assert metrics(site)["aggregates"]["CSO"]["official"]["dice"]["mean"] == 0.5

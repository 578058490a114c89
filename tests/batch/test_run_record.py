"""``run.json``: what it says of a run is what the run did. It lies with the reports, never among the masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pvs_model
from pvs_model.commands import segment
from pvs_model.config import MANIFEST

WriteBody = Callable[..., dict[str, Path]]


@pytest.fixture(scope="module")
def records(
    write_body: WriteBody, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    """A folder, and the records of two runs: a is written and b fails; then a is complete and b fails again."""
    folder = tmp_path_factory.mktemp("record")
    write_body(folder / "in" / "a" / "a_{}.nii.gz", ("T1w", "T2w"))
    write_body(folder / "in" / "b" / "b_{}.nii.gz", ("T2w",))["T2w"].write_bytes(b"no image")
    words = [
        "--input",
        f"{folder / 'in'}",
        "--output",
        f"{folder / 'out'}",
        "--weights",
        f"{weights}",
        "--device",
        "cpu",
    ]
    words += ["--backend", "torch", "--no-anatomy", "--report", f"{folder / 'rep'}"]
    read = []
    for more in ([], ["--resume"]):
        assert segment.main([*words, *more]) == 1
        read.append(json.loads((folder / "rep" / "run.json").read_text()))
    return folder, read


def test_the_cases_of_a_run(records: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = records
    written, failed = first["cases"]
    assert written["state"] == "written" and failed["state"] == "failed" and first["state"] == "complete"
    assert written["images"] == {name: str(folder / "in" / "a" / f"a_{name}.nii.gz") for name in ("T1w", "T2w")}
    assert Path(written["mask"]).is_file() and written["voxels"] > 0 and written["seconds"] > 0
    assert (written["network"], written["backend"], written["threshold"]) == ("3d", "torch", 0.5)
    assert failed["problem"].startswith("b: ") and "b_T2w.nii.gz" in failed["problem"] and "mask" not in failed
    again, failed = second["cases"]
    assert again["state"] == "complete" and failed["state"] == "failed"
    assert {**again, **{key: written[key] for key in ("seconds", "host", "voxels")}} == {**written, "state": "complete"}


def test_versions_weights_options_and_machine(records: tuple[Path, list[dict[str, Any]]], weights: Path) -> None:
    folder, (first, second) = records
    assert first["versions"]["pvs_model"] == pvs_model.__version__
    assert first["weights"]["manifest_sha256"] == hashlib.sha256((weights / MANIFEST).read_bytes()).hexdigest()
    options = first["options"]
    assert (options["layout"], options["device"], options["backend"]) == ("epvs", "cpu", "torch")
    assert (options["resume"], second["options"]["resume"], options["part"]) == (False, True, None)
    assert first["machine"]["threads"] >= 1 and first["machine"]["cuda"] is None
    assert first["peak_memory_mib"]["process"] > 50
    assert first["seconds"] + 0.05 >= first["cases"][0]["seconds"]  # rounded to tenths
    assert first["input"] == str(folder / "in") and first["started"] <= second["started"]


def test_records_are_kept_and_masks_stay_alone(records: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = records
    assert [json.loads(path.read_text()) for path in sorted((folder / "rep" / "runs").iterdir())] == [first, second]
    assert [path.name for path in (folder / "out").rglob("*") if path.is_file()] == ["a_pred.nii.gz"]


def test_a_run_with_cases_that_clash_on_one_mask_is_complete(weights: Path, tmp_path: Path) -> None:
    for name in ("g/P01_T1w.nii.gz", "g/P02_T1w.nii.gz", "g/P01/P01_T1w.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"no image")
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights", str(weights)]
    assert segment.main([*words, "--report", str(tmp_path / "rep"), "--device", "cpu"]) == 1
    record = json.loads((tmp_path / "rep" / "run.json").read_text())
    names = [case["case"] for case in record["cases"]]
    assert len(names) > len(set(names)) and {case["state"] for case in record["cases"]} == {"failed"}
    assert record["state"] == "complete"


def test_a_stopped_run_is_recorded(
    write_body: WriteBody, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_body(tmp_path / "in" / "a" / "a_{}.nii.gz", ("T2w",))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pvs_model.pipeline.Segmenter.preprocess", stop)
    words = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights", str(weights)]
    assert segment.main([*words, "--report", str(tmp_path / "rep"), "--part", "1/1"]) == 130
    record = json.loads((tmp_path / "rep" / "run.json").read_text())
    assert record["state"] == "stopped" and [case["state"] for case in record["cases"]] == ["not run"]
    assert record["options"]["part"] == "1/1"

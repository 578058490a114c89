"""Files that appear whole or not at all: on mounts without fsync or locks, and from several processes at once."""

from __future__ import annotations

import csv
import errno
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pvs_model.burden.measure import measure
from pvs_model.errors import LayoutError, PVSError, VolumeError, WeightsError
from pvs_model.files import ABANDONED_S, PART, remove_abandoned, write_atomically, write_tensors, write_text
from pvs_model.reports.folder import ReportFolder
from tests.processes import Python, fork_server


def test_text_is_replaced_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_text(path, "é\ud800")
    write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["b.json"]


@pytest.mark.parametrize("error", [PVSError, LayoutError, VolumeError])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path, error: type[PVSError]) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_text("old")

    def full(part: Path) -> None:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(error, match=r"a\.nii\.gz: expected to write it, got: No space left on device"):
        write_atomically(path, full, error)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def raising(number: int) -> Callable[..., Any]:
    def call(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_mount_without_fsync_and_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("os.fsync", raising(number))
    monkeypatch.setattr("fcntl.flock", raising(number))
    write_text(tmp_path / "a", "kept")
    assert (tmp_path / "a").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_data_that_fsync_says_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("os.fsync", raising(number))
    with pytest.raises(PVSError, match="expected to write it"):
        write_text(tmp_path / "a", "lost")
    assert not list(tmp_path.iterdir())


def test_only_old_folders_are_abandoned(tmp_path: Path) -> None:
    for name, age in (("old", ABANDONED_S + 9), ("new", 0.0)):
        (tmp_path / f"{PART}{name}").mkdir()
        os.utime(tmp_path / f"{PART}{name}", (time.time() - age,) * 2)
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{PART}new"]


def _write_often(path: str, text: str) -> int:
    for _ in range(30):
        write_text(Path(path), text)
    return 0


def test_several_processes_write_one_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "description.json", [str(n) * 5000 for n in range(4)]
    with ProcessPoolExecutor(4, fork_server()) as pool:
        list(pool.map(_write_often, [str(path)] * 4, texts))
    assert path.read_text() in texts and len(list(tmp_path.iterdir())) == 1


def _report_cases(folder: str, number: int) -> int:
    mask = np.zeros((8, 8, 8), np.uint8)
    mask[2, 2, 2 : 4 + number % 3] = 1
    burden = measure(mask, {}, np.eye(4)).as_json()
    for case in range(4):
        report = ReportFolder(Path(folder))
        report._write_case(f"{number}-{case}", {"metadata": None, "burden": burden, "problem": None})
        report.finish()
    return 0


def test_no_row_is_lost_where_several_processes_finish_one_table(tmp_path: Path) -> None:
    with ProcessPoolExecutor(6, fork_server()) as pool:
        list(pool.map(_report_cases, [str(tmp_path)] * 6, range(6)))
    with (tmp_path / "burden.csv").open() as file:
        cases = {row["case"] for row in csv.DictReader(file)}
    assert cases == {f"{number}-{case}" for number in range(6) for case in range(4)}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


#: Runs process.py where fsync is not supported, the user has no name, and the environment is bare.
STRANGE = """
import errno, os, pwd, sys
def no_name(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
def no_sync(file):
    raise OSError(errno.EINVAL, "Invalid argument")
pwd.getpwuid, os.fsync = no_name, no_sync
os.environ.clear()
from pvs_model.commands import segment
sys.exit(segment.main(sys.argv[1:]))
"""


def test_one_run_per_case_at_once_on_a_strange_machine(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path
) -> None:
    names = [f"sub-{number}" for number in range(4)]
    for name in names:
        write_body(tmp_path / "in" / name / "anat" / f"{name}_{{}}.nii.gz", ("T2w",))
    runs = []
    for name in names:
        given = ["--input", str(tmp_path / "in" / name), "--output", str(tmp_path / "out"), "--weights", str(weights)]
        given += ["--device", "cpu", "--backend", "torch", "--report", str(tmp_path / "report")]
        runs.append(Python(STRANGE, given))
    for run in runs:
        with run:
            assert run.wait() == 0, run.stderr.read()
    masks = sorted(path.name for path in (tmp_path / "out").rglob("*.nii.gz"))
    assert masks == [f"{name}_space-orig_label-PVS_mask.nii.gz" for name in names]
    with (tmp_path / "report" / "burden.csv").open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == set(names)
    assert json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_tensors_are_readable_to_everyone_and_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::2], "b": torch.ones(2, dtype=torch.float16)}
    write_tensors(tmp_path / "x.safetensors", arrays, {"note": "n"})
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o644
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert read["a"].tolist() == [[0, 2], [3, 5]] and read["b"].dtype == torch.float16

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(WeightsError, match=r"y.safetensors: expected to write it, got: "):
        write_tensors(tmp_path / "y.safetensors", arrays, error=WeightsError)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]

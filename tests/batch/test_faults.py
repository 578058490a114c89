"""Killed, stopped, out of disk, memory or GPU: masks are complete or absent, and a second run does the rest."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from pvs_model import pipeline
from pvs_model.commands import segment
from pvs_model.config import BatchConfig
from pvs_model.errors import DeviceError
from pvs_model.files import PART
from pvs_model.inference.device import device_lost
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case
from pvs_model.volume.io import read_grid, write_mask
from tests import processes
from tests.processes import PROCESS, Python

CASES = ("a", "b", "c")


def masks(folder: Path) -> dict[str, str]:
    """Files under final names, hidden ones left out, by SHA-256."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def options(source: Path, output: Path, weights: Path, *more: str) -> list[str]:
    given = ["--input", str(source), "--output", str(output), "--weights", str(weights), "--device", "cpu"]
    return [*given, "--backend", "torch", *more]


#: Runs process.py, which waits without end where it reads an image whose name begins with the first argument.
WAITING = (
    """
import sys, threading
from pvs_model.volume import io
name, real = sys.argv.pop(1), io.read
def read(path, *more):
    if path.name.startswith(name):
        threading.Event().wait()
    return real(path, *more)
io.read = read
"""
    + PROCESS
)


@pytest.fixture(scope="module")
def source(write_body: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in")
    for name in CASES:
        write_body(folder / name / f"{name}_{{}}.nii.gz", ("T1w", "T2w"))
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """The masks of a run that nothing disturbs, and its seconds."""
    output = tmp_path_factory.mktemp("whole")
    began = time.perf_counter()
    assert processes.run(options(source, output, weights)).returncode == 0
    complete = masks(output)
    assert sorted(complete) == [f"{name}/{name}_pred.nii.gz" for name in CASES]
    return complete, time.perf_counter() - began


def check_and_finish(source: Path, output: Path, weights: Path, expected: dict[str, str]) -> None:
    """What lies there is whole, and a second run does the rest: the same bytes, nothing hidden left behind."""
    assert masks(output).items() <= expected.items()
    for left in output.rglob(f"{PART}*"):
        os.utime(left, (0, 0))  # as if it had been left long ago
    ran = processes.run(options(source, output, weights, "--resume"))
    assert ran.returncode == 0, ran.stderr
    assert masks(output) == expected
    assert not list(output.rglob(".*"))


# ---- killed --------------------------------------------------------------------------------------------------------


STAGES = ("b: read", "b: align", "b: prepare", "b: load", "b: predict", "b: wrote")


@pytest.mark.parametrize("stages", [STAGES[4:5], pytest.param(STAGES, marks=pytest.mark.slow)])
def test_killed_after_a_stage(source: Path, weights: Path, tmp_path: Path, whole: Any, stages: tuple[str, ...]) -> None:
    output = tmp_path / "out"
    for stage in stages:
        with Python(WAITING, ["c", *options(source, output, weights)]) as ran:
            for line in ran.stdout:
                if stage in line:
                    ran.send_signal(signal.SIGKILL)
                    break
        assert ran.returncode == -signal.SIGKILL, stage
        assert masks(output).items() <= whole[0].items()
    check_and_finish(source, output, weights, whole[0])


def kill_at_random(times: int, source: Path, weights: Path, output: Path, whole: Any) -> None:
    rng = random.Random(6)
    for _ in range(times):
        if not masks(output).items() ^ whole[0].items():
            shutil.rmtree(output)
            output.mkdir()
        with Python(PROCESS, options(source, output, weights, "--resume")) as ran:
            time.sleep(rng.uniform(0.1, 1.0) * whole[1])
            ran.send_signal(signal.SIGKILL)
        assert masks(output).items() <= whole[0].items()
    check_and_finish(source, output, weights, whole[0])


def test_killed_at_a_few_instants(source: Path, weights: Path, tmp_path: Path, whole: Any) -> None:
    kill_at_random(2, source, weights, tmp_path, whole)


@pytest.mark.slow
def test_killed_at_fifty_instants(source: Path, weights: Path, tmp_path: Path, whole: Any) -> None:
    kill_at_random(50, source, weights, tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_by_a_signal(source: Path, weights: Path, tmp_path: Path, whole: Any, number: signal.Signals) -> None:
    output = tmp_path / "out"
    with Python(WAITING, ["b", *options(source, output, weights)]) as ran:
        for line in ran.stdout:
            if "a: wrote" in line:
                ran.send_signal(number)
                break
        ran.stdout.read()
        err = ran.stderr.read()
    assert ran.returncode == 130 and sorted(masks(output)) == ["a/a_pred.nii.gz"]
    assert err.strip().splitlines()[-1].startswith("error: stopped; masks already written are complete")
    assert "Traceback" not in err and not list(output.rglob(".*"))
    check_and_finish(source, output, weights, whole[0])


# ---- a disk or memory that ends ------------------------------------------------------------------------------------


def test_a_disk_that_is_full(source: Path, weights: Path, tmp_path: Path, whole: Any) -> None:
    output = tmp_path / "out"
    ran = processes.run(options(source, output, weights), limit=(resource.RLIMIT_FSIZE, 100))
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 3 cases failed, the last: c: ") and "c_pred.nii.gz: expected to write" in last
    assert not masks(output) and not list(output.rglob(".*")) and "Traceback" not in ran.stdout + ran.stderr
    check_and_finish(source, output, weights, whole[0])


def run_in_a_shell(words: list[str], limit: processes.Limit) -> processes.Result:
    """``process.py`` from its start, imports included."""
    command = [sys.executable, "process.py", *words]
    ran = subprocess.run(
        command, cwd=processes.ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300, preexec_fn=lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
    )  # fmt: skip
    return processes.Result(ran.returncode, ran.stdout, ran.stderr)


@pytest.mark.parametrize(
    ("gib", "start"),
    [
        (0.3, run_in_a_shell),
        (1.0, processes.run),
        *(pytest.param(g, run_in_a_shell, marks=pytest.mark.slow) for g in (0.6, 1.0, 1.5, 2.0, 3.0)),
    ],
)
def test_memory_that_ends(
    source: Path, weights: Path, tmp_path: Path, whole: Any, gib: float, start: Callable[..., processes.Result]
) -> None:
    """Wherever it ends, even during the imports, no case is lost in silence."""
    output = tmp_path / "out"
    ran = start(options(source, output, weights), limit=(resource.RLIMIT_DATA, int(gib * 2**30)))
    written = masks(output) if output.is_dir() else {}
    assert written.items() <= whole[0].items()
    assert (ran.returncode == 0) == (written == whole[0])
    assert "Traceback" not in ran.stdout + ran.stderr
    if ran.returncode > 0:
        assert ran.stderr.strip().splitlines()[-1].startswith("error: ")


# ---- a second run --------------------------------------------------------------------------------------------------


def run(source: Path, output: Path, weights: Path, *more: str) -> int:
    return segment.main(options(source, output, weights, *more))


def test_resuming_runs_what_is_missing_and_nothing_else(
    source: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    assert run(source, output, weights) == 0
    before = masks(output)
    (output / "a" / "a_pred.nii.gz").unlink()
    (output / "b" / "b_pred.nii.gz").write_bytes(b"cut off")
    kept = (output / "c" / "c_pred.nii.gz").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        assert run(source, output, weights, "--resume") == 0
    assert masks(output) == before and (output / "c" / "c_pred.nii.gz").stat().st_mtime_ns == kept
    messages = [record.getMessage() for record in caplog.records]
    assert f"{output}: 1 of 3 cases were there already" in messages
    assert sum(": wrote " in line for line in messages) == 2


def test_resuming_redoes_a_mask_of_another_grid(source: Path, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(source, output, weights) == 0
    before = masks(output)
    other = nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4))
    nib.save(other, output / "a" / "a_pred.nii.gz")
    assert run(source, output, weights, "--resume") == 0 and masks(output) == before


def test_resuming_writes_the_reports_that_are_missing(source: Path, weights: Path, tmp_path: Path) -> None:
    output, reports = tmp_path / "out", tmp_path / "rep"
    assert run(source, output, weights) == 0
    assert run(source, output, weights, "--resume", "--report", str(reports)) == 0
    assert sorted(path.stem for path in (reports / "cases").glob("*.json")) == list(CASES)
    written = {path.name: path.stat().st_mtime_ns for path in (reports / "cases").iterdir()}
    assert run(source, output, weights, "--resume", "--report", str(reports)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (reports / "cases").iterdir()} == written


def test_resuming_writes_a_sidecar_that_is_missing(
    write_body: Callable[..., dict[str, Path]], weights: Path, tmp_path: Path
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_body(source / "sub-1" / "anat" / "sub-1_{}.nii.gz", ("T2w",))
    assert run(source, output, weights) == 0
    sidecar = next(output.rglob("sub-1*.json"))
    sidecar.unlink()
    assert run(source, output, weights, "--resume") == 0 and sidecar.is_file()


def test_resuming_reports_a_bad_case_again(source: Path, weights: Path, tmp_path: Path, capsys: Any) -> None:
    bad = Path(shutil.copytree(source, tmp_path / "in"))
    (bad / "b" / "b_T2w.nii.gz").write_bytes(b"no image")
    output = tmp_path / "out"
    for more in ((), ("--resume",)):
        assert run(bad, output, weights, *more) == 1
        assert "b_T2w.nii.gz" in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(masks(output)) == ["a/a_pred.nii.gz", "c/c_pred.nii.gz"]


# ---- what a killed run leaves --------------------------------------------------------------------------------------


@pytest.fixture
def held() -> Iterator[Callable[[Path], None]]:
    """Locks folders as a writer does, until the test ends."""
    descriptors: list[int] = []

    def hold(folder: Path) -> None:
        descriptors.append(os.open(folder, os.O_RDONLY))
        fcntl.flock(descriptors[-1], fcntl.LOCK_EX)

    yield hold
    for descriptor in descriptors:
        os.close(descriptor)


def test_hidden_folders_of_killed_runs_are_removed(source: Path, tmp_path: Path, held: Callable[[Path], None]) -> None:
    left, busy, new = (tmp_path / f"{PART}{name}" for name in ("left", "busy", "new"))
    for folder in (left, busy, new):
        folder.mkdir()
        (folder / "part.nii.gz").write_bytes(b"half")
    held(busy)
    for folder in (left, busy):
        os.utime(folder, (0, 0))
    like = source / "a" / "a_T2w.nii.gz"
    write_mask(tmp_path / "mask.nii.gz", np.zeros(read_grid(like).shape, np.uint8), like)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([busy.name, new.name, "mask.nii.gz"])


# ---- a GPU that disappears -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: unspecified launch failure\nCompile with ..."), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), True),
        (RuntimeError("No CUDA-capable device is detected"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (torch.OutOfMemoryError("CUDA error: out of memory"), False),
        (RuntimeError("The size of tensor a must match"), False),
    ],
)
def test_which_errors_are_the_gpus(error: Exception, lost: bool) -> None:
    assert device_lost(error) is lost


def test_a_gpu_that_disappears(
    source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, seen = pipeline.predict_maps, []

    def predict(prepared: Any, ensemble: Any, text: Any, device: torch.device, *more: Any) -> Any:
        seen.append(device.type)
        if device.type == "cuda":
            raise RuntimeError("CUDA error: unspecified launch failure\nand much advice")
        return real(prepared, ensemble, text, device, *more)

    monkeypatch.setattr(pipeline, "predict_maps", predict)
    monkeypatch.setattr(
        "pvs_model.inference.device.choose_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda")
    )
    case = Case("a", {"T2w": source / "a" / "a_T2w.nii.gz"}, Path("a.nii.gz"))
    segmenter = Segmenter(BatchConfig(weights))
    with caplog.at_level(logging.WARNING):
        first, second = segmenter.segment(case), segmenter.segment(case)
    assert seen == ["cuda", "cpu", "cpu"] and np.array_equal(first.mask, second.mask) and first.mask.any()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["a: the GPU failed (CUDA error: unspecified launch failure): continuing on the CPU"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="expected a working GPU, got: CUDA error: unspecified launch failure$"):
        Segmenter(BatchConfig(weights, "cuda")).segment(case)

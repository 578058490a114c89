"""A folder on this machine: prefetching gives the same masks, reports, messages and order as consecutive cases."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvs_model import batch, pipeline
from pvs_model.anatomy.regions import Anatomy
from pvs_model.batch import local
from pvs_model.batch.prefetch import INTERRUPTED
from pvs_model.config import BatchConfig
from pvs_model.errors import PVSError, VolumeError
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case
from tests import processes
from tests.processes import PROCESS, Python

WriteBody = Callable[..., dict[str, Path]]


def hashes(output: Path) -> dict[str, str]:
    """All files, hidden ones too, by SHA-256."""
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def source(write_body: WriteBody, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases a to d; c in slices of 4 mm, for the 2D network."""
    root = tmp_path_factory.mktemp("in")
    for name in "abcd":
        spacing = (1.3, 1.3, 4.0) if name == "c" else (1.3, 1.3, 1.3)
        write_body(root / name / f"{name}_{{}}.nii.gz", ("T1w", "T2w"), spacing_mm=spacing)
    return root


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_masks_are_the_same_bytes(source: Path, weights: Path, tmp_path: Path) -> None:
    for workers in (0, 3):
        assert batch.run(source, tmp_path / str(workers), BatchConfig(weights, "cpu", workers=workers)) == []
    alone = hashes(tmp_path / "0")
    assert list(alone) == [f"{name}/{name}_pred.nii.gz" for name in "abcd"] and hashes(tmp_path / "3") == alone


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    workers=st.integers(1, 4), bad=st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["read", "net", "write"]))
)
def test_failing_cases_leave_the_others_alone(
    source: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, workers: int, bad: dict[str, str]
) -> None:
    """With a stand-in for the network: its own bytes are compared above."""

    def read(case: Case) -> Any:
        if bad.get(case.name) == "read":
            raise VolumeError(f"{case.images['T2w']}: expected an image")
        return pipeline_read(case)

    def predict(prepared: Any, *more: Any) -> Any:
        if bad.get(name_of(prepared)) == "net":
            raise ZeroDivisionError("a bug\nof ours")
        return (prepared.image[1] > 1).astype(np.float32), None

    def name_of(prepared: Any) -> str:
        return str(prepared.warnings[0])

    def ready(self: Segmenter, case: Case) -> Any:
        preprocessed = real_ready(self, case)
        return replace(preprocessed, prepared=replace(preprocessed.prepared, warnings=(case.name,)))

    def write(case: Case, *more: Any) -> Any:
        if bad.get(case.name) == "write":
            raise PVSError("expected to write it, got: No space left on device")
        return real_write(case, *more)

    pipeline_read, real_ready, real_write = pipeline.read, Segmenter.preprocess, local.write_case
    with monkeypatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setattr(pipeline, "read", read)
        patch.setattr(pipeline, "predict_maps", predict)
        patch.setattr(Segmenter, "preprocess", ready)
        patch.setattr(local, "write_case", write)
        outputs = [Path(scratch) / "alone", Path(scratch) / "together"]
        messages = [
            batch.run(source, output, BatchConfig(weights, "cpu", anatomy=False, workers=n))
            for output, n in zip(outputs, (0, workers), strict=True)
        ]
        assert messages[0] == messages[1] and [sentence[0] for sentence in messages[0]] == sorted(bad)
        assert hashes(outputs[0]) == hashes(outputs[1]) and len(hashes(outputs[0])) == 4 - len(bad)


def test_reports_and_resuming_are_the_same(source: Path, weights: Path, tmp_path: Path) -> None:
    bad = tmp_path / "in"
    for name in "abcd":
        (bad / name).mkdir(parents=True)
        for path in (source / name).iterdir():
            (bad / name / path.name).symlink_to(path)
    (bad / "b" / "b_T2w.nii.gz").unlink()
    (bad / "b" / "b_T2w.nii.gz").write_bytes(b"no image")
    pages: dict[int, dict[str, str]] = {}
    for workers in (0, 2):
        output, reports = tmp_path / f"out{workers}", batch.ReportOptions(tmp_path / f"rep{workers}")
        chosen = BatchConfig(weights, "cpu", workers=workers)
        messages = batch.run(bad, output, chosen, reports=reports)
        assert len(messages) == 1 and messages[0].startswith("b: ")
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
        (output / "c" / "c_pred.nii.gz").unlink()
        (reports.folder / "cases" / "d.json").unlink()
        assert len(batch.run(bad, output, replace(chosen, resume=True), reports=reports)) == 1
        after = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
        assert {path.name for path in after if after[path] != before[path]} == {"c_pred.nii.gz", "d_pred.nii.gz"}
        names = ("burden.csv", "pvs.csv", *(f"cases/{name}.json" for name in "abcd"))
        pages[workers] = {name: without_seconds(reports.folder / name) for name in names}
        assert (reports.folder / "index.html").is_file()
    assert pages[0] == pages[2] and hashes(tmp_path / "out0") == hashes(tmp_path / "out2")


def without_seconds(path: Path) -> str:
    """What a file of reports says, but for the seconds of a case's stages."""
    if path.suffix != ".json":
        return path.read_text()
    content = json.loads(path.read_text())
    if content["metadata"]:
        content["metadata"].pop("seconds")
    return json.dumps(content)


def test_log_lines_bear_their_cases_name(
    source: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pvs_model"):
        batch.run(source, tmp_path / "out", BatchConfig(weights, "cpu", workers=2))
    lines = [record.getMessage() for record in caplog.records]
    for name in "abcd":
        mine = [line.split(" ")[1] for line in lines if line.startswith(f"{name}: ")]
        assert mine == ["read", "align", "prepare", "load", "predict", "wrote"]
    wrote = [line for line in lines if ": wrote " in line]
    assert [line[0] for line in wrote] == list("abcd") and "(4 of 4, " in wrote[-1]


@pytest.mark.parametrize(
    ("asked", "device", "cases", "expected"),
    [
        (None, "cuda", 9, 2),
        (None, "cpu", 9, local.WORKERS["cpu"]),
        (3, "cpu", 9, 3),
        (3, "cuda", 2, 2),
        (3, "cpu", 1, 0),
        (0, "cuda", 9, 0),
    ],
)
def test_how_many_cases_are_prefetched(
    weights: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, device: str, cases: int, expected: int
) -> None:
    monkeypatch.setattr("pvs_model.inference.device.choose_device", lambda name: torch.device(device))
    monkeypatch.setattr(Segmenter, "load", lambda self: None)
    assert local._workers(Segmenter(BatchConfig(weights)), cases, asked) == expected


def test_fewer_than_no_workers_are_rejected(source: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(PVSError, match="--workers: expected 0 or more cases, got -1"):
        batch.run(source, tmp_path / "out", BatchConfig(weights, "cpu", workers=-1))
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_reported_by_each_case(source: Path, own_weights: Path, tmp_path: Path) -> None:
    (own_weights / "MANIFEST.json").write_text("{")
    messages = {n: batch.run(source, tmp_path / "out", BatchConfig(own_weights, "cpu", workers=n)) for n in (0, 2)}
    assert messages[0] == messages[2] and len(messages[0]) == 4 and "expected the manifest" in messages[0][0]


# ---- the segmenter in several threads ------------------------------------------------------------------------------


def test_weights_and_device_are_made_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def choose(name: str) -> torch.device:
        made.append(name)
        time.sleep(0.05)
        return torch.device("cpu")

    monkeypatch.setattr("pvs_model.inference.device.choose_device", choose)
    segmenter = Segmenter(BatchConfig(weights))
    seen: list[Any] = []
    runtime = segmenter.runtime
    threads = [threading.Thread(target=lambda: seen.append((runtime.device, id(runtime.weights)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["auto"] and len(seen) == 6 and len(set(seen)) == 1


def lost_once(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that fails whatever network runs on it; what ran where, in order."""
    real, seen = pipeline.predict_maps, []

    def predict(prepared: Any, ensemble: Any, text: Any, device: torch.device, *more: Any) -> Any:
        seen.append(device.type)
        if device.type == "cuda":
            raise RuntimeError("CUDA error: unspecified launch failure\nand much advice")
        return real(prepared, ensemble, text, device, *more)

    def estimate_anatomy(volumes: Any, weights: Path, device: torch.device) -> Any:
        if device.type == "cuda":
            time.sleep(0.2)  # until another thread has met it, too
            raise RuntimeError("CUDA error: unspecified launch failure\nand much advice")
        shape = tuple(volumes["T2w"].data.shape)
        return Anatomy(np.zeros(shape, np.uint8), np.ones(shape, bool))

    monkeypatch.setattr(pipeline, "predict_maps", predict)
    monkeypatch.setattr(pipeline, "estimate_anatomy", estimate_anatomy)
    monkeypatch.setattr(
        "pvs_model.inference.device.choose_device", lambda name: torch.device("cpu" if name == "cpu" else "cuda")
    )
    monkeypatch.setattr(Segmenter, "load", lambda self: None)  # it would put the anatomy network on the GPU
    return seen


@pytest.mark.parametrize("anatomy", [False, True])
def test_a_gpu_that_is_lost_costs_no_case(
    source: Path, own_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, anatomy: bool
) -> None:
    chosen = BatchConfig(own_weights, "cpu", anatomy=False, workers=0)
    assert batch.run(source, tmp_path / "cpu", chosen) == []
    if anatomy:
        (own_weights / "anatomy.safetensors").write_bytes(b"a stand-in")
    seen = lost_once(monkeypatch)
    caplog.clear()
    assert batch.run(source, tmp_path / "lost", replace(chosen, device="auto", anatomy=anatomy, workers=2)) == []
    assert seen.count("cpu") == 4 and seen.count("cuda") <= 1
    messages = [record.getMessage() for record in caplog.records if "the GPU failed" in record.getMessage()]
    assert len(messages) == 1 and messages[0].endswith("continuing on the CPU")
    if not anatomy:
        assert hashes(tmp_path / "lost") == hashes(tmp_path / "cpu")


def test_an_anatomy_without_memory_waits_for_the_network(
    source: Path, own_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_weights / "anatomy.safetensors").write_bytes(b"a stand-in")
    segmenter = Segmenter(BatchConfig(own_weights, "cpu"))
    alone = []

    def estimate_anatomy(volumes: Any, weights: Path, device: Any) -> Any:
        alone.append(segmenter._network_lock.locked())
        if len(alone) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        shape = tuple(volumes["T2w"].data.shape)
        return Anatomy(np.zeros(shape, np.uint8), np.ones(shape, bool))

    monkeypatch.setattr(pipeline, "estimate_anatomy", estimate_anatomy)
    case = Case("a", {"T2w": source / "a" / "a_T2w.nii.gz"}, Path("a.nii.gz"))
    assert segmenter.preprocess(case).prepared.anatomy is not None and alone == [False, True]


# ---- stopped -------------------------------------------------------------------------------------------------------

#: Runs process.py, which waits without end where it reads the images of c and d.
WAITING = (
    """
import sys, threading
from pvs_model.volume import io
real = io.read
def read(path, *more):
    if path.name.startswith(("c", "d")):
        threading.Event().wait()
    return real(path, *more)
io.read = read
"""
    + PROCESS
)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_it(source: Path, weights: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Although a case is being preprocessed that never ends, and another may be half-written."""
    output, reports = tmp_path / "out", tmp_path / "rep"
    given = ["--input", str(source), "--weights", str(weights), "--device", "cpu", "--backend", "torch"]
    with Python(WAITING, [*given, "--output", str(output), "--workers", "2", "--report", str(reports)]) as ran:
        for line in ran.stdout:
            if "a: wrote" in line:
                ran.send_signal(number)
                break
        ran.stdout.read()
        err = ran.stderr.read()
        ran.wait()
    assert ran.returncode == INTERRUPTED == 130
    assert err.strip().splitlines()[-1].startswith("error: stopped; masks already written are complete")
    assert "Traceback" not in err and not list(output.rglob(".*"))
    left = hashes(output)
    assert "a/a_pred.nii.gz" in left and set(left) <= {"a/a_pred.nii.gz", "b/b_pred.nii.gz"}
    assert (reports / "burden.csv").is_file()
    # As processes, too: in this one arithmetic is another (conftest.py).
    for where, more in ((output, ["--workers", "2", "--resume"]), (tmp_path / "whole", ["--workers", "0"])):
        assert processes.run([*given, "--output", str(where), *more]).returncode == 0
    assert hashes(output) == hashes(tmp_path / "whole")

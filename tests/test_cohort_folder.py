"""Cases made ready ahead and written behind, in threads: the same masks, sentences and order as one after another."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import subprocess
import sys
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

from pvs_model import cohort, pipeline
from pvs_model.anatomy.regions import Anatomy
from pvs_model.cohort import ahead, folder
from pvs_model.cohort.ahead import in_order
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError, VolumeError
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case

ROOT = Path(__file__).parent.parent
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


# ---- the three steps, with stand-ins -------------------------------------------------------------------------------


class Steps:
    """Stand-ins for the steps: they fail where they are told to, and keep what was told, in what order and threads."""

    def __init__(self, bad: dict[int, str], pauses: dict[int, float] | None = None) -> None:
        self.bad, self.pauses = bad, pauses or {}
        self.order: list[int] = []
        self.told: list[tuple[int, str]] = []
        self.threads: dict[str, set[str]] = {"before": set(), "work": set(), "after": set()}

    def before(self, item: int) -> int:
        self.threads["before"].add(threading.current_thread().name)
        time.sleep(self.pauses.get(item, 0.0))
        if self.bad.get(item) == "before":
            raise VolumeError(f"{item} before")
        return item

    def work(self, item: int) -> int:
        self.threads["work"].add(threading.current_thread().name)
        if self.bad.get(item) == "work":
            raise KeyError(f"{item} work")
        self.order.append(item)
        return -item

    def after(self, item: int, made: Callable[[], int]) -> None:
        self.threads["after"].add(threading.current_thread().name)
        time.sleep(self.pauses.get(item, 0.0) / 2)
        try:
            found = made()
            if self.bad.get(item) == "after":
                raise OSError(f"{item} after")
            self.told.append((item, str(found)))
        except Exception as error:
            self.told.append((item, repr(error)))


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(0, 5),
    bad=st.dictionaries(st.integers(0, 11), st.sampled_from(["before", "work", "after"])),
    pauses=st.dictionaries(st.integers(0, 11), st.sampled_from([0.001, 0.004]), max_size=4),
    count=st.integers(0, 12),
)
def test_any_number_of_workers_tells_the_same_in_the_same_order(
    workers: int, bad: dict[int, str], pauses: dict[int, float], count: int
) -> None:
    alone, together = Steps(bad), Steps(bad, pauses)
    in_order(range(count), alone.before, alone.work, alone.after, 0)
    in_order(range(count), together.before, together.work, together.after, workers)
    assert together.told == alone.told and together.order == alone.order
    assert [item for item, _ in together.told] == list(range(count))
    assert together.threads["work"] <= {threading.current_thread().name}
    if workers == 0:
        assert together.threads["before"] | together.threads["after"] <= {threading.current_thread().name}
    else:
        assert len(together.threads["after"]) <= 1 and len(together.threads["before"]) <= workers


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("slow", ["before", "work", "after"])
def test_no_more_than_so_many_are_held(workers: int, slow: str) -> None:
    lock, held = threading.Lock(), {"before": 0, "behind": 0}
    most = dict(held)

    def change(where: str, by: int) -> None:
        with lock:
            held[where] += by
            most[where] = max(most[where], held[where])

    def rest(step: str) -> None:
        time.sleep(0.01 if step == slow else 0.001)

    def before(item: int) -> int:
        change("before", 1)
        rest("before")
        return item

    def work(item: int) -> int:
        change("before", -1)
        rest("work")
        change("behind", 1)  # from here on it waits to be handed over, is handed over, or is finished
        return item

    def after(item: int, made: Callable[[], int]) -> None:
        made()
        rest("after")
        change("behind", -1)

    in_order(range(25), before, work, after, workers)
    assert held == {"before": 0, "behind": 0}
    # One more each: an item between two steps is counted on the side that it comes from or goes to.
    assert most["before"] <= workers + 1 and most["behind"] <= workers + 1
    if slow == "work":
        assert most["before"] >= workers  # and they are made use of


def test_what_the_last_step_raises_ends_the_run() -> None:
    begun = []

    def after(item: int, made: Callable[[], int]) -> None:
        made()
        if item == 2:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        in_order(range(100), lambda item: begun.append(item) or item, lambda item: item, after, 2)
    assert len(begun) < 20


def test_a_stop_lets_the_last_step_end_and_begins_nothing() -> None:
    ended: list[int] = []
    began, release = threading.Event(), threading.Event()

    def work(item: int) -> int:
        if item == 3:
            assert began.wait(10)
            threading.Timer(0.1, release.set).start()
            raise KeyboardInterrupt
        return item

    def after(item: int, made: Callable[[], int]) -> None:
        if item == 0:
            began.set()
            assert release.wait(10)
        ended.append(item)

    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        in_order(range(100), lambda item: begun.append(item) or item, work, after, 4)
    assert ended == [0] and len(begun) <= 8


def test_a_stop_does_not_wait_for_what_is_made_ready() -> None:
    release = threading.Event()

    def before(item: int) -> int:
        if item:
            release.wait(10)
        return item

    def work(item: int) -> int:
        raise KeyboardInterrupt

    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        in_order(range(5), before, work, lambda item, made: None, 2)
    assert time.perf_counter() - began < 5
    release.set()


def test_without_threads_it_goes_one_by_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    steps = Steps({3: "work"})
    in_order(range(6), steps.before, steps.work, steps.after, 3)
    assert [item for item, _ in steps.told] == list(range(6)) and len(started) == 1
    assert steps.threads["before"] == {threading.current_thread().name}
    assert "one case after another" in caplog.text


@pytest.mark.parametrize("step", ["before", "work"])
def test_a_failed_item_is_let_go(step: str) -> None:
    """Its data go when it is told, not when the garbage collector comes by."""
    import gc
    import weakref

    class Data:
        pass

    kept: list[weakref.ref[Data]] = []
    alive: list[int] = []

    def before(item: int) -> Data:
        data = Data()
        kept.append(weakref.ref(data))
        if step == "before":
            raise VolumeError("no")
        return data

    def work(data: Data) -> Data:
        raise VolumeError("no")

    def after(item: int, made: Callable[[], Data]) -> None:
        with pytest.raises(VolumeError):
            made()
        alive.append(sum(one() is not None for one in kept))

    gc.disable()
    try:
        in_order(range(30), before, work, after, 1)
    finally:
        gc.enable()
    assert max(alive) <= 4


# ---- a folder ------------------------------------------------------------------------------------------------------


def test_masks_are_the_same_bytes(source: Path, weights: Path, tmp_path: Path) -> None:
    for workers in (0, 3):
        assert cohort.run(source, tmp_path / str(workers), InferenceConfig(weights, "cpu", workers=workers)) == []
    alone = hashes(tmp_path / "0")
    assert list(alone) == [f"{name}/{name}_pred.nii.gz" for name in "abcd"] and hashes(tmp_path / "3") == alone


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
        found = real_ready(self, case)
        return replace(found, prepared=replace(found.prepared, warnings=(case.name,)))

    def write(case: Case, *more: Any) -> Any:
        if bad.get(case.name) == "write":
            raise PVSError("expected to write it, got: No space left on device")
        return real_write(case, *more)

    pipeline_read, real_ready, real_write = pipeline.read, Segmenter.preprocess, folder.write
    with monkeypatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setattr(pipeline, "read", read)
        patch.setattr(pipeline, "predict_maps", predict)
        patch.setattr(Segmenter, "preprocess", ready)
        patch.setattr(folder, "write", write)
        outputs = [Path(scratch) / "alone", Path(scratch) / "together"]
        told = [
            cohort.run(source, output, InferenceConfig(weights, "cpu", anatomy=False, workers=n))
            for output, n in zip(outputs, (0, workers), strict=True)
        ]
        assert told[0] == told[1] and [sentence[0] for sentence in told[0]] == sorted(bad)
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
        output, reports = tmp_path / f"out{workers}", cohort.Reports(tmp_path / f"rep{workers}")
        chosen = InferenceConfig(weights, "cpu", workers=workers)
        told = cohort.run(bad, output, chosen, reports=reports)
        assert len(told) == 1 and told[0].startswith("b: ")
        before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
        (output / "c" / "c_pred.nii.gz").unlink()
        (reports.folder / "cases" / "d.json").unlink()
        assert len(cohort.run(bad, output, replace(chosen, resume=True), reports=reports)) == 1
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
    if content["facts"]:
        content["facts"].pop("seconds")
    return json.dumps(content)


def test_log_lines_bear_their_cases_name(
    source: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="pvs_model"):
        cohort.run(source, tmp_path / "out", InferenceConfig(weights, "cpu", workers=2))
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
        (None, "cpu", 9, folder.WORKERS["cpu"]),
        (3, "cpu", 9, 3),
        (3, "cuda", 2, 2),
        (3, "cpu", 1, 0),
        (0, "cuda", 9, 0),
    ],
)
def test_how_many_are_made_ready(
    weights: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, device: str, cases: int, expected: int
) -> None:
    monkeypatch.setattr("pvs_model.inference.device.choose_device", lambda name: torch.device(device))
    monkeypatch.setattr(Segmenter, "load", lambda self: None)
    assert folder._workers(Segmenter(InferenceConfig(weights, workers=asked)), cases) == expected


def test_fewer_than_none_are_refused(source: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(PVSError, match="--workers: expected 0 or more cases, found -1"):
        cohort.run(source, tmp_path / "out", InferenceConfig(weights, "cpu", workers=-1))
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_told_by_each_case(source: Path, own_weights: Path, tmp_path: Path) -> None:
    (own_weights / "MANIFEST.json").write_text("{")
    told = {n: cohort.run(source, tmp_path / "out", InferenceConfig(own_weights, "cpu", workers=n)) for n in (0, 2)}
    assert told[0] == told[2] and len(told[0]) == 4 and "expected the manifest" in told[0][0]


# ---- the segmenter in several threads ------------------------------------------------------------------------------


def test_weights_and_device_are_made_once(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def choose(name: str) -> torch.device:
        made.append(name)
        time.sleep(0.05)
        return torch.device("cpu")

    monkeypatch.setattr("pvs_model.inference.device.choose_device", choose)
    segmenter = Segmenter(InferenceConfig(weights))
    found: list[Any] = []
    runtime = segmenter.runtime
    threads = [threading.Thread(target=lambda: found.append((runtime.device, id(runtime.weights)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["auto"] and len(found) == 6 and len(set(found)) == 1


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
    chosen = InferenceConfig(own_weights, "cpu", anatomy=False, workers=0)
    assert cohort.run(source, tmp_path / "cpu", chosen) == []
    if anatomy:
        (own_weights / "anatomy.safetensors").write_bytes(b"a stand-in")
    seen = lost_once(monkeypatch)
    caplog.clear()
    assert cohort.run(source, tmp_path / "lost", replace(chosen, device="auto", anatomy=anatomy, workers=2)) == []
    assert seen.count("cpu") == 4 and seen.count("cuda") <= 1
    told = [record.getMessage() for record in caplog.records if "the GPU failed" in record.getMessage()]
    assert len(told) == 1 and told[0].endswith("continuing on the CPU")
    if not anatomy:
        assert hashes(tmp_path / "lost") == hashes(tmp_path / "cpu")


def test_an_anatomy_without_memory_waits_for_the_network(
    source: Path, own_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_weights / "anatomy.safetensors").write_bytes(b"a stand-in")
    segmenter = Segmenter(InferenceConfig(own_weights, "cpu"))
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

SLOW = """
import sys, time
from pvs_model import pipeline
real = pipeline.align
def align(volumes, register=False):
    if not any(name in str(volume.source) for volume in volumes.values() for name in ("a_T", "b_T")):
        time.sleep(60)
    return real(volumes, register)
pipeline.align = align
from pvs_model.commands import segment
from pvs_model.cohort import leave
leave(segment.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_it_at_once(source: Path, weights: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Though a case is being made ready that takes a minute, and another may be half-written."""
    output, reports = tmp_path / "out", tmp_path / "rep"
    given = ["--input", str(source), "--output", str(output), "--weights", str(weights), "--device", "cpu"]
    given += ["--workers", "2", "--report", str(reports), "--backend", "torch"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *given], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as ran:
        assert ran.stdout is not None and ran.stderr is not None
        for line in ran.stdout:
            if "a: wrote" in line:
                ran.send_signal(number)
                began = time.perf_counter()
                break
        ran.stdout.read()
        told = ran.stderr.read()
        ran.wait()
        took = time.perf_counter() - began
    assert ran.returncode == ahead.STOPPED == 130 and took < 15  # seconds are rare on a busy machine
    assert told.strip().splitlines()[-1].startswith("error: stopped; masks already written are complete")
    assert "Traceback" not in told and not list(output.rglob(".*"))
    left = hashes(output)
    assert "a/a_pred.nii.gz" in left and set(left) <= {"a/a_pred.nii.gz", "b/b_pred.nii.gz"}
    assert (reports / "burden.csv").is_file()
    # As processes, too: in this one arithmetic is another (conftest.py).
    for where, more in ((output, ["--workers", "2", "--resume"]), (tmp_path / "whole", ["--workers", "0"])):
        again = ["--input", str(source), "--output", str(where), "--weights", str(weights), *more]
        command = [sys.executable, "process.py", *again, "--device", "cpu", "--backend", "torch"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert hashes(output) == hashes(tmp_path / "whole")

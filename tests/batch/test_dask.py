"""A run on a cluster gives the results of one machine, whatever happens to its workers: on local Dask dask_clusters."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pvs_model import __version__, cli
from pvs_model.batch import dask as batch_dask
from pvs_model.batch import dask_clusters, scheduling, worker
from pvs_model.batch.outputs import ReportOptions, ResultWriter
from pvs_model.batch.worker import RunConfig, TaskResult, segment_case
from pvs_model.config import BatchConfig
from pvs_model.errors import DeviceError, PVSError, VolumeError
from pvs_model.files import PART
from pvs_model.layouts import choose
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case
from tests import processes
from tests.processes import Python, fork_server

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
CASES = ("site1/a", "site1/b", "site2/c", "site2/d", "site2/e")
BAD = "site1/bad"
DEVICE = ("--device", "cpu", "--backend", "torch")  # the quickest to start


def contents(folder: Path) -> dict[str, Any]:
    """Files by name: bytes; JSON and pages without seconds, which differ from run to run; no records of runs."""
    files: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name == "run.json" or path.parent.name == "runs":
            continue
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".json":
            files[name] = json.loads(path.read_text())
            for metadata in (files[name], files[name].get("metadata") or {}):
                metadata.pop("seconds", None)
        elif path.suffix == ".html":
            files[name] = re.sub(r"\d+(\.\d+)? s\b", "", path.read_text())
        else:
            files[name] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def source(write_body: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small cases, each different, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("in")
    for number, name in enumerate(CASES):
        stem = folder / name / f"{Path(name).name}_{{}}.nii.gz"
        write_body(stem, ("T1w", "T2w"), spacing_mm=(1.0, 1.0, 1.0 + 0.1 * number))
    (folder / BAD).mkdir()
    (folder / BAD / "bad_T2w.nii.gz").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def bids(write_body: Callable[..., dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids")
    for name in ("sub-1", "sub-2"):
        write_body(folder / name / "anat" / f"{name}_{{}}.nii.gz", ("T2w",))
    return folder


@pytest.fixture(scope="module")
def single(source: Path, bids: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``process.py`` writes: ``epvs``, ``bids``, and ``epvs_report``, ``bids_report``."""
    folder = tmp_path_factory.mktemp("single")
    code = (
        "import sys, process\n"
        "where, weights, *sources = sys.argv[1:]\n"
        "for name, source in zip(('epvs', 'bids'), sources):\n"
        "    process.main(['--input', source, '--output', f'{where}/{name}', '--weights', weights, '--device', 'cpu',\n"
        "                  '--backend', 'torch', '--report', f'{where}/{name}_report'])\n"
    )
    assert processes.run([str(folder), str(weights), str(source), str(bids)], code).returncode == 0
    assert len(list(folder.rglob("*_pred.nii.gz"))) == len(CASES)
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler as somebody else may have started it, with all of Dask's own defaults, and two workers.

    Only that the workers are forked from a server, which saves the import of PyTorch at each start.
    """
    import dask

    fork_server()
    with (
        dask_clusters.dask_logs_redirected(None),
        dask_clusters._environment_restored(),
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
    ):
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL, memory_limit=0,
            preload=["pvs_model.batch.worker"],
        ) as local:  # fmt: skip
            # A nanny gives up on a worker that is killed while it starts: adapting replaces it.
            local.adapt(minimum=2, maximum=2)
            yield local.scheduler_address


def cohort(source: Path, output: Path, weights: Path, *more: str) -> int:
    return cli.main(["cohort", str(source), str(output), "--weights", str(weights), *DEVICE, *more])


def alive(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    import psutil

    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def killed_once(config: RunConfig, case: Case) -> TaskResult:
    """The first worker that takes c dies in the middle of it."""
    marker = config.output.parent / "killed"
    if case.name.endswith("c") and not marker.exists():
        marker.touch()
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        segment_case(config, case)
        time.sleep(60)
    return segment_case(config, case)


def dies_writing(config: RunConfig, case: Case) -> TaskResult:
    """The worker dies between a mask and its place."""
    (config.output / case.output).parent.mkdir(parents=True)
    hidden = (config.output / case.output).parent / f"{PART}x"
    hidden.mkdir()
    (hidden / "part.nii.gz").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
    return TaskResult()


def kills_always(config: RunConfig, case: Case) -> TaskResult:
    if case.name.endswith("c"):
        with (config.output.parent / "deaths").open("a") as file:
            file.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return segment_case(config, case)


# ---- the same as on one machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["epvs", "bids"])
def test_masks_and_tables_are_those_of_one_machine(
    form: str, source: Path, bids: Path, single: Path, weights: Path, address: str, tmp_path: Path, capfd: Any
) -> None:
    output, report = tmp_path / "out", tmp_path / "rep"
    given = source if form == "epvs" else bids
    code = cohort(given, output, weights, "--scheduler", address, "--report", str(report))
    assert contents(output) == contents(single / form)
    ours, theirs = contents(report), contents(single / f"{form}_report")
    assert ours.keys() == theirs.keys() and {"burden.csv", "pvs.csv", "index.html"} <= ours.keys()
    assert ours == theirs
    runs = [json.loads((folder / "run.json").read_text()) for folder in (report, single / f"{form}_report")]
    states, expected = ([(c["case"], c["state"], c.get("voxels")) for c in run["cases"]] for run in runs)
    assert states == expected and all("host" in case for case in runs[0]["cases"] if case["state"] == "written")
    err = capfd.readouterr().err
    if form == "bids":
        assert code == 0 and err == "" and "dataset_description.json" in contents(output)
    else:
        assert code == 1
        assert err.startswith(f"error: {BAD}: ") and "bad_T2w.nii.gz" in err and err.count("\n") == 1


def test_every_case_is_one_line_and_the_throughput_is_logged(
    source: Path, weights: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "log"
    with caplog.at_level(logging.INFO):
        assert cohort(source, tmp_path / "out", weights, "--scheduler", address, "--log", str(log)) == 1
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("pvs_model")]
    assert sum(": wrote " in line for line in messages) == len(CASES)
    assert sum(line.startswith(f"{BAD}: ") for line in messages) == 1
    assert re.fullmatch(r"5 cases written, 1 failed, in \d+ s: \d+\.\d cases per hour", messages[-1])
    # The scheduler of this test lives in its process, and speaks again when the run is over.
    last = max(k for k, record in enumerate(caplog.records) if record.name.startswith("pvs_model"))
    assert not [r for r in caplog.records[:last] if r.name.startswith(("distributed", "tornado"))]
    kept = log.read_text()
    assert "site1/a: wrote" in kept and re.search(r"INFO site1/a: predict \(3d, .* s\n", kept)


# ---- a second run --------------------------------------------------------------------------------------------------


def test_resuming_runs_what_is_missing_and_completes_the_tables(
    source: Path, single: Path, weights: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = Path(shutil.copytree(single / "epvs", tmp_path / "out"))
    report = Path(shutil.copytree(single / "epvs_report", tmp_path / "rep"))
    (output / "site1/b/b_pred.nii.gz").unlink()
    (report / "cases/site2/d.json").unlink()
    (report / "burden.csv").unlink()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    with caplog.at_level(logging.INFO):
        assert cohort(source, output, weights, "--scheduler", address, "--report", str(report), "--resume") == 1
    assert sum(": wrote " in line for line in caplog.messages) == 2
    assert {p.stem.split("_")[0] for p, t in before.items() if p.stat().st_mtime_ns != t} == {"d"}
    assert contents(output) == contents(single / "epvs") and contents(report) == contents(single / "epvs_report")


def test_nothing_left_to_do_needs_no_worker(bids: Path, single: Path, weights: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(single / "bids", tmp_path / "out"))
    report = Path(shutil.copytree(single / "bids_report", tmp_path / "rep"))
    nowhere = ["--scheduler", "tcp://127.0.0.1:1", "--resume", "--report", str(report)]
    assert cohort(bids, output, weights, *nowhere) == 0
    assert contents(report) == contents(single / "bids_report")


# ---- workers that die ----------------------------------------------------------------------------------------------


def test_the_case_of_a_killed_worker_is_run_by_another(
    source: Path, single: Path, weights: Path, address: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, reports, cluster = (
        tmp_path / "out",
        ReportOptions(tmp_path / "rep"),
        partial(dask_clusters.existing, address=address),
    )
    with caplog.at_level(logging.WARNING):
        failures = batch_dask.run(
            source, output, BatchConfig(weights, "cpu", "torch"), cluster, reports=reports, segment=killed_once
        )
    assert (tmp_path / "killed").exists()
    assert "site2/c: its worker died once while running it (out of memory?); it is tried again" in caplog.messages
    assert [failure.split(":")[0] for failure in failures] == [BAD]
    assert contents(output) == contents(single / "epvs")
    assert contents(reports.folder) == contents(single / "epvs_report")


def test_a_case_that_always_kills_is_reported_and_the_rest_is_run(
    source: Path, single: Path, weights: Path, address: str, tmp_path: Path
) -> None:
    output, reports, cluster = (
        tmp_path / "out",
        ReportOptions(tmp_path / "rep"),
        partial(dask_clusters.existing, address=address),
    )
    failures = batch_dask.run(
        source,
        output,
        BatchConfig(weights, "cpu", "torch"),
        cluster,
        reports=reports,
        segment=kills_always,
    )
    assert failures[1:] == ["site2/c: its worker died 3 times while running it (out of memory?)"]
    assert len(set((tmp_path / "deaths").read_text().split())) == 3
    expected = {name: mask for name, mask in contents(single / "epvs").items() if "/c/" not in name}
    assert contents(output) == expected
    rows = [row.split(",")[0] for row in (reports.folder / "burden.csv").read_text().splitlines()[1:]]
    assert sorted(set(rows)) == [name for name in CASES if name != "site2/c"] and rows == sorted(rows)
    assert json.loads((reports.folder / "cases/site2/c.json").read_text())["problem"] == failures[1]


def test_what_a_killed_worker_leaves_is_removed(bids: Path, weights: Path, address: str, tmp_path: Path) -> None:
    cluster = partial(dask_clusters.existing, address=address)
    config = BatchConfig(weights)
    failures = batch_dask.run(bids, tmp_path / "out", config, cluster, retries=0, segment=dies_writing)
    assert [failure.partition(":")[2] for failure in failures] == [
        " its worker died once while running it (out of memory?)"
    ] * 2
    assert list(contents(tmp_path / "out")) == ["dataset_description.json"]


# ---- stopped -------------------------------------------------------------------------------------------------------


def first_only(config: RunConfig, case: Case) -> TaskResult:
    """All cases but the first take until the worker is stopped."""
    if case.name != "site1/a":
        threading.Event().wait()
    return segment_case(config, case)


STOPPED = """
import sys
from functools import partial
sys.path.insert(0, "tests/batch")
import test_dask
from pvs_model.commands import cohort
from pvs_model.batch import dask
dask.run = partial(dask.run, segment=test_dask.first_only)
from pvs_model import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopped_by_a_signal(source: Path, single: Path, weights: Path, tmp_path: Path, number: signal.Signals) -> None:
    output, report = tmp_path / "out", tmp_path / "rep"
    words = ["cohort", str(source), str(output), "--weights", str(weights), *DEVICE]
    words += ["--workers", "1", "--threads", "1", "--report", str(report)]
    with Python(STOPPED, words) as ran:
        for line in ran.stdout:
            if ": wrote" in line:
                # Ctrl-C reaches every process of the terminal, SIGTERM the one that it is sent to.
                os.killpg(ran.pid, number) if number == signal.SIGINT else ran.send_signal(number)
                break
        ran.stdout.read()
        err = ran.stderr.read()
    assert ran.returncode == 130
    assert err == "error: stopped; masks already written are complete, --resume does the rest\n"
    name = "site1/a/a_pred.nii.gz"
    assert contents(output) == {name: contents(single / "epvs")[name]}
    assert {row.split(",")[0] for row in (report / "burden.csv").read_text().splitlines()[1:]} == {"site1/a"}
    while alive(ran.pid):
        time.sleep(0.1)


def test_a_signal_sets_the_event_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    # An exception in a signal handler was lost once, in Dask's Future.__del__: the run continued.
    class Deleted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with batch_dask._interruptible() as interrupted:
        thing = Deleted()
        del thing
        assert interrupted.is_set()
    assert signal.getsignal(signal.SIGTERM) is before and capfd.readouterr().err == ""


def test_an_interrupted_run_starts_no_case(source: Path, weights: Path, address: str, tmp_path: Path) -> None:
    @contextlib.contextmanager
    def interrupted(cases: int) -> Iterator[Any]:
        with dask_clusters.existing(cases, address) as client:
            signal.raise_signal(signal.SIGTERM)
            yield client

    with pytest.raises(KeyboardInterrupt):
        batch_dask.run(source, tmp_path / "out", BatchConfig(weights), interrupted, segment=stale)
    assert not contents(tmp_path / "out")


# ---- transient errors, and unusable workers ------------------------------------------------------------------------


@pytest.fixture
def config(source: Path, weights: Path, tmp_path: Path) -> RunConfig:
    output = tmp_path / "out"
    output.mkdir()
    manifest = worker.manifest_sha256(weights)
    inference = BatchConfig(weights, "cpu", "torch")
    return RunConfig(source, output, inference, choose(source), None, __version__, manifest)


@pytest.fixture
def case(config: RunConfig) -> Case:
    return next(case for case in config.layout.find_cases(config.source) if case.name == "site1/a")


def stale(config: RunConfig, case: Case) -> TaskResult:
    """Fails twice for each case, as a network file system may."""
    marker = config.output / f"{Path(case.name).name}.tries"
    tries = len(marker.read_bytes()) if marker.exists() else 0
    marker.write_bytes(b"." * (tries + 1))
    return TaskResult(problem=f"{case.name}: stale", transient=True) if tries < 2 else TaskResult(path=marker)


@pytest.mark.parametrize(("retries", "failed"), [(2, 0), (1, 6)])
def test_a_transient_error_is_tried_again(
    source: Path, weights: Path, address: str, tmp_path: Path, retries: int, failed: int
) -> None:
    cluster = partial(dask_clusters.existing, address=address)
    config = BatchConfig(weights)
    failures = batch_dask.run(source, tmp_path / "out", config, cluster, retries=retries, segment=stale)
    assert len(failures) == failed
    assert all(failure.endswith(": stale") for failure in failures)


def test_which_errors_are_transient() -> None:
    def wrapped(number: int) -> VolumeError:
        try:
            try:
                raise OSError(number, os.strerror(number))
            except OSError as inner:
                raise VolumeError("expected to write the image") from inner
        except VolumeError as outer:
            return outer

    assert worker.is_transient(OSError(errno.ESTALE, "")) and worker.is_transient(wrapped(errno.EIO))
    assert not worker.is_transient(wrapped(errno.ENOSPC)) and not worker.is_transient(VolumeError("no image"))
    assert not worker.is_transient(FileNotFoundError(errno.ENOENT, ""))


def test_another_version_other_weights_or_folders_are_worker_errors(
    config: RunConfig, case: Case, tmp_path: Path
) -> None:
    for changed, message in (
        (replace(config, version="0.0.1"), "expected pvs_model 0.0.1"),
        (replace(config, manifest="0" * 64), "expected the weights that the run was started with"),
        (replace(config, source=tmp_path / "none"), "expected a folder shared by all machines"),
        (replace(config, inference=BatchConfig(tmp_path)), "expected the manifest of the weights"),
    ):
        result = segment_case(changed, case)
        assert result.worker_error is not None and message in result.worker_error and result.path is None


def test_a_lost_gpu_is_a_worker_error(config: RunConfig, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: Segmenter, case: Case) -> None:
        raise DeviceError("--device cuda: expected a GPU that works, got: CUDA error")

    monkeypatch.setattr(Segmenter, "segment", lost)
    assert segment_case(config, case).worker_error is not None


def test_a_transient_error_before_the_case_leaves_the_worker_usable(
    config: RunConfig, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_dir(self: Path) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "is_dir", is_dir)
    result = segment_case(config, case)
    assert result.worker_error is None and result.transient and "Stale file handle" in str(result.problem)


def test_a_bug_is_returned_as_a_sentence(config: RunConfig, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Segmenter, case: Case) -> None:
        logging.getLogger("pvs_model.pipeline").warning("look out")
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(Segmenter, "segment", wrong)
    result = segment_case(config, case)
    assert result.problem == "site1/a: unexpected ZeroDivisionError: by zero" and not result.transient
    assert result.messages[0] == (logging.WARNING, "look out") and "Traceback" in result.messages[1][1]


def first_is_unusable(config: RunConfig, case: Case) -> TaskResult:
    """The worker that takes the first case cannot run any; the other can."""
    first = config.output / "first"
    with contextlib.suppress(FileExistsError):
        first.symlink_to(str(os.getpid()))
    if os.readlink(first) == str(os.getpid()):
        with (config.output / "unusable").open("a") as file:
            file.write(f"{case.name}\n")
        return TaskResult(worker_error="expected pvs_model 9, got 8")
    return TaskResult(path=config.output)


def all_are_unusable(config: RunConfig, case: Case) -> TaskResult:
    return TaskResult(worker_error="expected pvs_model 9, got 8")


def test_an_unusable_worker_gets_no_further_case(
    source: Path, weights: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, config = partial(dask_clusters.existing, address=address), BatchConfig(weights)
    monkeypatch.setattr(scheduling, "UNUSABLE_TIMEOUT_S", float("inf"))  # the other may be starting for long
    assert batch_dask.run(source, tmp_path / "out", config, cluster, segment=first_is_unusable) == []
    assert len((tmp_path / "out" / "unusable").read_text().splitlines()) == 1
    monkeypatch.setattr(scheduling, "UNUSABLE_TIMEOUT_S", 0.0)
    with pytest.raises(PVSError, match=r"^worker tcp://\S+: expected pvs_model 9, got 8$"):
        batch_dask.run(source, tmp_path / "out2", config, cluster, segment=all_are_unusable)


def one_is_written(config: RunConfig, case: Case) -> TaskResult:
    """The worker that takes the first case writes it, and cannot run any other; nor can other workers."""
    with contextlib.suppress(FileExistsError):
        (config.output / "first").symlink_to(case.name)
        return TaskResult(path=config.output)
    return TaskResult(worker_error="expected a GPU that works")


def test_cases_without_a_usable_worker_are_reported(
    source: Path, weights: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "UNUSABLE_TIMEOUT_S", 0.0)
    cluster = partial(dask_clusters.existing, address=address)
    failures = batch_dask.run(source, tmp_path / "out", BatchConfig(weights), cluster, segment=one_is_written)
    written = os.readlink(tmp_path / "out" / "first")
    assert [failure.split(": not run, worker tcp://")[0] for failure in failures] == [
        name for name in (*CASES[:2], BAD, *CASES[2:]) if name != written
    ]


def test_a_function_that_a_worker_cannot_load(
    source: Path, weights: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strange:
        def __call__(self, config: RunConfig, case: Case) -> TaskResult:
            raise NotImplementedError

        def __reduce__(self) -> Any:
            return __import__, ("no_such_package",)

    monkeypatch.setattr(scheduling, "UNUSABLE_TIMEOUT_S", 0.0)
    message = "expected pvs_model and Dask on workers and scheduler as they are here, got ModuleNotFoundError"
    cluster = partial(dask_clusters.existing, address=address)
    with pytest.raises(PVSError, match=message):
        batch_dask.run(source, tmp_path / "out", BatchConfig(weights), cluster, segment=Strange())


# ---- nothing can be run --------------------------------------------------------------------------------------------


def test_without_the_extra_one_sentence(
    source: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cohort(source, tmp_path / "out", weights) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: expected the packages that a cluster needs, got no distributed: pip install -r")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scheduler", "tcp://127.0.0.1:1"], "error: --scheduler tcp://127.0.0.1:1: expected a Dask scheduler that"),
        (["--slurm", "cores=4", "memory=8GB"], "error: --slurm: expected Slurm's sbatch on this machine, got none"),
        (["--workers", "0"], "error: --workers: expected 1 or more, got 0"),
        (["--workers", "2", "--scheduler", "tcp://a:1"], "error: --workers: expected it for workers of this machine"),
        (["--gpus"], "error: --gpus: expected a CUDA device, got none"),
        (["--report", "{out}/rep"], "expected a folder for reports outside that of the masks"),
        (["--weights", "{out}"], "MANIFEST.json: expected the manifest of the weights"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(
    more: list[str], message: str, source: Path, weights: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(dask_clusters, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert cohort(source, tmp_path / "out", weights, *(word.format(out=tmp_path / "out") for word in more)) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


# ---- clusters ------------------------------------------------------------------------------------------------------


def test_local_workers_listen_here_only_and_have_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(dask_clusters, "visible_gpus", lambda: ["3", "GPU-5"])
    before = dict(os.environ)
    mine = {connection.laddr for connection in psutil.Process().net_connections("inet")}
    with dask_clusters.dask_logs_redirected(None), dask_clusters.local(9, gpus=True) as client:
        client.wait_for_workers(2)
        devices = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(devices.values()) == ["3", "GPU-5"]
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {place.ip for place in listening if place not in mine} == {"127.0.0.1"}
    assert dict(os.environ) == before


def test_the_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert dask_clusters.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-abc")
    assert dask_clusters.visible_gpus() == ["2", "GPU-abc"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cores=4"], "memory"),
        (["cores=4", "memory=8GB", "queu=long"], "queu"),
        (["cores=many", "memory=8GB"], "many"),
        (["cores"], "expected 2"),
    ],
)
def test_parameters_that_slurm_does_not_have(
    words: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = f"^--slurm {' '.join(words)}: expected jobs=N and parameters of dask_jobqueue.SLURMCluster .*{reason}"
    with dask_clusters.dask_logs_redirected(None), pytest.raises(PVSError, match=message):
        dask_clusters.slurm_cluster(words)


def test_the_job_script_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # Dask makes the folder for logs
    words = ["jobs=20", "queue=long", "account=brain", "cores=8", "memory=16GB", "walltime=08:00:00"]
    words += ["directive=--gres=gpu:1", "directive=--exclude=node7", "prologue=module load cuda", "interface=lo"]
    with dask_clusters.dask_logs_redirected(None):
        cluster, jobs = dask_clusters.slurm_cluster(words)
        with cluster:
            lines = cluster.job_script().splitlines()
    assert jobs == 20 and lines[0] == "#!/usr/bin/env bash"
    for line in ("-p long", "-A brain", "-n 1", "--cpus-per-task=8", "--mem=15G", "-t 08:00:00", "--gres=gpu:1",
                 "--exclude=node7"):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    assert lines.index("module load cuda") < len(lines) - 1
    assert any(line.startswith(f"export PYTHONPATH={ROOT}") for line in lines)
    last = lines[-1]
    assert f"{sys.executable} -m distributed.cli.dask_worker tcp://" in last
    assert "--nthreads 8" in last and "--nworkers" not in last and last.endswith("--memory-limit 0 --interface lo")


@pytest.mark.slow
def test_jobs_of_a_substitute_for_slurm(
    source: Path, single: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sbatch`` and ``scancel`` that start and end the job's script here: all of it but Slurm itself."""
    tools = tmp_path / "bin"
    tools.mkdir()
    # Dask removes its script as soon as sbatch returns.
    (tools / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tools}/job.$$\nsetsid bash {tools}/job.$$ >{tools}/out.$$ 2>&1 &\n'
        f"echo $! > {tools}/pid.$$\necho Submitted batch job $$\n"
    )
    (tools / "scancel").write_text(f"#!/bin/sh\necho $1 >> {tools}/cancelled\nkill -- -$(cat {tools}/pid.$1)\n")
    for tool in tools.iterdir():
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    slurm = ["--slurm", "jobs=2", "cores=1", "memory=2GB", "interface=lo"]
    assert cohort(source, tmp_path / "out", weights, *slurm) == 1
    assert contents(tmp_path / "out") == contents(single / "epvs")
    assert len((tools / "cancelled").read_text().split()) == 2
    assert (tmp_path / "slurm-logs").is_dir()


# ---- what is shown -------------------------------------------------------------------------------------------------


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    cases = [Case(name, {}, Path(name)) for name in ("a", "b\x1b", "c")]
    writer = ResultWriter(cases, completed=1)
    with batch_dask._progress(writer) as update:
        writer.add(cases[0], Path("a"), 5, 0.1)
        writer.fail(cases[1], "b\x1b: no image")
        update()
    assert "100%" in terminal.getvalue() and "3/3" in terminal.getvalue()
    assert "failed=1, left=0" in terminal.getvalue()
    assert writer.close() == ["b\\x1b: no image"]

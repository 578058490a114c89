"""Segments every case of a folder on the workers of a Dask cluster, one case per worker at a time.

A worker writes the files of its case. Files that cases share are written by the process that started the run.
Each case is submitted to one named worker: Dask by itself assigns further cases ahead, and counts a worker's death
against all of them.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.batch.clusters import dask_logs_redirected
from pvs_model.batch.inputs import Part, find_cases, log_missing_weights
from pvs_model.batch.outputs import Reports, ResultWriter
from pvs_model.batch.run_record import write_run_record
from pvs_model.batch.worker import RunConfig, TaskResult, manifest_sha256, segment_case
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError, escape_control_characters
from pvs_model.files import remove_abandoned
from pvs_model.layouts import Options
from pvs_model.types import Case

log = logging.getLogger(__name__)
#: Messages for the log file only: stages and tracebacks.
detail = logging.getLogger(f"{__name__}.detail")

#: Interval at which lost and new workers are noticed, s.
POLL_S = 1.0
#: Time to fetch a result from its worker, s.
RESULT_TIMEOUT_S = 60.0
#: Time that a run waits for a usable worker while all present ones are unusable, s.
UNUSABLE_TIMEOUT_S = 60.0
#: Time within which a network file system shows the files of another machine, s.
VISIBLE_WITHIN_S = 90.0

Segment = Callable[[RunConfig, Case], TaskResult]


def run(
    source: Path,
    output: Path,
    settings: InferenceConfig,
    cluster: Callable[[int], AbstractContextManager[Any]],
    layout_name: str | None = None,
    options: Options | None = None,
    reports: Reports | None = None,
    part: Part | None = None,
    retries: int = 2,
    log_file: Path | None = None,
    segment: Segment = segment_case,
) -> list[str]:
    """Segments every case of a folder on a cluster. Failed cases are logged; the remaining cases continue.

    Arguments, result and errors are those of ``batch.local.run``. All folders have the same absolute paths on every
    worker.

    Args:
        cluster: Starts workers for a number of cases, and provides a ``distributed.Client`` (``batch.clusters``).
        retries: Number of further attempts at a case after its worker died or after a transient error.
        log_file: File for the messages of Dask, the stages of every case, and tracebacks.
        segment: Function that a worker calls for each case.
    """
    with dask_logs_redirected(log_file, detail), _interruptible() as interrupted:
        source, output = source.absolute(), output.absolute()
        settings = replace(settings, weights=settings.weights.absolute())
        reports = None if reports is None else replace(reports, folder=reports.folder.absolute())
        layout, cases = find_cases(source, output, layout_name, options, reports, part)
        config = RunConfig(source, output, settings, layout, reports, __version__, manifest_sha256(settings.weights))
        log_missing_weights(settings)
        writer = ResultWriter.open(cases, layout, output, reports, settings.resume)
        scheduling = _Scheduling(config, writer, retries, segment, interrupted)
        try:
            if writer.pending:
                with cluster(len(writer.pending)) as client, _progress(writer) as scheduling.update_progress:
                    with client.as_current():
                        scheduling.run(client)
        except _ClusterError as error:
            if not writer.written:
                raise
            scheduling.fail_remaining(error)
        finally:  # also when stopped: the workers have ended, and what they have written is kept
            for case in scheduling.interrupted_cases():
                _remove_partial_files(case, config)
            _wait_for_reports(writer)
            failures = writer.close()
            write_run_record(writer, layout, source, output, settings, part)
        return failures


class _ClusterError(PVSError):
    """No worker can run the remaining cases."""


@dataclass
class _Attempt:
    """A case in the queue or on a worker.

    Attributes:
        case: The case.
        worker: Address of the worker that runs it.
        deaths: Number of workers that died while running it.
        failed_on: Addresses of the workers on which it failed.
    """

    case: Case
    worker: str = ""
    deaths: int = 0
    failed_on: list[str] = field(default_factory=list)


class _Scheduling:
    """Assigns cases to workers, and repeats those of workers that died."""

    def __init__(
        self, config: RunConfig, writer: ResultWriter, retries: int, segment: Segment, interrupted: threading.Event
    ) -> None:
        self.config, self.writer, self.retries, self.segment = config, writer, retries, segment
        self.interrupted = interrupted
        self.update_progress: Callable[[], None] = lambda: None
        self.queue = deque(map(_Attempt, writer.pending))
        self.running: dict[Any, _Attempt] = {}  # by Dask's future
        self.died_with: list[Case] = []  # cases whose worker died
        self.unusable: dict[str, str] = {}  # error of workers that cannot run any case, by address

    def run(self, client: Any) -> None:
        """Runs until every case is written or has failed.

        Raises:
            PVSError: No worker can run the remaining cases.
        """
        waiting_since: float | None = None
        while self.queue or self.running:
            if self.interrupted.is_set():
                raise KeyboardInterrupt
            try:
                workers = set(client.nthreads())
            except (OSError, TimeoutError) as error:
                raise _ClusterError(f"expected a Dask scheduler that answers, got: {error or 'none'}") from error
            self._assign(client, workers)
            unusable = sorted(workers & self.unusable.keys())
            if self.running:
                waiting_since = None
            elif waiting_since is None:
                waiting_since = time.monotonic()
                log.info("waiting for a worker; cases left: %d", len(self.queue))
            elif unusable and time.monotonic() - waiting_since > UNUSABLE_TIMEOUT_S:
                raise _ClusterError(self.unusable[unusable[0]])
            self._collect(workers)

    def _assign(self, client: Any, workers: set[str]) -> None:
        """Submits a case to each free worker. A failed case goes to a worker on which it has not failed, if any."""
        usable = workers - self.unusable.keys()
        for address in sorted(usable - {attempt.worker for attempt in self.running.values()}):
            fitting = (a for a in self.queue if address not in a.failed_on or usable <= set(a.failed_on))
            if (attempt := next(fitting, None)) is not None:
                self.queue.remove(attempt)
                attempt.worker = address
                future = client.submit(self.segment, self.config, attempt.case, workers=[address], pure=False)
                self.running[future] = attempt

    def _collect(self, workers: set[str]) -> None:
        """Waits for a result, and takes those that are there, and the cases of workers that are not."""
        from distributed import wait

        if not self.running:
            time.sleep(POLL_S)
            return
        with suppress(TimeoutError, CancelledError):
            wait(list(self.running), POLL_S, "FIRST_COMPLETED")
        for future, attempt in list(self.running.items()):
            if future.status != "pending":
                self._receive(future, self.running.pop(future))
            elif attempt.worker not in workers:
                future.cancel()
                self._worker_died(self.running.pop(future))
        self.update_progress()

    def _receive(self, future: Any, attempt: _Attempt) -> None:
        from distributed.scheduler import KilledWorker

        name = attempt.case.name
        try:
            result = future.result(timeout=RESULT_TIMEOUT_S)
        except (KilledWorker, TimeoutError):  # the latter where the result was lost with its worker
            return self._worker_died(attempt)
        except CancelledError:  # the scheduler was restarted
            return self.queue.appendleft(attempt)
        except Exception as error:  # the worker could not even load the function
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            got = f"{type(cause).__name__}: {' '.join(str(cause).split())}"
            expected = "expected pvs_model and Dask on workers and scheduler as they are here"
            result = TaskResult(worker_error=f"{expected}, got {got}")
        for level, message in result.messages:
            logger = log if level > logging.INFO else detail
            logger.log(level, "%s", message if level == logging.DEBUG else escape_control_characters(message))
        if result.worker_error is not None:
            self.unusable[attempt.worker] = escape_control_characters(f"worker {attempt.worker}: {result.worker_error}")
            log.error("%s", self.unusable[attempt.worker])
            self.queue.appendleft(attempt)
        elif result.path is None:
            self._repeat(attempt, result.problem or f"{name}: no mask was written", result.transient)
        else:
            self.writer.add(attempt.case, result.path, result.voxels, result.seconds, result.host)
        return None

    def _worker_died(self, attempt: _Attempt) -> None:
        self.died_with.append(attempt.case)
        attempt.deaths += 1
        times = "once" if attempt.deaths == 1 else f"{attempt.deaths} times"
        self._repeat(attempt, f"{attempt.case.name}: its worker died {times} while running it (out of memory?)", True)

    def _repeat(self, attempt: _Attempt, problem: str, transient: bool) -> None:
        attempt.failed_on.append(attempt.worker)
        if transient and len(attempt.failed_on) <= self.retries:
            log.warning("%s; it is tried again", escape_control_characters(problem))
            self.queue.append(attempt)  # after all others
        else:
            self.writer.fail(attempt.case, problem)

    def fail_remaining(self, error: PVSError) -> None:
        """Records all cases that are not finished as failed."""
        for attempt in (*self.running.values(), *self.queue):
            self.writer.fail(attempt.case, f"{attempt.case.name}: not run, {error}")

    def interrupted_cases(self) -> list[Case]:
        """Returns the cases whose worker died, or that were running when the run ended."""
        return [*self.died_with, *(attempt.case for attempt in self.running.values())]


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Sets an event on SIGTERM and Ctrl-C. An exception could be lost in a finaliser of Dask."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: interrupted.set()) for number in signals}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(writer: ResultWriter) -> Iterator[Callable[[], None]]:
    """Shows a progress bar on a terminal, which the yielded function updates, and logs the throughput at the end."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    began = time.monotonic()
    terminal = sys.stderr.isatty()
    bar = tqdm(total=len(writer.cases), unit=" cases", disable=not terminal)

    def update() -> None:
        bar.set_postfix(failed=len(writer.failures), left=len(writer.cases) - writer.finished, refresh=False)
        bar.update(writer.finished - bar.n)

    with logging_redirect_tqdm() if terminal else nullcontext(), bar:
        update()
        yield update
    hours = (time.monotonic() - began) / 3600
    rate = (writer.written + len(writer.failures)) / max(hours, 1e-9)
    message = "%d cases written, %d failed, in %.0f s: %.1f cases per hour"
    log.info(message, writer.written, len(writer.failures), hours * 3600, rate)


def _remove_partial_files(case: Case, config: RunConfig) -> None:
    """Removes hidden files that a killed worker left of a case. Those of other writers are locked."""
    parents = {(config.output / case.output).parent}
    if config.reports is not None:
        parents |= {(config.reports.folder / place / case.name).parent for place in ("cases", "probability")}
    for parent in parents:
        remove_abandoned(parent, older_than_s=-math.inf)


def _wait_for_reports(writer: ResultWriter) -> None:
    """Waits until the reports that workers have written are visible here."""
    until = time.monotonic() + VISIBLE_WITHIN_S
    for name in writer.reported:
        while writer.report is not None and not writer.report.has(name) and time.monotonic() < until:
            time.sleep(0.5)

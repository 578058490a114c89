"""Assigns the cases of a run to the workers of a Dask cluster.

Each case is submitted to one named worker: Dask by itself assigns further cases ahead, and counts a worker's death
against all of them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pvs_model.batch.outputs import ResultWriter
from pvs_model.batch.worker import RunConfig, TaskResult
from pvs_model.errors import PVSError, escape_control_characters, one_line
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

Segment = Callable[[RunConfig, Case], TaskResult]


class ClusterError(PVSError):
    """No worker can run the remaining cases."""


@dataclass
class Attempt:
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


class Scheduling:
    """Assigns cases to workers, and repeats those of workers that died."""

    def __init__(
        self, config: RunConfig, writer: ResultWriter, retries: int, segment: Segment, interrupted: threading.Event
    ) -> None:
        self.config, self.writer, self.retries, self.segment = config, writer, retries, segment
        self.interrupted = interrupted
        self.update_progress: Callable[[], None] = lambda: None
        self.queue = deque(map(Attempt, writer.pending))
        self.running: dict[Any, Attempt] = {}  # by Dask's future
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
                raise ClusterError(f"expected a Dask scheduler that answers, got: {error or 'none'}") from error
            self._assign(client, workers)
            unusable = sorted(workers & self.unusable.keys())
            if self.running:
                waiting_since = None
            elif waiting_since is None:
                waiting_since = time.monotonic()
                log.info("waiting for a worker; cases left: %d", len(self.queue))
            elif unusable and time.monotonic() - waiting_since > UNUSABLE_TIMEOUT_S:
                raise ClusterError(self.unusable[unusable[0]])
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

    def _receive(self, future: Any, attempt: Attempt) -> None:
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
            got = f"{type(cause).__name__}: {one_line(cause)}"
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

    def _worker_died(self, attempt: Attempt) -> None:
        self.died_with.append(attempt.case)
        attempt.deaths += 1
        times = "once" if attempt.deaths == 1 else f"{attempt.deaths} times"
        self._repeat(attempt, f"{attempt.case.name}: its worker died {times} while running it (out of memory?)", True)

    def _repeat(self, attempt: Attempt, problem: str, transient: bool) -> None:
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

"""Every case of a folder on the workers of a cluster: one case a worker, and only this process writes what cases share.

Which worker runs which case is decided here and not by Dask, which hands a worker further cases ahead: when that worker
dies it counts the death against all of them, and one case that takes all memory would take others down with it.
"""

from __future__ import annotations

import logging
import math
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pvs_model import __version__
from pvs_model.cohort.case import Reports, printable, todo_of
from pvs_model.cohort.engines import Engine, Link, quiet
from pvs_model.cohort.inputs import tell_lacking, tell_passed_over, with_outputs
from pvs_model.cohort.worker import Order, Outcome, Study, manifest_hash, segment
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError
from pvs_model.files import remove_abandoned
from pvs_model.layouts import Options, choose
from pvs_model.types import Case

if TYPE_CHECKING:
    from pvs_model.reports.folder import Report

log = logging.getLogger(__name__)
#: What only a log file keeps: stages and tracebacks, and lines in whose place there is a bar.
detail = logging.getLogger(f"{__name__}.detail")

Work = Callable[[Order], Outcome]

#: How often workers that came and went are looked for, s.
POLL_S = 1.0
#: How often an engine is asked again for workers that it has lost, and how often waiting is told, s.
RENEW_S = 10.0
TELL_S = 60.0
#: A network file system shows the files of another machine within so many seconds.
SEEN_WITHIN_S = 90.0


def run(
    source: Path,
    output: Path,
    settings: InferenceConfig,
    engine: Engine,
    layout_name: str | None = None,
    options: Options | None = None,
    reports: Reports | None = None,
    retries: int = 2,
    log_file: Path | None = None,
    work: Work = segment,
) -> list[str]:
    """Segment every case of a folder on a cluster; a case that fails is told and the others go on.

    Args:
        source: input folder, which every worker sees under the same absolute path, as it does all others.
        output: output folder, made if need be.
        settings: how to run.
        engine: what starts the workers.
        layout_name: one of ``layouts.LAYOUTS``, or None to look at the folder.
        options: suffix and sockets.
        reports: where to write reports, if anywhere.
        retries: how often a case is tried again after its worker died, or after an error that may pass.
        log_file: keeps what Dask logs, the stages of every case, and tracebacks.
        work: what a worker does with a case.

    Returns:
        one sentence per failed case, in the order of cases; empty when every mask was written.

    Raises:
        PVSError: when no case can be run at all.
        KeyboardInterrupt: when it is stopped; what was written is complete, the tables too.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    with quiet(log_file, detail), _stoppable() as stopped:
        source, output = source.absolute(), output.absolute()
        settings = replace(settings, weights=settings.weights.absolute())
        layout = choose(source, layout_name, with_outputs(options, output, reports))
        cases = layout.find_cases(source)
        log.info("%s: %d case%s (%s)", source, len(cases), "" if len(cases) == 1 else "s", layout.name)
        tell_passed_over(source, cases, layout)
        manifest = manifest_hash(settings.weights)
        tell_lacking(settings)
        layout.prepare_output(output)
        if reports is not None:
            reports = replace(reports, folder=reports.folder.absolute())
        report = reports.open(output) if reports is not None else None
        todo = todo_of(cases, layout, output, report, settings.resume)
        study = Study(source, output, settings, layout, reports, __version__, manifest)
        left = list(todo.left)
        desk = _Desk(len(cases), len(todo.done), report, failures=dict(todo.refused))
        try:
            if left:
                with engine.open(len(left)) as link, desk.shown():
                    _Dispatcher(link, study, desk, retries, work, stopped).run(left)
        finally:  # stopped, too: the workers have ended, and what they have written stays
            for case in desk.torn:
                _sweep(case, output, report)
            if report is not None:
                _finish(report, desk.reported)
        if desk.gone is not None and not desk.written:
            raise PVSError(desk.gone)
        order = {case.name: number for number, case in enumerate(cases)}
        return [desk.failures[name] for name in sorted(desk.failures, key=order.__getitem__)]


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C stop a run, once: what follows, down to the tables, is not cut short by a second one.

    The event says so, too: an exception of a signal handler is lost where it meets a finaliser, as Dask has them.
    Python would print it there with its traceback, which says nothing to anybody.
    """
    stopped = threading.Event()
    unraisable = sys.unraisablehook

    def lost(args: sys.UnraisableHookArgs) -> None:
        if not isinstance(args.exc_value, KeyboardInterrupt):
            unraisable(args)

    def stop(number: int, frame: object) -> None:
        if not stopped.is_set():
            stopped.set()
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.unraisablehook = lost
    try:
        yield stopped
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def _sweep(case: Case, output: Path, report: Report | None) -> None:
    """Remove what a worker that was killed left of a case under hidden names; what somebody writes to is locked."""
    parents = {(output / case.output).parent}
    if report is not None:
        parents |= {(report.folder / place / case.name).parent for place in ("cases", "probability")}
    for parent in parents:
        remove_abandoned(parent, older_than_s=-math.inf)


def _finish(report: Report, names: Sequence[str]) -> None:
    """Write tables and index, once the files of all cases that were reported elsewhere can be seen here."""
    until = time.monotonic() + SEEN_WITHIN_S
    for name in names:
        while not report.has(name) and time.monotonic() < until:
            time.sleep(0.5)
    report.finish(names)


@dataclass
class _Desk:
    """Tells what came of each case, and keeps what failed.

    Attributes:
        total: cases in the folder.
        before: cases that an earlier run has finished.
        failures: by name of the case, one sentence each.
        reported: names of the cases whose reports workers have written.
        torn: cases that were being run when a worker died or the run was stopped.
        gone: why the rest could not be run, where all workers were lost.
    """

    total: int
    before: int
    report: Report | None
    written: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    torn: list[Case] = field(default_factory=list)
    gone: str | None = None
    _bar: Any = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A progress bar on a terminal, lines elsewhere; and the throughput at the end."""
        began = time.monotonic()
        if not sys.stderr.isatty():
            yield
        else:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            with logging_redirect_tqdm(), tqdm(total=self.total, initial=self.before, unit=" cases") as self._bar:
                self._tell_bar()
                yield
            self._bar = None
        hours = (time.monotonic() - began) / 3600
        log.info(
            "%d cases written, %d failed, in %.0f s: %.1f cases per hour",
            self.written, len(self.failures), hours * 3600, (self.written + len(self.failures)) / max(hours, 1e-9),
        )  # fmt: skip

    def take(self, case: Case, outcome: Outcome) -> None:
        """A case that was written."""
        self.written += 1
        if self.report is not None:
            self.reported.append(case.name)
        teller = detail if self._bar is not None and sys.stdout.isatty() else log
        teller.info(
            "%s: wrote %s, %d PVS voxels (%d of %d, %.1f s, %s)", printable(case.name), outcome.path,
            outcome.voxels, self.before + self.written + len(self.failures), self.total, outcome.seconds, outcome.host,
        )  # fmt: skip
        self._tell_bar()

    def fail(self, case: Case, sentence: str) -> None:
        """A case that was not, in one sentence."""
        self.failures[case.name] = sentence = printable(sentence)
        log.error("%s", sentence)
        if self.report is not None:
            try:
                self.report.fail(case.name, sentence)
            except (PVSError, OSError) as error:
                log.error("%s", printable(f"{case.name}: its report could not be written: {error}"))
        self._tell_bar()

    def _tell_bar(self) -> None:
        if self._bar is not None:
            finished = self.before + self.written + len(self.failures)
            self._bar.set_postfix(failed=len(self.failures), left=self.total - finished, refresh=False)
            self._bar.update(finished - self._bar.n)


@dataclass
class _Try:
    """A case that is to be run, and what happened to it before.

    Attributes:
        deaths: how many workers died while running it.
        tries: how often it was run to no avail, deaths included.
        tried: addresses of the workers that did.
    """

    case: Case
    deaths: int = 0
    tries: int = 0
    tried: set[str] = field(default_factory=set)


class _Dispatcher:
    """Gives each worker one case at a time, and takes back those of workers that die."""

    def __init__(
        self, link: Link, study: Study, desk: _Desk, retries: int, work: Work, stopped: threading.Event
    ) -> None:
        self.link, self.study, self.desk, self.retries, self.work = link, study, desk, retries, work
        self.stopped = stopped
        self.waiting: deque[_Try] = deque()
        self.running: dict[str, tuple[Any, _Try]] = {}  # by address of the worker; the future of Dask
        self.refused: dict[str, str] = {}
        self.ended: queue.SimpleQueue[tuple[str, Any, Outcome | BaseException]] = queue.SimpleQueue()

    def run(self, cases: Sequence[Case]) -> None:
        """Until every case is written or has failed."""
        self.waiting.extend(_Try(case) for case in cases)
        try:
            self._run()
        finally:
            self.desk.torn.extend(one.case for _, one in self.running.values())

    def _run(self) -> None:
        alone_since = asked = told = time.monotonic()
        while self.waiting or self.running:
            if self.stopped.is_set():
                raise KeyboardInterrupt
            try:
                workers = set(self.link.client.nthreads())
            except (OSError, TimeoutError) as error:
                return self._give_up(f"{self.link.name}: expected a scheduler that goes on, found: {error or 'none'}")
            for address in set(self.running) - workers:
                self._lost(address)
            usable = workers - set(self.refused)
            self._assign(usable)
            moment = time.monotonic()
            if usable:
                alone_since = told = moment
            elif workers and not self.running:
                return self._give_up(next(iter(self.refused.values())))
            elif self.link.patience_s is not None and moment - alone_since > self.link.patience_s:
                return self._give_up(f"{self.link.name}: expected a worker in {self.link.patience_s:g} s, found none")
            elif moment - told > TELL_S:
                told = moment
                log.info("%s: no worker yet, %d cases wait", self.link.name, len(self.waiting))
            if self.waiting and moment - asked > RENEW_S:
                asked = moment
                self.link.renew()
            self._collect()
        return None

    def _assign(self, usable: set[str]) -> None:
        """A case for each free worker; one that was tried goes to a worker that has not, as long as there is any."""
        for address in sorted(usable - set(self.running)):
            fitting = (one for one in self.waiting if address not in one.tried or usable <= one.tried)
            chosen = next(fitting, None)
            if chosen is None:
                continue
            self.waiting.remove(chosen)
            order = Order(self.study, chosen.case)
            future = self.link.client.submit(
                self.work, order, workers=[address], allow_other_workers=False, pure=False, retries=0
            )
            self.running[address] = (future, chosen)
            future.add_done_callback(lambda ended, address=address: self._hear(address, ended))

    def _hear(self, address: str, future: Any) -> None:
        """Called by Dask in a thread of its own."""
        try:
            self.ended.put((address, future, future.result()))
        except BaseException as error:
            self.ended.put((address, future, error))

    def _collect(self) -> None:
        """Take what has ended; wait a little where nothing has."""
        wait: float | None = POLL_S
        with suppress(queue.Empty):
            while True:
                address, future, found = self.ended.get(timeout=wait) if wait else self.ended.get_nowait()
                wait = None
                if address in self.running and self.running[address][0] is future:
                    self._take(address, found)

    def _take(self, address: str, found: Outcome | BaseException) -> None:
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        if isinstance(found, (KilledWorker, FutureCancelledError)):
            return self._lost(address)
        _, one = self.running.pop(address)
        if not isinstance(found, Outcome):  # not even our function could be run there
            while found.__cause__ is not None:
                found = found.__cause__
            said = " ".join(str(found).split())
            found = Outcome(
                refusal="expected pvs_model and Dask on workers and scheduler as they are here, found "
                f"{type(found).__name__}: {said}"
            )
        for level, line in found.told:
            (log if level > logging.INFO else detail).log(level, "%s", printable(line))
        if found.trace:
            detail.error("%s", found.trace)
        if found.refusal is not None:
            self.refused[address] = f"worker {address}: {found.refusal}"
            log.error("%s", printable(self.refused[address]))
            self.waiting.appendleft(one)
        elif found.problem is None:
            self.desk.take(one.case, found)
        else:
            self._again(address, one, found.problem, found.again)
        return None

    def _lost(self, address: str) -> None:
        """The worker died, or its machine did."""
        future, one = self.running.pop(address)
        future.cancel()
        self.desk.torn.append(one.case)
        one.deaths += 1
        times = "once" if one.deaths == 1 else f"{one.deaths} times"
        self._again(address, one, f"{one.case.name}: its worker died {times} while running it (out of memory?)", True)

    def _again(self, address: str, one: _Try, problem: str, may_help: bool) -> None:
        one.tries += 1
        one.tried.add(address)
        if not may_help or one.tries > self.retries:
            return self.desk.fail(one.case, problem)
        log.warning("%s; it is tried again", printable(problem))
        self.waiting.append(one)  # behind all others
        return None

    def _give_up(self, sentence: str) -> None:
        """No worker is left: all other cases fail."""
        self.desk.gone = sentence = printable(sentence)
        if self.desk.written:  # else it is told once
            for one in [*(one for _, one in self.running.values()), *self.waiting]:
                self.desk.fail(one.case, f"{one.case.name}: not run, {sentence}")
        self.waiting.clear()
        self.running.clear()

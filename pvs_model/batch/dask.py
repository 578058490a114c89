"""Segments every case of a folder on the workers of a Dask cluster, one case per worker at a time.

A worker writes the files of its case. Files that cases share are written by the process that started the run.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.batch.dask_clusters import dask_logs_redirected
from pvs_model.batch.inputs import Part, find_cases, log_missing_weights
from pvs_model.batch.outputs import ReportOptions, ResultWriter
from pvs_model.batch.run_record import write_run_record
from pvs_model.batch.scheduling import ClusterError, Scheduling, Segment, detail
from pvs_model.batch.worker import RunConfig, manifest_sha256, segment_case
from pvs_model.config import BatchConfig
from pvs_model.files import remove_abandoned
from pvs_model.layouts import Options
from pvs_model.types import Case

log = logging.getLogger(__name__)
#: Time within which a network file system shows the files of another machine, s.
VISIBLE_WITHIN_S = 90.0


def run(
    source: Path,
    output: Path,
    config: BatchConfig,
    cluster: Callable[[int], AbstractContextManager[Any]],
    layout_name: str | None = None,
    options: Options | None = None,
    reports: ReportOptions | None = None,
    part: Part | None = None,
    retries: int = 2,
    log_file: Path | None = None,
    segment: Segment = segment_case,
) -> list[str]:
    """Segments every case of a folder on a cluster. Failed cases are logged; the remaining cases continue.

    Arguments, result and errors are those of ``batch.local.run``. All folders have the same absolute paths on every
    worker.

    Args:
        cluster: Starts workers for a number of cases, and provides a ``distributed.Client`` (``batch.dask_clusters``).
        retries: Number of further attempts at a case after its worker died or after a transient error.
        log_file: File for the messages of Dask, the stages of every case, and tracebacks.
        segment: Function that a worker calls for each case.
    """
    with dask_logs_redirected(log_file, detail), _interruptible() as interrupted:
        source, output = source.absolute(), output.absolute()
        config = replace(config, weights=config.weights.absolute())
        reports = None if reports is None else replace(reports, folder=reports.folder.absolute())
        layout, cases = find_cases(source, output, layout_name, options, reports, part)
        run_config = RunConfig(source, output, config, layout, reports, __version__, manifest_sha256(config.weights))
        log_missing_weights(config)
        writer = ResultWriter.open(cases, layout, output, reports, config.resume)
        scheduling = Scheduling(run_config, writer, retries, segment, interrupted)
        try:
            if writer.pending:
                with cluster(len(writer.pending)) as client, _progress(writer) as scheduling.update_progress:
                    with client.as_current():
                        scheduling.run(client)
        except ClusterError as error:
            if not writer.written:
                raise
            scheduling.fail_remaining(error)
        finally:  # also when stopped: the workers have ended, and what they have written is kept
            for case in scheduling.interrupted_cases():
                _remove_partial_files(case, run_config)
            _wait_for_reports(writer)
            failures = writer.close()
            write_run_record(writer, layout, source, output, config, part)
        return failures


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
    bar = tqdm(total=len(writer.cases), unit=" cases", disable=None)

    def update() -> None:
        bar.set_postfix(failed=len(writer.failures), left=len(writer.cases) - writer.finished, refresh=False)
        bar.update(writer.finished - bar.n)

    with nullcontext() if bar.disable else logging_redirect_tqdm(), bar:
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

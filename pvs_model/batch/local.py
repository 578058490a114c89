"""Segments every case of a folder on this machine. Failed cases are logged; the remaining cases continue."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pvs_model.batch.inputs import Part, find_cases, log_missing_weights
from pvs_model.batch.outputs import ReportOptions, ResultWriter, describe_failure, report_case, write_case
from pvs_model.batch.prefetch import process_in_order
from pvs_model.batch.run_record import write_run_record
from pvs_model.config import BatchConfig
from pvs_model.errors import PVSError
from pvs_model.layouts import Layout, Options
from pvs_model.pipeline import Prediction, Segmenter
from pvs_model.types import Case

log = logging.getLogger(__name__)

#: Default number of cases preprocessed ahead and written behind, by device. A GPU would wait for them. On a CPU they
#: compete with the network for the cores and gain nothing (one: 0.99 times as fast, on two cores).
WORKERS = {"cuda": 2, "cpu": 0}


def run(
    source: Path,
    output: Path,
    config: BatchConfig,
    layout_name: str | None = None,
    options: Options | None = None,
    reports: ReportOptions | None = None,
    part: Part | None = None,
    keep: Callable[[Case], bool] | None = None,
) -> list[str]:
    """Segments every case of a folder. Failed cases are logged; the remaining cases continue.

    Args:
        source: Input folder.
        output: Output folder, created if necessary.
        config: Configuration of the inference.
        layout_name: One of ``layouts.LAYOUTS``, or None to detect it.
        options: Suffix, sockets and filters.
        reports: Destination of reports, if requested.
        part: Subset of the cases to run; None for all.
        keep: Whether to run a case; None for all.

    Returns:
        One sentence per failed case, in the order of cases; empty when every mask was written.

    Raises:
        PVSError: No case can be run at all.
        KeyboardInterrupt: The run was stopped; files that were written are complete, the tables included.
    """
    if config.workers is not None and config.workers < 0:
        raise PVSError(f"--workers: expected 0 or more cases, got {config.workers}")
    layout, cases = find_cases(source, output, layout_name, options, reports, part)
    cases = cases if keep is None else [case for case in cases if keep(case)]
    segmenter = Segmenter(config)
    log_missing_weights(config)
    writer = ResultWriter.open(cases, layout, output, reports, config.resume)

    def finish(case: Case, predicted: Callable[[], Prediction]) -> None:
        _finish_case(case, predicted, segmenter, layout, output, writer, reports)

    try:
        workers = _workers(segmenter, len(writer.pending), config.workers)
        process_in_order(writer.pending, segmenter.preprocess, segmenter.predict, finish, workers)
    finally:
        failures = writer.close()
        write_run_record(writer, layout, source, output, config, part)
    return failures


def _workers(segmenter: Segmenter, cases: int, workers: int | None) -> int:
    """Returns the number of cases to preprocess ahead, and imports what their threads need."""
    if workers is None and segmenter.config.device == "cpu":
        workers = WORKERS["cpu"]
    if cases < 2 or workers == 0:
        return 0
    try:
        if workers is None:
            workers = WORKERS[segmenter.runtime.device.type]
        if workers:
            segmenter.load()
    except Exception:  # each case that meets the error reports it
        return 0
    return min(workers, cases)


def _finish_case(
    case: Case,
    predicted: Callable[[], Prediction],
    segmenter: Segmenter,
    layout: Layout,
    output: Path,
    writer: ResultWriter,
    reports: ReportOptions | None,
) -> None:
    """Writes the mask and the report of a case, or records why that failed."""
    try:
        prediction = predicted()
        began = time.perf_counter()
        result = segmenter.postprocess(prediction)
        path = write_case(case, result, layout, output)
        if writer.report is not None and reports is not None:
            report_case(case, result, writer.report, reports)
    except Exception as error:  # also a bug of this package or of a library: the other cases continue
        log.debug("%s", case.name, exc_info=True)
        writer.fail(case, describe_failure(case, error))
    else:
        # Time spent on the case itself: with prefetching it also waits for others.
        seconds = sum(prediction.preprocessed.seconds.values()) + time.perf_counter() - began
        writer.add(case, path, int(result.mask.sum()), seconds)

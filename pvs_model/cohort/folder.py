"""Every case of a folder on this machine; a case that fails is told and the others go on."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model.cohort.ahead import in_order
from pvs_model.cohort.case import Reports, printable, report_case, todo_of, write
from pvs_model.cohort.inputs import tell_lacking, tell_passed_over, with_outputs
from pvs_model.config import InferenceConfig
from pvs_model.errors import PVSError
from pvs_model.layouts import Layout, Options, choose
from pvs_model.pipeline import Prediction, Segmenter
from pvs_model.types import Case

if TYPE_CHECKING:
    from pvs_model.reports.folder import Report

log = logging.getLogger(__name__)

#: Cases made ready ahead, and written behind, where the user does not say. A GPU would wait for them; on a CPU they
#: take the cores from the network and gain nothing (one: 0.99 times as fast, on two cores).
WORKERS = {"cuda": 2, "cpu": 0}


def run(
    source: Path,
    output: Path,
    settings: InferenceConfig,
    layout_name: str | None = None,
    options: Options | None = None,
    reports: Reports | None = None,
) -> list[str]:
    """Segment every case of a folder; a case that fails is told and the others go on.

    Args:
        source: input folder.
        output: output folder, made if need be.
        settings: how to run.
        layout_name: one of ``layouts.LAYOUTS``, or None to look at the folder.
        options: suffix and sockets.
        reports: where to write reports, if anywhere.

    Returns:
        one sentence per failed case, in the order of cases; empty when every mask was written.

    Raises:
        PVSError: when no case can be run at all.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    if settings.workers is not None and settings.workers < 0:
        raise PVSError(f"--workers: expected 0 or more cases, found {settings.workers}")
    layout = choose(source, layout_name, with_outputs(options, output, reports))
    cases = layout.find_cases(source)
    log.info("%s: %d case%s (%s)", source, len(cases), "" if len(cases) == 1 else "s", layout.name)
    tell_passed_over(source, cases, layout)
    segmenter = Segmenter(settings)
    tell_lacking(settings)
    layout.prepare_output(output)
    report = reports.open(output) if reports is not None else None
    todo = todo_of(cases, layout, output, report, settings.resume)
    desk = _Desk(segmenter, layout, output, len(cases), report, reports is not None and reports.probability)
    left = [(number, case) for number, case in enumerate(cases, 1) if case in todo.left]
    try:
        workers = _workers(segmenter, len(left))
        in_order(left, lambda item: segmenter.preprocess(item[1]), segmenter.predict, desk.take, workers)
    except KeyboardInterrupt:
        if report is not None:
            report.finish()
        raise
    if report is not None:
        report.finish()
    return [*todo.refused.values(), *desk.failures]


def _workers(segmenter: Segmenter, cases: int) -> int:
    """How many cases are made ready ahead: what was asked for, else by the device; libraries are imported for them."""
    settings = segmenter.config
    workers = WORKERS["cpu"] if settings.workers is None and settings.device == "cpu" else settings.workers
    if cases < 2 or workers == 0:
        return 0
    try:
        if workers is None:
            workers = WORKERS[segmenter.runtime.device.type]
        if workers:
            segmenter.load()
    except Exception:  # it is told by the cases that meet it, one by one
        return 0
    return min(workers, cases)


@dataclass
class _Desk:
    """Writes and tells what came of each case. It takes one at a time, in their order, in whatever thread.

    Attributes:
        total: cases in the folder.
        failures: one sentence per failed case.
    """

    segmenter: Segmenter
    layout: Layout
    output: Path
    total: int
    report: Report | None
    probability: bool
    failures: list[str] = field(default_factory=list)

    def take(self, item: tuple[int, Case], predicted: Callable[[], Prediction]) -> None:
        """Write the mask of a case, and its report; or tell why there is none.

        Args:
            item: the case and its number, from 1.
            predicted: returns it as it came from the network, or raises what went wrong before.
        """
        number, case = item
        try:
            behind = predicted()
            began = time.perf_counter()
            result = self.segmenter.postprocess(behind)
            path = write(case, result, self.layout, self.output)
            if self.report is not None:
                report_case(case, result, self.report, self.probability)
        except PVSError as error:
            self._fail(case, f"{case.name}: {error}")
        except Exception as error:  # a bug of ours or of a library: the other cases still go on
            log.debug("%s", case.name, exc_info=True)
            said = " ".join(str(error).split())
            self._fail(case, f"{case.name}: unexpected {type(error).__name__}: {said}")
        else:
            # What was spent on it: beside other cases it also waits.
            took = sum(behind.preprocessed.seconds.values()) + time.perf_counter() - began
            voxels = result.mask.sum()
            log.info(
                "%s: wrote %s, %d PVS voxels (%d of %d, %.1f s)", case.name, path, voxels, number, self.total, took
            )

    def _fail(self, case: Case, sentence: str) -> None:
        self.failures.append(printable(sentence))
        log.error("%s", self.failures[-1])
        if self.report is not None:
            try:
                self.report.fail(case.name, self.failures[-1])
            except (PVSError, OSError) as error:
                log.error("%s", printable(f"{case.name}: its report could not be written: {error}"))

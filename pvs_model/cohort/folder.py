"""Every case of a folder on this machine; a case that fails is told and the others go on."""

from __future__ import annotations

import logging
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from pvs_model.cohort.case import Reports, is_done, printable, report_case, write
from pvs_model.errors import PVSError
from pvs_model.layouts import Options, choose
from pvs_model.pipeline import Segmenter, Settings

log = logging.getLogger(__name__)


def run(
    source: Path,
    output: Path,
    settings: Settings,
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
        one sentence per failed case; empty when every mask was written.

    Raises:
        PVSError: when no case can be run at all.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    layout = choose(source, layout_name, options)
    cases = layout.find_cases(source)
    log.info("%s: %d case%s (%s)", source, len(cases), "" if len(cases) == 1 else "s", layout.name)
    segmenter = Segmenter(settings)
    layout.prepare_output(output)
    report = reports.open(output) if reports is not None else None
    failures: list[str] = []
    done = {case.name for case in cases if settings.resume and is_done(case, layout, output, report)}
    if settings.resume:
        log.info("%s: %d of %d cases were there already", output, len(done), len(cases))
    for number, case in enumerate(cases, 1):
        if case.name in done:
            continue
        began = time.perf_counter()
        try:
            result = segmenter.segment(case)
            path = write(case, result, layout, output)
            if report is not None and reports is not None:
                report_case(case, result, report, reports.probability)
        except KeyboardInterrupt:
            if report is not None:
                report.finish()
            raise
        except PVSError as error:
            failures.append(f"{case.name}: {error}")
        except Exception as error:  # a bug of ours or of a library: the other cases still go on
            log.debug("%s", case.name, exc_info=True)
            failures.append(f"{case.name}: unexpected {type(error).__name__}: {' '.join(str(error).split())}")
        else:
            took = time.perf_counter() - began
            log.info(
                "%s: wrote %s, %d PVS voxels (%d of %d, %.1f s)",
                case.name,
                path,
                result.mask.sum(),
                number,
                len(cases),
                took,
            )
            continue
        failures[-1] = printable(failures[-1])
        log.error("%s", failures[-1])
        if report is not None:
            try:
                report.fail(case.name, failures[-1])
            except (PVSError, OSError) as error:
                log.error("%s", printable(f"{case.name}: its report could not be written: {error}"))
    if report is not None:
        report.finish()
    return failures

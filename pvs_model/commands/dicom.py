"""Segment DICOM studies: masks as NIfTI and DICOM segmentation, measurements as structured report."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from pvs_model.batch import ReportOptions, inputs, report_failures, report_interrupted
from pvs_model.config import default_weights
from pvs_model.types import SEQUENCES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``dicom``."""
    add = parser.add_argument
    add("input", type=Path, help="folder or zip file of DICOM series, in any structure")
    add("output", type=Path, help="folder for masks, segmentations and reports")
    add(
        "--series", type=_choice, action="append", default=[], metavar="SEQUENCE=UID",
        help="series of a sequence (T1w, T2w, FLAIR), where several qualify: its UID, a pattern of its description "
        "(T1w='*mprage*'), or none (repeatable)",
    )  # fmt: skip
    add("--suffix", default="pred", help="masks are named STUDY_SUFFIX.nii.gz (default: pred)")
    add("--nifti", type=Path, metavar="DIR", help="keep the converted images there")
    add("--dry-run", action="store_true", help="list studies, series and their sequences; run nothing")
    add("--report", type=Path, metavar="DIR", help="burden tables and HTML reports (not within the output)")
    add("--probability", action="store_true", help="with --report: keep probability maps there")
    add("--resume", action="store_true", help="skip studies that an earlier run completed")
    inputs.add_inference_arguments(parser, default_weights())


def _choice(text: str) -> tuple[str, str]:
    sequence, separator, pattern = text.partition("=")
    if sequence not in SEQUENCES or not separator or not pattern:
        raise argparse.ArgumentTypeError(f"expected T1w=UID, T2w=UID or FLAIR=UID, got {text}")
    return sequence, pattern


def run(args: argparse.Namespace) -> int:
    """Segments the studies; the last line on stderr is a sentence on what failed.

    Returns:
        0 when every study was written, 1 when one failed, 130 when stopped by Ctrl-C or SIGTERM.

    Raises:
        PVSError: No study can be run.
    """
    from pvs_model.batch.studies import describe_studies, run_studies

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no file is left half-written
    if args.dry_run:
        return describe_studies(args.input, args.series)
    config = inputs.batch_config(args)
    reports = ReportOptions(args.report, args.probability) if args.report else None
    try:
        failures = run_studies(args.input, args.output, config, args.series, args.suffix, reports, args.nifti)
    except KeyboardInterrupt:
        return report_interrupted()
    return report_failures(failures)

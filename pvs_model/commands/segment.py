"""Segment every case of a folder: T1w, T2w, FLAIR in, one mask per case out.

The container runs this command. A folder with ``predictions.json`` is a submission to be evaluated.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from pvs_model.batch import ReportOptions, inputs, report_failures, report_interrupted
from pvs_model.batch import run as run_folder
from pvs_model.config import default_weights
from pvs_model.errors import PVSError

#: Where grand-challenge.org puts an organiser's reference masks, to evaluate a submission with.
GROUND_TRUTH = Path("/opt/ml/input/data/ground_truth")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``segment``."""
    parser.add_argument("--input", type=Path, default=Path("/input"), help="folder of cases (default: /input)")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="folder for masks (default: /output)")
    inputs.add_arguments(parser, default_weights())
    parser.add_argument(
        "--ground-truth", type=Path, default=GROUND_TRUTH, help="with predictions.json: folder of reference masks"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="cases read ahead and written behind (GPU: 2, CPU: 0)")


def run(args: argparse.Namespace) -> int:
    """Segments the cases; the last line on stderr is a sentence on what failed.

    Returns:
        0 when every case was written, 1 when a case failed, 130 when stopped by Ctrl-C or SIGTERM.

    Raises:
        PVSError: No case can be run.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that wait by spinning cost more than the work
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no file is left half-written
    if os.path.isfile(args.input / "predictions.json"):  # False, not an error, for a folder that may not be read
        from pvs_model.evaluation.grand_challenge import evaluate_submission

        return evaluate_submission(args.input, args.output, args.ground_truth, args.sockets)
    config = inputs.batch_config(args, args.workers)
    reports = ReportOptions(args.report, args.probability, viewer=args.viewer) if args.report else None
    try:
        options = inputs.options_from(args)
        if args.dry_run:
            return inputs.dry_run(args.input, args.output, args.layout, options, reports, args.resume, args.part)
        failures = run_folder(args.input, args.output, config, args.layout, options, reports, args.part)
    except KeyboardInterrupt:
        return report_interrupted()
    return report_failures(failures)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command by itself, as ``process.py`` does.

    Returns:
        As ``run``; 2 when no case can be run.
    """
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    try:
        return run(args)
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

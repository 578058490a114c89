"""Cases in, masks out, exit status 0 only when all were written; ``predictions.json`` in: a submission is evaluated."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from pvs_model.cohort import Reports, leave, run, tell, tell_stopped
from pvs_model.cohort.commands import add_options, options_of
from pvs_model.cohort.inputs import dry_run
from pvs_model.errors import PVSError
from pvs_model.pipeline import Settings

MOUNTED_WEIGHTS = Path("/opt/ml/model")  # where grand-challenge unpacks a model of its own
GROUND_TRUTH = Path("/opt/ml/input/data/ground_truth")  # and an organiser's truth, to evaluate a submission with


def default_weights() -> Path:
    """The weights beside this file, or those that grand-challenge has mounted."""
    beside = Path(__file__).resolve().parent / "weights"
    return MOUNTED_WEIGHTS if (MOUNTED_WEIGHTS / "MANIFEST.json").is_file() else beside


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description="Segment perivascular spaces: T1w, T2w, FLAIR in, one mask per case out.")
    out.add_argument("--input", type=Path, default=Path("/input"), help="folder of cases (default: /input)")
    out.add_argument("--output", type=Path, default=Path("/output"), help="folder for masks (default: /output)")
    add_options(out, default_weights())
    out.add_argument("--ground-truth", type=Path, default=GROUND_TRUTH, help="with predictions.json: folder of truth")
    out.add_argument("--workers", type=int, metavar="N", help="cases read ahead, and written behind (GPU: 2, CPU: 0)")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Run; the last line on stderr says in plain words what failed.

    Returns:
        0 when every case was written, 1 when a case failed, 2 when nothing could be run.
    """
    args = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves a case as Ctrl-C does: nothing half-written
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
    if os.path.isfile(args.input / "predictions.json"):  # which is no error where the folder may not be read
        from pvs_model.evaluation.grand_challenge import evaluate_submission

        return evaluate_submission(args.input, args.output, args.ground_truth, args.sockets)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__annotations__})
    reports = Reports(args.report, args.probability) if args.report else None
    try:
        options = options_of(args)
        if args.dry_run:
            return dry_run(args.input, args.output, args.layout, options, reports, args.resume)
        failures = run(args.input, args.output, settings, args.layout, options, reports)
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return tell_stopped()
    return tell(failures)


if __name__ == "__main__":
    leave(main())

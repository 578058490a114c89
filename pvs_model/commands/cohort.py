"""Segment a folder of cases on many workers: of this machine or of a cluster."""

from __future__ import annotations

import argparse
import signal
from functools import partial
from pathlib import Path

from pvs_model.batch import ReportOptions, inputs, report_failures, report_interrupted
from pvs_model.config import default_weights
from pvs_model.errors import PVSError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``cohort``."""
    parser.add_argument("input", type=Path, metavar="IN", help="folder of cases, as for segment")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for masks")
    inputs.add_arguments(parser, default_weights())
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask scheduler, such as tcp://node1:8786")
    where.add_argument("--slurm", nargs="+", metavar="KEY=VALUE", help="Slurm jobs: jobs, queue, cores, memory, ...")
    where.add_argument("--gpus", action="store_true", help="on this machine: one worker per GPU")
    parser.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: by its cores)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each (default: an equal share of the cores)")
    parser.add_argument("--retries", type=int, default=2, metavar="N", help="after a worker died (default: 2)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="file for messages of Dask, stages and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Runs the command; the last line on stderr names the failed cases.

    Returns:
        Exit status: 0 when every case was written, 1 when a case failed, 130 when the run was stopped.

    Raises:
        PVSError: Nothing could be run.
    """
    from pvs_model.batch import dask, dask_clusters

    for name, minimum in (("workers", 1), ("threads", 1), ("retries", 0)):
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise PVSError(f"--{name}: expected {minimum} or more, got {value}")
        if name != "retries" and value is not None and (args.scheduler or args.slurm):
            raise PVSError(f"--{name}: expected it for workers of this machine, got --scheduler or --slurm")
    cluster = partial(dask_clusters.local, workers=args.workers, threads=args.threads, gpus=args.gpus)
    if args.scheduler:
        cluster = partial(dask_clusters.existing, address=args.scheduler)
    elif args.slurm:
        cluster = partial(dask_clusters.slurm, words=args.slurm)
    config = inputs.batch_config(args)
    reports = ReportOptions(args.report, args.probability, viewer=args.viewer) if args.report else None
    options = inputs.options_from(args)
    if args.dry_run:
        return inputs.dry_run(args.input, args.output, args.layout, options, reports, args.resume, args.part)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        failures = dask.run(
            args.input, args.output, config, cluster, args.layout, options, reports, args.part, args.retries, args.log
        )
    except KeyboardInterrupt:
        return report_interrupted()
    return report_failures(failures)

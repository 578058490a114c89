"""Segment a folder of cases on many workers: of this machine or of a cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from pvs_model.cohort.case import Reports, tell, tell_stopped
from pvs_model.cohort.inputs import dry_run
from pvs_model.config import InferenceConfig, default_weights
from pvs_model.errors import PVSError
from pvs_model.layouts import LAYOUTS, Options


def add_options(out: argparse.ArgumentParser, weights: Path) -> None:
    """What may be said about a run wherever it is run.

    Args:
        out: the command.
        weights: the folder to take where the user names none.
    """
    out.add_argument("--weights", type=Path, default=weights, help="folder with MANIFEST.json")
    out.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    out.add_argument("--backend", choices=("auto", "torch", "openvino"), default="auto", help="what computes on a CPU")
    out.add_argument("--suffix", default="pred", help="masks are named CASE_SUFFIX.nii.gz (default: pred)")
    out.add_argument("--layout", choices=tuple(LAYOUTS), help="form of the input (default: look at it)")
    out.add_argument("--sockets", type=Path, help="JSON file naming grand-challenge sockets")
    out.add_argument("--bids-filter-file", type=Path, metavar="FILE", help="JSON: which of several images to take")
    out.add_argument("--ignore", action="append", default=[], metavar="PATTERN", help="pass over such names (repeat)")
    out.add_argument("--dry-run", action="store_true", help="list cases, files and what is passed over; run nothing")
    out.add_argument("--prompt", help="a prompt of your own (needs a BERT encoder)")
    out.add_argument("--report", type=Path, metavar="DIR", help="burden tables and pages to look at (not in --output)")
    out.add_argument("--probability", action="store_true", help="with --report: keep probability maps there")
    out.add_argument("--resume", action="store_true", help="leave alone what an earlier run has finished")
    out.add_argument("--no-anatomy", dest="anatomy", action="store_false", help="no brain mask, no regions")
    out.add_argument("--register", action="store_true", help="move sequences onto the reference where that fits better")
    out.add_argument("--n4", action="store_true", help="correct the bias field first")
    out.add_argument("--mirror", action="store_true", help="average over mirror images (8 or 4 times slower)")


def options_of(args: argparse.Namespace) -> Options:
    """The form of input and output, of ``add_options``."""
    return Options(args.suffix, args.sockets, args.bids_filter_file, tuple(args.ignore))


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of ``cohort``."""
    command.add_argument("input", type=Path, metavar="IN", help="folder of cases, as segment takes it")
    command.add_argument("output", type=Path, metavar="OUT", help="folder for masks")
    add_options(command, default_weights())
    where = command.add_mutually_exclusive_group()
    where.add_argument("--scheduler", metavar="ADDRESS", help="an existing Dask scheduler, such as tcp://node1:8786")
    where.add_argument("--slurm", nargs="+", metavar="KEY=VALUE", help="Slurm jobs: jobs, queue, cores, memory, ...")
    where.add_argument("--gpus", action="store_true", help="on this machine: one worker per GPU")
    command.add_argument("--workers", type=int, metavar="N", help="processes on this machine (default: by its cores)")
    command.add_argument("--threads", type=int, metavar="N", help="of each (default: an equal share of the cores)")
    command.add_argument("--retries", type=int, default=2, metavar="N", help="tries after a worker died (default: 2)")
    command.add_argument("--log", type=Path, metavar="FILE", help="keep what Dask says, stages and tracebacks")


def run(args: argparse.Namespace) -> int:
    """Run; the last line on stderr says in plain words what failed.

    Returns:
        0 when every case was written, 1 when a case failed, 130 when it was stopped.

    Raises:
        PVSError: when nothing could be run.
    """
    from pvs_model.cohort import engines
    from pvs_model.cohort.cluster import run as run_cluster

    elsewhere = args.scheduler or args.slurm
    for name, least in (("workers", 1), ("threads", 1), ("retries", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise PVSError(f"--{name}: expected {least} or more, found {value}")
        if name != "retries" and value is not None and elsewhere:
            raise PVSError(f"--{name}: expected it for workers of this machine, found --scheduler or --slurm")
    engine: engines.Engine = engines.Local(args.workers, args.threads, args.gpus)
    if args.scheduler:
        engine = engines.Existing(args.scheduler)
    elif args.slurm:
        engine = engines.slurm(args.slurm)
    chosen = {name: getattr(args, name) for name in InferenceConfig.__annotations__ if name != "workers"}
    reports = Reports(args.report, args.probability) if args.report else None
    options = options_of(args)
    if args.dry_run:
        return dry_run(args.input, args.output, args.layout, options, reports, args.resume)
    try:
        failures = run_cluster(
            args.input, args.output, InferenceConfig(**chosen), engine, args.layout, options, reports,
            args.retries, args.log,
        )  # fmt: skip
    except KeyboardInterrupt:
        return tell_stopped()
    return tell(failures)

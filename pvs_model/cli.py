"""The command line: ``pvs-model COMMAND`` or ``python -m pvs_model COMMAND``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from pvs_model import __version__
from pvs_model.batch import exit_process
from pvs_model.commands import (
    agreement,
    bids,
    cohort,
    demo,
    dicom,
    evaluate,
    info,
    longitudinal,
    rank,
    regions,
    release,
    report,
    segment,
    simulate,
    train,
    validate,
)
from pvs_model.errors import PVSError

#: Each has ``add_arguments`` and ``run``; the first line of its docstring is the summary.
COMMANDS: dict[str, ModuleType] = {
    "segment": segment,
    "cohort": cohort,
    "bids": bids,
    "dicom": dicom,
    "report": report,
    "regions": regions,
    "demo": demo,
    "simulate": simulate,
    "train": train,
    "release": release,
    "longitudinal": longitudinal,
    "evaluate": evaluate,
    "rank": rank,
    "agreement": agreement,
    "info": info,
    "validate": validate,
}


def build_parser() -> argparse.ArgumentParser:
    """Builds the command line of all commands."""
    parser = argparse.ArgumentParser(prog="pvs-model", description="Perivascular spaces in brain MRI.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        command = subparsers.add_parser(name, help=summary, description=summary)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status; errors that a user can correct are one sentence on stderr."""
    try:
        args = build_parser().parse_args(arguments)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stdout)
        code: int = args.run(args)
        return code
    except PVSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of this output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run_process() -> NoReturn:
    """Runs the command of the process's arguments and ends the process: entry point of ``pvs-model``."""
    exit_process(main())

"""Segment a BIDS data set, and write a BIDS derivative: the command line of BIDS Apps."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from pvs_model.batch import ReportOptions, inputs, report_failures, report_interrupted
from pvs_model.batch import run as run_folder
from pvs_model.commands import report
from pvs_model.config import default_weights
from pvs_model.errors import PVSError
from pvs_model.layouts import Options
from pvs_model.layouts.bids import REPORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``bids``, spelled with hyphens or underscores as BIDS Apps do."""
    add = parser.add_argument
    add("bids_dir", type=Path, help="BIDS data set")
    add("output_dir", type=Path, help="folder of the derivative")
    add("analysis_level", choices=("participant", "group"), help="group: tables and an index of all participants")
    for name, metavar in (("participant", "sub-"), ("session", "ses-")):
        add(
            f"--{name}-label", f"--{name}_label", nargs="+", default=[], metavar="LABEL",
            help=f"only these, with or without {metavar} (default: all)",
        )  # fmt: skip
    add("--probability", action="store_true", help=f"keep probability maps in {REPORTS}")
    inputs.add_common_arguments(parser, default_weights())


def run(args: argparse.Namespace) -> int:
    """Runs an analysis level.

    Returns:
        Exit status: 0 when every participant was written, 1 when one failed, 130 when the run was stopped.

    Raises:
        PVSError: Nothing could be run.
    """
    folder = args.output_dir / REPORTS
    if args.analysis_level == "group":
        return _group(args, folder)
    options = Options(
        bids_filter=args.bids_filter_file, participants=tuple(args.participant_label), ignore=tuple(args.ignore),
        sessions=tuple(args.session_label), derivative_of=args.bids_dir,
    )  # fmt: skip
    config = inputs.batch_config(args)
    reports = ReportOptions(folder, args.probability, within_output=True, tables=False)
    if args.dry_run:
        return inputs.dry_run(args.bids_dir, args.output_dir, "bids", options, reports, args.resume, args.part)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return report_failures(run_folder(args.bids_dir, args.output_dir, config, "bids", options, reports, args.part))
    except KeyboardInterrupt:
        return report_interrupted()


def _group(args: argparse.Namespace, folder: Path) -> int:
    """Writes tables and index over the participants that have been run, and the tables in the form of BIDS."""
    if args.participant_label or args.session_label:
        raise PVSError("--participant-label, --session-label: expected the analysis level participant, got group")
    if not folder.is_dir():
        raise PVSError(f"{folder}: expected the reports of the analysis level participant, got none: run it first")
    status = report.merge(folder)
    for name in ("burden", "pvs"):
        _write_tsv(folder / f"{name}.csv")
    return status


def _write_tsv(table: Path) -> None:
    """Writes a table again as TSV with ``participant_id`` and ``session_id`` in place of ``case``."""
    import pandas as pd

    from pvs_model import files

    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    labels = rows.pop("case").str.extract(r"(?P<participant_id>sub-[^_]+)(?:_(?P<session_id>ses-.+))?")
    text = pd.concat([labels, rows], axis=1).replace("", None).to_csv(sep="\t", index=False, na_rep="n/a")
    files.write_text(table.with_suffix(".tsv"), text)

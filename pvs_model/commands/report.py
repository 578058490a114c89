"""Write tables and index over all cases of a folder of reports, such as those of a job array."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pvs_model.batch import report_failures
from pvs_model.errors import PVSError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``report``."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of --report, with one JSON file per case")


def run(args: argparse.Namespace) -> int:
    """Writes ``burden.csv``, ``pvs.csv`` and ``index.html`` of all cases in a folder of reports.

    Returns:
        Exit status: 0 when every case has been measured, 1 when one has failed; these are named on stderr.

    Raises:
        PVSError: The folder holds no report of a case, or one of them cannot be read.
    """
    return merge(args.folder)


def merge(folder: Path) -> int:
    """Writes tables and index of a folder of reports; result and errors as of ``run``."""
    from pvs_model.reports.folder import ReportFolder

    cases = sorted(path for path in (folder / "cases").rglob("*.json") if "/." not in path.as_posix())
    if not cases:
        raise PVSError(f"{folder}: expected a folder of reports with cases/*.json, got none")
    ReportFolder(folder).finish()
    problems = [json.loads(path.read_text(encoding="utf-8"))["problem"] for path in cases]
    return report_failures([problem for problem in problems if problem is not None])

"""Score a folder of masks against a folder of reference masks, as the challenge does."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pvs_model import files
from pvs_model.config import default_weights
from pvs_model.errors import PVSError
from pvs_model.evaluation.metrics import PAPERS
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation
from pvs_model.inference.weights import has_anatomy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``evaluate``."""
    add = parser.add_argument
    add(
        "--reference", "--truth", type=Path, required=True, metavar="DIR",
        help="reference masks: <case>_PVS.nii.gz, PVS.nii.gz in folders of cases, or any names",
    )  # fmt: skip
    add("--pred", type=Path, required=True, metavar="DIR", help="masks to score, named after the cases")
    add(
        "--regions", metavar="DIR|boxes|none",
        help="region masks <case>_CSO, <case>_BG (default: those beside the reference, else estimated from the images "
        "there); boxes: those of the challenge's script where it has no atlas",
    )  # fmt: skip
    add("--suffix", default="pred", help="an additional ending of the predictions' names")
    add("--weights", type=Path, default=default_weights(), help="folder with the anatomy network")
    add("--names-of", choices=tuple(PAPERS), help="print the voxel scores under the names that a paper uses")
    add("--json", type=Path, metavar="FILE", help="all scores and summaries; no NaN")
    add("--csv", type=Path, metavar="FILE", help="one line per case and region")
    add("--html", type=Path, metavar="FILE", help="a report with box plots and the worst cases")
    add("--workers", type=int, metavar="N", help="processes (default: one per core; one for a few cases)")


def run(args: argparse.Namespace) -> int:
    """Scores the cases, prints a summary and writes the requested files.

    Returns:
        0 when every case was scored or had no prediction; 1 when a prediction or reference is invalid.
    """
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.summary import as_csv, as_json, text

    if args.workers is not None and args.workers < 1:
        raise PVSError(f"--workers: expected at least 1, got {args.workers}")
    report = evaluate(args.reference, args.pred, args.regions, args.workers, args.suffix, anatomy_weights(args.weights))
    print(text(report, args.names_of))
    print(_summary(report))
    if args.json:
        files.write_text(args.json, json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    if args.csv:
        files.write_text(args.csv, as_csv(report.rows))
    if args.html:
        from pvs_model.reports.evaluation_report import write_evaluation_report

        write_evaluation_report(args.html, report)
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)
    for line in report.problems:
        print(f"error: {line}", file=sys.stderr)
    return 1 if report.problems else 0


def anatomy_weights(weights: Path) -> Path | None:
    """The weights folder if it contains the anatomy network, else None."""
    return weights if has_anatomy(weights) else None


def _summary(report: Evaluation) -> str:
    counts = {status: len(report.cases(status)) for status in (SCORED, MISSING, REFUSED)}
    line = f"{counts[SCORED]} cases scored"
    for status in (MISSING, REFUSED):
        if counts[status]:
            line += f", {counts[status]} {status} (worst scores)"
    return f"{line}; regions: {report.regions_from}. Means ± SD over cases, 95 % bootstrap interval of the mean."

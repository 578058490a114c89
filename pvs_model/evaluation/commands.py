"""``python -m pvs_model evaluate``, ``rank`` and ``agreement``: what is given, printed and written."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model import files
from pvs_model.errors import PVSError
from pvs_model.evaluation.metrics import PAPERS
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation

if TYPE_CHECKING:
    from pvs_model.evaluation.ranking import Score


#: The shipped weights, beside the package in a checkout and in the image.
WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """The options of ``evaluate``."""
    command.add_argument(
        "--truth",
        type=Path,
        required=True,
        metavar="DIR",
        help="true masks: <case>_PVS.nii.gz, PVS.nii.gz in folders of cases, or any names",
    )
    command.add_argument(
        "--pred", type=Path, required=True, metavar="DIR", help="masks to score, named after the cases"
    )
    command.add_argument(
        "--regions",
        metavar="DIR|boxes|none",
        help="region masks <case>_CSO, <case>_BG (default: those beside the truth, else estimated from the images "
        "there); boxes: those of the challenge's script where it has no atlas",
    )
    command.add_argument("--suffix", default="pred", help="one more ending of the predictions' names")
    command.add_argument("--weights", type=Path, default=WEIGHTS, help="folder with the anatomy network")
    command.add_argument("--names-of", choices=tuple(PAPERS), help="print the voxel scores under a paper's own names")
    command.add_argument("--json", type=Path, metavar="FILE", help="all scores and summaries; no NaN")
    command.add_argument("--csv", type=Path, metavar="FILE", help="one line per case and region")
    command.add_argument("--html", type=Path, metavar="FILE", help="a page with box plots and the worst cases")
    command.add_argument(
        "--workers", type=int, metavar="N", help="processes (default: one per core; one for a few cases)"
    )


def run_evaluate(args: argparse.Namespace) -> int:
    """Score, print, write.

    Returns:
        0 when every case was scored or had no prediction; 1 when one was refused or its truth could not be read.
    """
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.summary import as_csv, as_json, text

    if args.workers is not None and args.workers < 1:
        raise PVSError(f"--workers: expected at least 1, found {args.workers}")
    report = evaluate(args.truth, args.pred, args.regions, args.workers, args.suffix, _anatomy(args.weights))
    print(text(report, args.names_of))
    print(_told(report))
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


def add_rank(command: argparse.ArgumentParser) -> None:
    """The options of ``rank``."""
    command.add_argument("--team", action="append", default=[], metavar="NAME=DIR", help="masks of a team (repeat)")
    command.add_argument(
        "--truth",
        action="append",
        default=[],
        metavar="[PHASE=]DIR",
        help="true masks, for --team; with several phases each team's DIR has a folder per phase",
    )
    command.add_argument("--regions", metavar="DIR|boxes|none", help="as for evaluate")
    command.add_argument("--workers", type=int, metavar="N", help="processes for --team")
    command.add_argument(
        "--scores",
        action="append",
        default=[],
        metavar="NAME[:PHASE]=FILE",
        help="what evaluate has written for a team: --csv or --json (repeat)",
    )
    command.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="CSV or JSON: team, phase, region, case (none: means), recall, precision, dice, avd",
    )
    command.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="resamples of the cases (default: %(default)s; 0: none)",
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--holm", action="store_true", help="correct the paired tests for their number")
    command.add_argument("--plot", type=Path, metavar="FILE", help="stability of the ranks as .png or .svg")
    command.add_argument("--json", type=Path, metavar="FILE")
    command.add_argument("--csv", type=Path, metavar="FILE", help="the ranking")


def run_rank(args: argparse.Namespace) -> int:
    """Rank teams as the challenge does, print and write.

    Returns:
        0; 1 when a prediction was refused or a truth could not be read.
    """
    from pvs_model.evaluation.ranking import rank
    from pvs_model.evaluation.score_tables import read_scores
    from pvs_model.evaluation.significance import significance
    from pvs_model.evaluation.stability import stability
    from pvs_model.reports.ranking_plot import plot_stability

    if args.bootstrap < 0:
        raise PVSError(f"--bootstrap: expected 0 or more, found {args.bootstrap}")
    scores, problems = _scores_of_teams(args)
    for argument in args.scores:
        name, file = _named(argument, "--scores", "NAME[:PHASE]=FILE")
        team, _, phase = name.partition(":")
        scores += read_scores(Path(file), team, phase or None)
    if args.table:
        scores += read_scores(args.table)
    if not scores:
        raise PVSError("--team, --scores, --table: expected scores of two teams or more, found none")
    ranking = rank(scores)
    print(ranking.text())
    content = {"ranking": ranking.as_json()}
    if any(score.case is None for score in scores):
        print("\nThese are means over cases: what is significant, and how stable the ranks are, needs scores per case.")
        if args.plot:
            raise PVSError("--plot: expected scores per case, found means over cases")
    else:
        tests = significance(scores, "holm" if args.holm else "none")
        print(f"\n{tests.text()}")
        content["significance"] = tests.as_json()
        if args.bootstrap:
            stable = stability(scores, args.bootstrap, args.seed)
            print(f"\n{stable.text()}")
            content["stability"] = stable.as_json()
            if args.plot:
                plot_stability(stable, args.plot)
    if args.json:
        files.write_text(args.json, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if args.csv:
        files.write_text(args.csv, ranking.as_csv())
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 1 if problems else 0


def _scores_of_teams(args: argparse.Namespace) -> tuple[list[Score], list[str]]:
    """What ``--team`` and ``--truth`` come to, and what could not be scored."""
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.score_tables import ONLY_PHASE, scores_of

    if bool(args.team) != bool(args.truth):
        raise PVSError("--team, --truth: expected both, or neither, found only one of them")
    phases = {}
    for argument in args.truth:
        name, separator, folder = argument.partition("=")
        phases[name if separator else ONLY_PHASE] = Path(folder if separator else name)
    if len(phases) < len(args.truth):
        raise PVSError("--truth: expected a name for each of several phases (PHASE=DIR), found one twice or none")
    scores: list[Score] = []
    problems: list[str] = []
    for argument in args.team:
        team, folder = _named(argument, "--team", "NAME=DIR")
        for phase, truth in phases.items():
            masks = Path(folder) / phase if len(phases) > 1 else Path(folder)
            report = evaluate(truth, masks, args.regions, args.workers, weights=_anatomy(WEIGHTS))
            problems += [f"{team}: {line}" for line in report.problems]
            for line in report.warnings:
                print(f"warning: {team}: {line}", file=sys.stderr)
            scores += scores_of(report, team, phase)
    return scores, problems


def _named(argument: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = argument.partition("=")
    if not (name and separator and value):
        raise PVSError(f"{option}: expected {form}, found {argument}")
    return name, value


def add_agreement(command: argparse.ArgumentParser) -> None:
    """The options of ``agreement``."""
    command.add_argument("table", type=Path, metavar="FILE", help="CSV: subject, volume, score, region, repeat")
    command.add_argument("--volume", metavar="COLUMN", help="the column of volumes or counts (default: volume)")
    command.add_argument(
        "--group", action="append", default=[], metavar="COLUMN", help="also within each of its values"
    )
    command.add_argument("--json", type=Path, metavar="FILE")


def run_agreement(args: argparse.Namespace) -> int:
    """Volumes against visual scores, and between repeats: print and write."""
    from pvs_model.evaluation.rater_agreement import agree, read_measurements

    found = agree(read_measurements(args.table, args.group, args.volume))
    print(found.text())
    if args.json:
        files.write_text(args.json, json.dumps(found.as_json(), indent=1, allow_nan=False) + "\n")
    return 0


def _anatomy(weights: Path) -> Path | None:
    """The weights folder, if the anatomy network is in it."""
    return weights if (weights / "anatomy.safetensors").is_file() else None


def _told(report: Evaluation) -> str:
    counts = {status: len(report.cases(status)) for status in (SCORED, MISSING, REFUSED)}
    told = f"{counts[SCORED]} cases scored"
    for status in (MISSING, REFUSED):
        if counts[status]:
            told += f", {counts[status]} {status} (worst scores)"
    return f"{told}; regions: {report.regions_from}. Means ± SD over cases, 95 % bootstrap interval of the mean."

"""Rank teams as the challenge does, with tests and the stability of the ranks."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model import files
from pvs_model.commands.evaluate import anatomy_weights
from pvs_model.config import default_weights
from pvs_model.errors import PVSError

if TYPE_CHECKING:
    from pvs_model.evaluation.ranking import Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``rank``."""
    add = parser.add_argument
    add("--team", action="append", default=[], metavar="NAME=DIR", help="masks of a team (repeat)")
    add(
        "--reference", "--truth", action="append", default=[], metavar="[PHASE=]DIR",
        help="reference masks, for --team; with several phases each team's DIR has a folder per phase",
    )  # fmt: skip
    add("--regions", metavar="DIR|boxes|none", help="as for evaluate")
    add("--workers", type=int, metavar="N", help="processes for --team")
    add(
        "--scores", action="append", default=[], metavar="NAME[:PHASE]=FILE",
        help="what evaluate has written for a team: --csv or --json (repeat)",
    )  # fmt: skip
    add(
        "--table", type=Path, metavar="FILE",
        help="CSV or JSON: team, phase, region, case (none: means), recall, precision, dice, avd",
    )  # fmt: skip
    add(
        "--bootstrap", type=int, default=1000, metavar="N",
        help="resamples of the cases (default: %(default)s; 0: none)",
    )  # fmt: skip
    add("--seed", type=int, default=0)
    add("--holm", action="store_true", help="correct the paired tests for their number")
    add("--plot", type=Path, metavar="FILE", help="stability of the ranks as .png or .svg")
    add("--json", type=Path, metavar="FILE")
    add("--csv", type=Path, metavar="FILE", help="the ranking")


def run(args: argparse.Namespace) -> int:
    """Ranks the teams, prints the tables and writes the requested files.

    Returns:
        0; 1 when a prediction or reference is invalid.
    """
    from pvs_model.evaluation.ranking import rank
    from pvs_model.evaluation.score_tables import read_scores
    from pvs_model.evaluation.significance import significance
    from pvs_model.evaluation.stability import stability
    from pvs_model.reports.ranking_plot import check_format, plot_stability

    if args.bootstrap < 0:
        raise PVSError(f"--bootstrap: expected 0 or more, got {args.bootstrap}")
    if args.seed < 0:
        raise PVSError(f"--seed: expected 0 or more, got {args.seed}")
    if args.plot:
        check_format(args.plot)
    scores, problems = _scores_of_teams(args)
    for argument in args.scores:
        name, file = _named(argument, "--scores", "NAME[:PHASE]=FILE")
        team, _, phase = name.partition(":")
        scores += read_scores(Path(file), team, phase or None)
    if args.table:
        scores += read_scores(args.table)
    if not scores:
        raise PVSError("--team, --scores, --table: expected scores of two teams or more, got none")
    ranking = rank(scores)
    print(ranking.text())
    content = {"ranking": ranking.as_json()}
    if any(score.case is None for score in scores):
        print("\nThese are means over cases: what is significant, and how stable the ranks are, needs scores per case.")
        if args.plot:
            raise PVSError("--plot: expected scores per case, got means over cases")
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
    """The scores of ``--team`` against ``--reference``, and sentences on what could not be scored."""
    from pvs_model.evaluation.evaluate import evaluate
    from pvs_model.evaluation.score_tables import ONLY_PHASE, scores_of

    if bool(args.team) != bool(args.reference):
        raise PVSError("--team, --reference: expected both or neither, got only one of them")
    phases = {}
    for argument in args.reference:
        name, separator, folder = argument.partition("=")
        phases[name if separator else ONLY_PHASE] = Path(folder if separator else name)
    if len(phases) < len(args.reference):
        raise PVSError("--reference: expected a unique name for each of several phases (PHASE=DIR)")
    scores: list[Score] = []
    problems: list[str] = []
    for argument in args.team:
        team, folder = _named(argument, "--team", "NAME=DIR")
        for phase, reference in phases.items():
            masks = Path(folder) / phase if len(phases) > 1 else Path(folder)
            report = evaluate(reference, masks, args.regions, args.workers, weights=anatomy_weights(default_weights()))
            problems += [f"{team}: {line}" for line in report.problems]
            for line in report.warnings:
                print(f"warning: {team}: {line}", file=sys.stderr)
            scores += scores_of(report, team, phase)
    return scores, problems


def _named(argument: str, option: str, form: str) -> tuple[str, str]:
    name, separator, value = argument.partition("=")
    if not (name and separator and value):
        raise PVSError(f"{option}: expected {form}, got {argument}")
    return name, value

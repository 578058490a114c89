"""Segment a data set with real labels and score the masks, in one command."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model import files
from pvs_model.batch import ReportOptions, inputs, report_interrupted
from pvs_model.batch import run as run_folder
from pvs_model.commands.evaluate import anatomy_weights
from pvs_model.config import default_weights
from pvs_model.errors import LayoutError, VolumeError, escape_control_characters

if TYPE_CHECKING:
    from pvs_model.datasets.reference_masks import ReferenceMasks
    from pvs_model.evaluation.results import Evaluation
    from pvs_model.layouts import Options
    from pvs_model.types import Case

#: Columns of ``comparison.csv`` after those of a summary: statistics of each score.
_STATISTICS = ("n", "without", "mean", "sd", "median", "low", "high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``validate``."""
    parser.add_argument("input", type=Path, help="folder of cases with reference masks, such as VALDO's Task1")
    parser.add_argument("--output", type=Path, default=Path("validation"), help="folder (default: validation)")
    inputs.add_arguments(parser, default_weights())
    parser.add_argument("--workers", type=int, metavar="N", help="processes for scoring (default: one per core)")


def run(args: argparse.Namespace) -> int:
    """Segments every case with a reference mask, scores all of them, and writes the tables.

    The output folder gets ``masks``, ``references`` (means of raters and estimated regions), ``comparison.csv`` and
    ``comparison.txt``, and ``scores_*.csv`` with one line per case and region.

    Returns:
        0; 1 when a case could not be segmented or scored.

    Raises:
        PVSError: No case has a reference mask.
    """
    from pvs_model.datasets.reference_masks import compare, prepare_comparisons
    from pvs_model.evaluation.summary import as_csv

    options = inputs.options_from(args)
    labelled, without, problems = _labelled(args, options)
    if args.dry_run:
        lines = [f"{case.name}: {', '.join((*case.images, *references.masks))}" for case, references in labelled]
        print("\n".join([*lines, f"cases without reference masks: {without}", *problems]))
        return 1 if problems else 0
    config = inputs.batch_config(args)
    reports = ReportOptions(args.report, args.probability, viewer=args.viewer) if args.report else None
    masks, output = args.output / "masks", args.output
    names = {case.name for case, _ in labelled}
    try:
        failures = run_folder(
            args.input, masks, config, args.layout, options, reports, args.part, lambda case: case.name in names
        )
    except KeyboardInterrupt:
        return report_interrupted()
    weights = anatomy_weights(args.weights) if args.anatomy else None
    failed = {case.name for case, _ in labelled if any(line.startswith(f"{_shown(case)}: ") for line in failures)}
    comparisons = prepare_comparisons(labelled, masks, output / "references", weights, failed)
    results = compare(comparisons, args.workers)
    files.write_text(output / "comparison.csv", _comparison_csv(results))
    for name, result in results.items():
        files.write_text(output / f"scores_{re.sub(r'[^a-z0-9]+', '_', name.lower())}.csv", as_csv(result.rows))
    text = _comparison_text(results, len(labelled), without)
    files.write_text(output / "comparison.txt", text)
    print(text, end="")
    problems += [*failures, *dict.fromkeys(line for result in results.values() for line in result.problems)]
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 1 if problems else 0


def _shown(case: Case) -> str:
    """The name of a case as the sentence on its failure begins."""
    return escape_control_characters(case.name)


def _labelled(args: argparse.Namespace, options: Options) -> tuple[list[tuple[Case, ReferenceMasks]], int, list[str]]:
    """The cases with reference masks, the number of those without, and sentences on those that cannot be used."""
    from pvs_model.datasets.reference_masks import find_reference_masks
    from pvs_model.layouts import choose

    options = inputs.with_output_folders(options, args.output, ReportOptions(args.report) if args.report else None)
    cases = choose(args.input, args.layout, options).find_cases(args.input)
    if args.part is not None:
        cases = args.part.select(cases)
    problems = [f"{case.name}: {case.problem}" for case in cases if case.problem is not None]
    labelled: list[tuple[Case, ReferenceMasks]] = []
    for case in cases:
        try:
            references = find_reference_masks(case)
        except VolumeError as error:
            problems.append(str(error))
            continue
        labelled += [] if references is None else [(case, references)]
    if not labelled:
        raise LayoutError(
            f"{args.input}: expected reference masks beside the images (<case>_PVS.nii.gz; VALDO: "
            f"sub-X_space-T1_desc-Rater1_PVSSeg.nii.gz), got none in {len(cases)} cases"
        )
    return labelled, len(cases) - len(labelled) - len(problems), problems


def _comparison_csv(results: dict[str, Evaluation]) -> str:
    """One line per comparison, group of cases, region and official score."""
    from pvs_model.evaluation.tables import csv_text

    columns = ("comparison", "by", "group", "region", "score", *_STATISTICS)
    rows = [
        {"comparison": name, **{column: getattr(summary, column) for column in columns[1:]}}
        for name, result in results.items()
        for summary in result.summaries
        if summary.score_set == "official"
    ]
    return csv_text(columns, rows)


def _comparison_text(results: dict[str, Evaluation], cases: int, without: int) -> str:
    """A table per comparison under its name, and what qualifies the numbers."""
    from pvs_model.evaluation.summary import text
    from pvs_model.evaluation.tables import document

    first = f"{cases} cases with reference masks"
    parts = [f"{first}, {without} without (left out)." if without else f"{first}."]
    for name, result in results.items():
        parts += [f"## {name}", text(result)]
    parts.append("Means ± SD over cases with the 95 % bootstrap interval of the mean; scores of the EPVS challenge.")
    warnings = dict.fromkeys(line for result in results.values() for line in result.warnings)
    return document(parts, warnings)

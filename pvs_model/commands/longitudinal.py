"""Segment two or more visits of one subject and measure the change of their PVS."""

from __future__ import annotations

import argparse
import itertools
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pvs_model import files
from pvs_model.batch import report_failures, report_interrupted
from pvs_model.config import InferenceConfig, default_weights
from pvs_model.errors import PVSError

if TYPE_CHECKING:
    from pvs_model.burden.change import Change, Visit
    from pvs_model.layouts import Layout
    from pvs_model.pipeline import SegmentationResult
    from pvs_model.types import Case, Volume

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of ``longitudinal``."""
    parser.add_argument("visits", type=Path, metavar="IN", help="folder with one case per visit, in order of names")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for masks, reports and tables")
    parser.add_argument("--weights", type=Path, default=default_weights(), help="folder with MANIFEST.json")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--register", action="store_true", help="register the sequences of each visit, too")
    parser.add_argument("--no-viewer", dest="viewer", action="store_false", help="small pages without the volume")


def run(args: argparse.Namespace) -> int:
    """Segments and compares the visits; those that fail are reported, and the others compared.

    Returns:
        0 when every visit was segmented, 1 when one failed, 130 when the run was stopped.

    Raises:
        PVSError: fewer than two visits could be segmented, or the cases are of several subjects.
    """
    try:
        return _segment_and_compare(args)
    except KeyboardInterrupt:
        return report_interrupted(resumable=False)


def _segment_and_compare(args: argparse.Namespace) -> int:
    from pvs_model.batch.outputs import describe_failure
    from pvs_model.layouts import choose
    from pvs_model.pipeline import Segmenter

    layout = choose(args.visits)
    cases = sorted(layout.find_cases(args.visits), key=lambda case: files.natural_sort_key(case.name))
    if len(cases) < 2:
        raise PVSError(f"{args.visits}: expected two or more visits, one case each, got {len(cases)}")
    subjects = sorted({match[0] for case in cases if (match := re.search(r"sub-[a-zA-Z0-9]+", case.name))})
    if len(subjects) > 1:
        raise PVSError(f"{args.visits}: expected visits of one subject, got {len(subjects)}: {', '.join(subjects[:3])}")
    segmenter = Segmenter(InferenceConfig(args.weights, args.device, register=args.register))
    results: dict[str, SegmentationResult] = {}
    failures = []
    for case in cases:
        try:
            results[case.name] = segmenter.segment(case)
            _write(case, results[case.name], layout, args.output, args.viewer)
        except Exception as error:  # also a bug of this package or of a library: the other visits continue
            log.debug("%s", case.name, exc_info=True)
            results.pop(case.name, None)
            failures.append(describe_failure(case, error))
    if len(results) < 2:
        raise PVSError(f"expected two or more visits that can be segmented, got {len(results)}: {'; '.join(failures)}")
    write_changes(results, args.output)
    print(f"wrote {args.output / 'longitudinal.html'}, longitudinal.csv and pvs_changes.csv")
    return report_failures(failures)


def write_changes(results: dict[str, SegmentationResult], output: Path) -> None:
    """Compares the visits and writes ``longitudinal.csv``, ``pvs_changes.csv`` and ``longitudinal.html``.

    Args:
        results: Segmentations by name of the visit, in order; two or more.
        output: Folder of these files.
    """
    from pvs_model.burden.change import CHANGE_COLUMNS, MATCH_COLUMNS
    from pvs_model.evaluation.tables import csv_text
    from pvs_model.reports.longitudinal_report import write_longitudinal_report

    visits, changes, errors_mm = changes_between(results)
    for name, columns, rows in (
        ("longitudinal", CHANGE_COLUMNS, [row for change in changes for row in change.rows()]),
        ("pvs_changes", MATCH_COLUMNS, [row for change in changes for row in change.pvs_rows()]),
    ):
        files.write_text(output / f"{name}.csv", csv_text(columns, rows))
    write_longitudinal_report(output / "longitudinal.html", visits, changes, errors_mm)


def changes_between(
    results: dict[str, SegmentationResult],
) -> tuple[list[Visit], list[Change], dict[str, float]]:
    """Registers the visits, and compares each with the next and the last with the first.

    Args:
        results: Segmentations by name of the visit, in order; two or more.

    Returns:
        The visits; the changes; the disagreement of the registrations of each visit but the first, mm.

    Raises:
        PVSError: two visits cannot be registered.
    """
    from pvs_model.burden.change import Visit, change_between, middle_space
    from pvs_model.burden.regions import burden_of
    from pvs_model.volume.registration import register_symmetric

    images = _common_images(results)
    first = next(iter(images))
    fits = {}
    for name in list(images)[1:]:
        try:
            fits[name] = register_symmetric(images[first], images[name])
        except RuntimeError as error:
            raise PVSError(f"{name}: expected an image that overlaps with that of {first}, got one apart") from error
    transforms = middle_space([np.eye(4), *(fit.transform for fit in fits.values())])
    visits = []
    for (name, result), to_middle in zip(results.items(), transforms, strict=True):
        prepared, mask = result.prepared, result.canonical_mask
        burden = burden_of(mask, prepared.grid.affine, prepared.anatomy, result.pvs_fraction)
        visits.append(Visit(name, mask != 0, prepared.grid.affine, burden, to_middle))
    pairs = list(itertools.pairwise(visits)) + ([(visits[0], visits[-1])] if len(visits) > 2 else [])
    changes = [change_between(earlier, later) for earlier, later in pairs]
    return visits, changes, {name: fit.disagreement_mm for name, fit in fits.items()}


def _write(case: Case, result: SegmentationResult, layout: Layout, output: Path, viewer: bool) -> None:
    from pvs_model.batch.outputs import ReportOptions, report_case, write_case

    masks, reports = output / "masks", ReportOptions(output / "reports", viewer=viewer)
    report = reports.open(masks)
    write_case(case, result, layout, masks)
    report_case(case, result, report, reports)
    report.finish([case.name])


def _common_images(results: dict[str, SegmentationResult]) -> dict[str, Volume]:
    """Returns the image of each visit to register by: of the sequence that most visits have, T2w first."""
    from pvs_model.types import SEQUENCES, Volume

    volumes: dict[str, Volume] = {}
    order = ("T2w", "T1w", "FLAIR")
    common = max(order, key=lambda name: sum(name in result.prepared.sequences for result in results.values()))
    for visit, result in results.items():
        sequences = result.prepared.sequences
        name = common if common in sequences else next(name for name in order if name in sequences)
        volumes[visit] = Volume(result.prepared.image[SEQUENCES.index(name)], result.prepared.grid.affine)
    return volumes

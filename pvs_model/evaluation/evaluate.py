"""Scores a folder of predictions against a folder of reference masks, case by case and region by region."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pvs_model.errors import PVSError, VolumeError, one_line
from pvs_model.evaluation.file_matching import CaseFiles, ignore_mask_of, match_files
from pvs_model.evaluation.metrics import all_sets, penalty_scores, without_ignored
from pvs_model.evaluation.regions import BOXES, NO_REGIONS, REGION_ORDER, RegionMasks, Regions, regions_of
from pvs_model.evaluation.results import MISSING, REFUSED, SCORED, Evaluation, Row
from pvs_model.evaluation.summary import summarise
from pvs_model.layouts.base import listed
from pvs_model.volume.geometry import to_ras_grid
from pvs_model.volume.masks import aligned, read_mask, read_region

log = logging.getLogger(__name__)

#: Each case's own masks, or none.
AS_GIVEN = Regions()
#: Number of cases from which several processes pay off: each takes seconds to start.
PARALLEL_FROM = 8

ESTIMATED = "the regions are estimates of our anatomy network"
ABOVE_ONE = "the challenge's precision passes 1: a predicted cluster touches several true ones"


@dataclass(frozen=True)
class ScoredCase:
    """The rows of one case, and its problems in a sentence each."""

    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()
    data_errors: tuple[str, ...] = ()  # those among the problems that are not the prediction's


def evaluate(
    references: Path,
    predictions: Path,
    regions: Path | str | None = None,
    workers: int | None = None,
    suffix: str = "pred",
    weights: Path | None = None,
) -> Evaluation:
    """Scores every case of a folder of reference masks.

    A case without a prediction gets penalty scores, and so does one whose prediction cannot be read or lies on
    another grid than the reference: both are counted and reported. Predictions without a reference are reported.

    Args:
        references, predictions: Folders, in the forms of ``file_matching``.
        regions: Folder of region masks; "boxes" for the boxes that the challenge's script uses without an atlas;
            "none"; None for masks beside the references, or else estimates from the images there.
        workers: Number of processes; None for one per core, or a single one for a few cases.
        suffix: One more ending of the predictions' names.
        weights: Weights folder with the anatomy network; None to do without.

    Raises:
        PVSError: nothing can be scored at all.
    """
    folder = Path(regions) if regions is not None and regions not in (BOXES, NO_REGIONS) else None
    if folder is not None and not folder.is_dir():
        raise VolumeError(f"{folder}: expected a folder of region masks, got {'a file' if folder.exists() else 'none'}")
    cases, extra = match_files(references, predictions, folder, suffix)
    way = str(regions) if regions in (BOXES, NO_REGIONS) else None
    report = score_cases(cases, Regions(way, weights if folder is None else None), workers)
    warnings = list(report.warnings)
    if extra:
        warnings.append(f"{predictions}: {len(extra)} masks belong to no reference and were left out: {listed(extra)}")
    sources = {BOXES: "boxes around the middle of the image, as in the challenge's script", NO_REGIONS: "none"}
    source = sources.get(way or "", str(folder) if folder else "masks beside the reference")
    return replace(report, warnings=tuple(warnings), regions_from=source, names=(str(references), str(predictions)))


def score_cases(cases: Sequence[CaseFiles], regions: Regions = AS_GIVEN, workers: int | None = None) -> Evaluation:
    """Scores cases whose files are known, as ``evaluate`` does."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if len(cases) >= PARALLEL_FROM else 1
    workers = min(workers, len(cases))
    results = sorted(_each(cases, regions, workers), key=lambda entry: entry[0])
    rows = [row for _, scored in results for row in scored.rows]
    problems = [problem for _, scored in results for problem in scored.problems]
    data_errors = [error for _, scored in results for error in scored.data_errors]
    warnings = []
    if missing := [case.label for case in cases if {case.prediction, case.problem, case.data_error} == {None}]:
        warnings.append(
            f"{len(missing)} of {len(cases)} cases have no prediction and get the worst scores: {listed(missing)}"
        )
    whole = {row.label for row in rows} - {row.label for row in rows if row.region != "all"}
    if whole and regions.way is None:
        warnings.append(
            f"{len(whole)} of {len(cases)} cases have no region masks and are scored in the whole image only: "
            f"{listed(sorted(whole))}"
        )
    scored: dict[str, set[str]] = {}
    for row in rows:
        scored.setdefault(row.label, set()).add(row.region)
    given = {row.region for row in rows}
    lacking = {label: given - names for label, names in scored.items() if label not in whole}
    if some := [f"{label} ({', '.join(sorted(names))})" for label, names in sorted(lacking.items()) if names]:
        warnings.append(
            f"{len(some)} of {len(cases)} cases lack a region mask that others have and are not scored there: "
            f"{listed(some)}"
        )
    if estimated := sorted({row.label for row in rows if ESTIMATED in row.notes}):
        warnings.append(f"in {len(estimated)} of {len(cases)} cases {ESTIMATED}: {listed(estimated)}")
    passing = sum(ABOVE_ONE in row.notes for row in rows)
    if passing:
        warnings.append(f"in {passing} of {len(rows)} rows {ABOVE_ONE}")
    return Evaluation(tuple(rows), summarise(rows), tuple(problems), tuple(data_errors), tuple(warnings))


def score_case(case: CaseFiles, regions: Regions = AS_GIVEN) -> ScoredCase:
    """Reads one case's masks and scores it in every region."""
    if case.data_error is not None:
        return _not_scored(f"{case.label}: not scored: {case.data_error}")
    try:
        image = read_mask(case.reference)
        reference = aligned(image, image.grid, case.reference)
        whole = np.ones(reference.shape, bool)
        if case.annotated:
            whole = aligned(read_region(case.annotated), image.grid, case.reference)
        ignored = None
        if (ignore_mask := ignore_mask_of(case.reference)) is not None:
            ignored = aligned(read_mask(ignore_mask), image.grid, case.reference)
    except VolumeError as error:
        return _not_scored(f"{case.label}: not scored, since its reference mask cannot be read: {error}")
    status, problems, data_errors, prediction = SCORED, [], [], None
    if case.prediction is None:
        status = REFUSED if case.problem else MISSING
        problems += [f"{case.label}: {case.problem}"] if case.problem else []
    else:
        try:
            prediction = aligned(read_mask(case.prediction), image.grid, case.reference)
            if ignored is not None:
                prediction = without_ignored(prediction, reference, ignored)
        except VolumeError as error:
            status = REFUSED
            problems.append(f"{case.label}: {error}")
    given = RegionMasks({})
    try:
        given = regions_of(case, image, regions)
    except PVSError as error:
        data_errors.append(f"{case.label}: scored in the whole image only: {error}")
    within = {**{name: mask & whole for name, mask in given.masks.items()}, "all": whole}
    spacing = to_ras_grid(image.grid)[0].spacing_mm
    rows = []
    for region in REGION_ORDER:
        if region not in within:
            continue
        inside = within[region]
        if prediction is None:
            counts, sets = penalty_scores(reference & inside, spacing)
        else:
            counts, sets = all_sets(prediction & inside, reference & inside, spacing)
        notes = [ABOVE_ONE] if (sets["official"]["precision"] or 0) > 1 else []
        notes += [ESTIMATED] if given.estimated_from and region != "all" else []
        rows.append(
            Row(
                case=case.case,
                site=case.site,
                protocol=" x ".join(f"{s:g}" for s in np.round(spacing, 2)) + " mm",
                region=region,
                status=status,
                counts=counts,
                sets=sets,
                reference=case.reference,
                prediction=case.prediction,
                notes=tuple(notes),
            )
        )
    return ScoredCase(tuple(rows), (*problems, *data_errors), tuple(data_errors))


def _not_scored(sentence: str) -> ScoredCase:
    return ScoredCase((), (sentence,), (sentence,))


def _each(cases: Sequence[CaseFiles], regions: Regions, workers: int) -> Iterator[tuple[int, ScoredCase]]:
    """Yields (index, result) of every case as they come, with a progress bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(cases), unit=" cases", leave=False, disable=None) as bar:
        for entry in _serial(cases, regions) if workers <= 1 else _parallel(cases, regions, workers):
            bar.update()
            yield entry


def _serial(cases: Iterable[CaseFiles], regions: Regions) -> Iterator[tuple[int, ScoredCase]]:
    for place, case in enumerate(cases):
        yield place, _guarded(case, regions)


def _parallel(cases: Sequence[CaseFiles], regions: Regions, workers: int) -> Iterator[tuple[int, ScoredCase]]:
    """Scores in several processes; if a process dies (such as out of memory), only its case is lost."""
    left = dict(enumerate(cases))
    # Not forked: a forked copy of a process with threads can hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_guarded, case, regions): place for place, case in left.items()}
        try:
            for future in as_completed(futures):
                result = future.result()
                del left[futures[future]]
                yield futures[future], result
        except BrokenProcessPool:
            log.warning("a process of the evaluation died; the %d cases left are scored one at a time", len(left))
    for place, case in left.items():
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_one_thread) as pool:
            try:
                yield place, pool.submit(_guarded, case, regions).result()
            except BrokenProcessPool:
                yield (
                    place,
                    _not_scored(f"{case.label}: not scored, since the process that scored it died (out of memory?)"),
                )


def _guarded(case: CaseFiles, regions: Regions) -> ScoredCase:
    """Scores a case as ``score_case``; an unexpected error costs this case only."""
    try:
        return score_case(case, regions)
    except PVSError as error:
        return _not_scored(f"{case.label}: not scored: {error}")
    except Exception as error:
        log.debug("%s", case.label, exc_info=True)
        text = f"{type(error).__name__}: {one_line(error)}"
        return _not_scored(f"{case.label}: not scored, unexpected {text}")


def _one_thread() -> None:
    """Restricts each of several processes to one core."""
    import torch

    torch.set_num_threads(1)

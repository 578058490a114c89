"""Scores of a folder of predictions against a folder of truth, case by case and region by region."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pvs_model.errors import PVSError, VolumeError
from pvs_model.evaluation.metrics import all_sets, without_ignored, worst
from pvs_model.evaluation.pairs import Pair, find_pairs
from pvs_model.evaluation.records import MISSING, REFUSED, SCORED, Report, Row
from pvs_model.evaluation.regions import BOXES, NO_REGIONS, REGION_ORDER, Found, Regions, regions_of
from pvs_model.evaluation.report import summarise
from pvs_model.layouts.base import listed
from pvs_model.volume.geometry import to_ras_grid
from pvs_model.volume.masks import aligned, read_mask

log = logging.getLogger(__name__)

#: Each case's own masks, and nothing in their place.
AS_GIVEN = Regions()
#: From so many cases on several processes pay: each takes seconds to start.
PARALLEL_FROM = 8

ESTIMATED = "the regions are estimates of our anatomy network"
ABOVE_ONE = "the challenge's precision passes 1: a predicted cluster touches several true ones"


@dataclass(frozen=True)
class Scored:
    """The rows of one case, and what went wrong, in a sentence each."""

    rows: tuple[Row, ...] = ()
    problems: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()  # those among the problems that are not the prediction's


def evaluate(
    truth: Path,
    predictions: Path,
    regions: Path | str | None = None,
    workers: int | None = None,
    suffix: str = "pred",
    weights: Path | None = None,
) -> Report:
    """Score every case of a folder of truth.

    A case without a prediction gets the worst scores, and so does one whose prediction cannot be read or lies on
    another grid than the truth: both are counted and told. Predictions without a truth are told and left out.

    Args:
        truth, predictions: folders, in the forms of ``pairs``.
        regions: folder of region masks; "boxes" for the boxes that the challenge's script uses where it has no
            atlas; "none"; None for masks beside the truth, or else by the anatomy network from images beside it.
        workers: processes; None for one per core, or a single one for a few cases.
        suffix: one more ending that the names of predictions may have.
        weights: weights folder with the anatomy network; None to do without.

    Raises:
        PVSError: when nothing can be scored at all.
    """
    folder = Path(regions) if regions is not None and regions not in (BOXES, NO_REGIONS) else None
    if folder is not None and not folder.is_dir():
        raise VolumeError(
            f"{folder}: expected a folder of region masks, found {'a file' if folder.exists() else 'none'}"
        )
    pairs, extra = find_pairs(truth, predictions, folder, suffix)
    way = str(regions) if regions in (BOXES, NO_REGIONS) else None
    report = score_pairs(pairs, Regions(way, weights if folder is None else None), workers)
    warnings = list(report.warnings)
    if extra:
        warnings.append(f"{predictions}: {len(extra)} masks belong to no truth and were left out: {listed(extra)}")
    told = {BOXES: "boxes around the middle of the image, as in the challenge's script", NO_REGIONS: "none"}
    from_where = told.get(way or "", str(folder) if folder else "masks beside the truth")
    return replace(report, warnings=tuple(warnings), regions_from=from_where, names=(str(truth), str(predictions)))


def score_pairs(pairs: Sequence[Pair], regions: Regions = AS_GIVEN, workers: int | None = None) -> Report:
    """Score cases whose files are known, as ``evaluate`` does."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if len(pairs) >= PARALLEL_FROM else 1
    workers = min(workers, len(pairs))
    results = sorted(_each(pairs, regions, workers), key=lambda entry: entry[0])
    rows = [row for _, scored in results for row in scored.rows]
    problems = [problem for _, scored in results for problem in scored.problems]
    faults = [fault for _, scored in results for fault in scored.faults]
    warnings = []
    if missing := [pair.label for pair in pairs if {pair.prediction, pair.problem, pair.fault} == {None}]:
        warnings.append(
            f"{len(missing)} of {len(pairs)} cases have no prediction and get the worst scores: {listed(missing)}"
        )
    whole = {row.label for row in rows} - {row.label for row in rows if row.region != "all"}
    if whole and regions.way is None:
        warnings.append(
            f"{len(whole)} of {len(pairs)} cases have no region masks and are scored in the whole image only: "
            f"{listed(sorted(whole))}"
        )
    if estimated := sorted({row.label for row in rows if ESTIMATED in row.notes}):
        warnings.append(f"in {len(estimated)} of {len(pairs)} cases {ESTIMATED}: {listed(estimated)}")
    passing = sum(ABOVE_ONE in row.notes for row in rows)
    if passing:
        warnings.append(f"in {passing} of {len(rows)} rows {ABOVE_ONE}")
    return Report(tuple(rows), summarise(rows), tuple(problems), tuple(faults), tuple(warnings))


def score_pair(pair: Pair, regions: Regions = AS_GIVEN) -> Scored:
    """Read one case's masks and score it in every region."""
    if pair.fault is not None:
        return _fault(f"{pair.label}: not scored: {pair.fault}")
    try:
        true = read_mask(pair.truth)
        truth = aligned(true, true.grid, pair.truth)
    except VolumeError as error:
        return _fault(f"{pair.label}: not scored, since its truth cannot be read: {error}")
    status, problems, faults, found = SCORED, [], [], None
    if pair.prediction is None:
        status = REFUSED if pair.problem else MISSING
        problems += [f"{pair.label}: {pair.problem}"] if pair.problem else []
    else:
        try:
            found = aligned(read_mask(pair.prediction), true.grid, pair.truth)
            ignored = pair.truth.with_name(pair.truth.name.replace("_PVS.", "_IGNORE."))
            if ignored != pair.truth and ignored.is_file():  # of simulated cases
                found = without_ignored(found, truth, aligned(read_mask(ignored), true.grid, pair.truth))
        except VolumeError as error:
            status = REFUSED
            problems.append(f"{pair.label}: {error}")
    given = Found({})
    try:
        given = regions_of(pair, true, regions)
    except PVSError as error:
        faults.append(f"{pair.label}: scored in the whole image only: {error}")
    within = {**given.masks, "all": np.ones(truth.shape, bool)}
    spacing = to_ras_grid(true.grid)[0].spacing_mm
    rows = []
    for region in REGION_ORDER:
        if region not in within:
            continue
        inside = within[region]
        if found is None:
            counts, sets = worst(truth & inside, spacing)
        else:
            counts, sets = all_sets(found & inside, truth & inside, spacing)
        notes = [ABOVE_ONE] if (sets["official"]["precision"] or 0) > 1 else []
        notes += [ESTIMATED] if given.estimated_from and region != "all" else []
        rows.append(
            Row(
                case=pair.case,
                site=pair.site,
                protocol=" x ".join(f"{s:g}" for s in np.round(spacing, 2)) + " mm",
                region=region,
                status=status,
                counts=counts,
                sets=sets,
                truth=pair.truth,
                prediction=pair.prediction,
                notes=tuple(notes),
            )
        )
    return Scored(tuple(rows), (*problems, *faults), tuple(faults))


def _fault(sentence: str) -> Scored:
    return Scored((), (sentence,), (sentence,))


def _each(pairs: Sequence[Pair], regions: Regions, workers: int) -> Iterator[tuple[int, Scored]]:
    """(place, result) of every case as they come, with a bar on a terminal."""
    from tqdm import tqdm

    with tqdm(total=len(pairs), unit=" cases", leave=False, disable=not sys.stderr.isatty()) as bar:
        for entry in _serial(pairs, regions) if workers <= 1 else _parallel(pairs, regions, workers):
            bar.update()
            yield entry


def _serial(pairs: Iterable[Pair], regions: Regions) -> Iterator[tuple[int, Scored]]:
    for place, pair in enumerate(pairs):
        yield place, _guarded(pair, regions)


def _parallel(pairs: Sequence[Pair], regions: Regions, workers: int) -> Iterator[tuple[int, Scored]]:
    """In several processes; a process that dies (out of memory, say) costs its case, not the others."""
    left = dict(enumerate(pairs))
    # Not forked: a forked copy of a process with threads can hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_guarded, pair, regions): place for place, pair in left.items()}
        try:
            for future in as_completed(futures):
                result = future.result()
                del left[futures[future]]
                yield futures[future], result
        except BrokenProcessPool:
            log.warning("a process of the evaluation died; the %d cases left are scored one at a time", len(left))
    for place, pair in left.items():
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_one_thread) as pool:
            try:
                yield place, pool.submit(_guarded, pair, regions).result()
            except BrokenProcessPool:
                yield place, _fault(f"{pair.label}: not scored, since the process that scored it died (out of memory?)")


def _guarded(pair: Pair, regions: Regions) -> Scored:
    """As ``score_pair``; a bug of ours or of a library costs this case only."""
    try:
        return score_pair(pair, regions)
    except PVSError as error:
        return _fault(f"{pair.label}: not scored: {error}")
    except Exception as error:
        log.debug("%s", pair.label, exc_info=True)
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _fault(f"{pair.label}: not scored, unexpected {told}")


def _one_thread() -> None:
    """Each process of several computes on one core."""
    import torch

    torch.set_num_threads(1)

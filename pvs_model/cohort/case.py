"""What surrounds the segmentation of one case among many: where it is written, reported, and known to be done."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model.cohort.ahead import STOPPED
from pvs_model.errors import PVSError, VolumeError
from pvs_model.layouts import Layout
from pvs_model.layouts.subjects import is_nameless
from pvs_model.pipeline import SegmentationResult
from pvs_model.types import SEQUENCES, Case

if TYPE_CHECKING:
    from pvs_model.reports.folder import Report


log = logging.getLogger(__name__)

#: Bytes at the beginning and the end of an image by which it is known again.
_ENDS = 4096


@dataclass(frozen=True)
class Reports:
    """Where reports go: a folder of their own, and whether probabilities are kept there."""

    folder: Path
    probability: bool = False

    def open(self, output: Path) -> Report:
        """Make the folder.

        Raises:
            PVSError: it lies among the masks, or cannot be made.
        """
        if self.folder.resolve().is_relative_to(output.resolve()):
            raise PVSError(
                f"{self.folder}: expected a folder for reports outside that of the masks, found it in {output}"
            )
        from pvs_model.reports.folder import Report

        return Report(self.folder)


def write(case: Case, result: SegmentationResult, layout: Layout, output: Path) -> Path:
    """Write the mask of a case where its layout wants it.

    Raises:
        PVSError: when it cannot be written.
    """
    from pvs_model.volume.io import write_mask

    path = output / case.output
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VolumeError(f"{path.parent}: expected a folder that can be made, found {error.strerror}") from error
    write_mask(path, result.mask, case.images[result.reference], origin_of(case))
    layout.finish(case, path, output, result.metadata)
    return path


def report_case(case: Case, result: SegmentationResult, report: Report, probability: bool = False) -> None:
    """Measure a case, and write its page, its numbers and, if asked for, its probabilities among the reports.

    Raises:
        PVSError: when something cannot be written.
    """
    from pvs_model.reports.folder import view_of
    from pvs_model.volume.io import read_grid, write_volume

    prepared = result.prepared
    images = dict(zip(SEQUENCES, prepared.image, strict=True))
    mask, metadata = result.canonical_mask, result.metadata
    report.add(view_of(case.name, images, mask, prepared.grid, prepared.anatomy, metadata, result.fluid))
    if probability:
        stored = read_grid(case.images[result.reference])
        maps = {"prob": result.probability}
        if result.fluid is not None:
            maps["fluid"] = prepared.restore_grid(result.fluid)
        for name, values in maps.items():
            write_volume(report.folder / "probability" / f"{case.name}_{name}.nii.gz", values, stored.affine)


def printable(text: str) -> str:
    """Text on one line: what a terminal would not show is spelt. Names of files are a stranger's."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def tell(failures: list[str]) -> int:
    """Say on stderr what failed, one line a case; where several did, the last line says how many.

    Returns:
        the exit status: 0 where nothing failed, else 1.
    """
    last = [f"{len(failures)} cases failed, the last: {failures[-1]}"] if failures[1:] else failures[-1:]
    sys.stderr.writelines(f"error: {failure}\n" for failure in [*failures[:-1], *last])
    return 1 if failures else 0


def tell_stopped() -> int:
    """Say on stderr that the run was stopped by Ctrl-C or SIGTERM, and return the exit status of that."""
    sys.stderr.write("error: stopped; masks already written are complete, --resume does the rest\n")
    return STOPPED


def origin_of(case: Case) -> str:
    """What a mask's header keeps of the images that it was made from: a digest of their sizes, beginnings and ends.

    The end of a compressed file holds its check sum.

    Raises:
        VolumeError: an image cannot be read.
    """
    digest = hashlib.sha256()
    for sequence, path in sorted(case.images.items()):
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{sequence} {size} ".encode())
                for start in (0, max(0, size - _ENDS)):
                    file.seek(start)
                    digest.update(file.read(_ENDS))
        except OSError as error:
            raise VolumeError(f"{path}: expected an image that can be read, found: {error.strerror}") from error
    return f"pvs_model, images {digest.hexdigest()[:16]}"


def is_of_others(case: Case, output: Path) -> bool:
    """Whether the mask in a case's place was made from other images than those of the case."""
    from pvs_model.volume.io import read_note

    try:
        note = read_note(output / case.output)
        return note.startswith("pvs_model, ") and note != origin_of(case)
    except VolumeError:
        return False  # there is none, or it is told when the case is run


def refusal(case: Case, output: Path) -> str | None:
    """Why a case must not be run: it has no name of its own, and another's mask lies in its place. Else None."""
    if case.problem is not None or not is_nameless(case.name) or not is_of_others(case, output):
        return None
    return (
        f"{case.name}: expected {output / case.output} to be of these images, found that of others without a name "
        "too: put the images into a folder named after the subject, or choose another output folder"
    )


@dataclass(frozen=True)
class Todo:
    """What a run has to do.

    Attributes:
        left: cases to be run.
        done: names of those that an earlier run has finished.
        refused: sentences on those that must not be run, by name.
    """

    left: tuple[Case, ...]
    done: frozenset[str]
    refused: Mapping[str, str]


def todo_of(cases: Sequence[Case], layout: Layout, output: Path, report: Report | None, resume: bool) -> Todo:
    """Which cases are to be run; those whose masks were made from other images replace them, and that is told."""
    refused = {case.name: sentence for case in cases if (sentence := refusal(case, output)) is not None}
    done = {case.name for case in cases if resume and is_done(case, layout, output, report)}
    if resume:
        log.info("%s: %d of %d cases were there already", output, len(done), len(cases))
    for case in cases:
        if case.name not in refused and case.problem is None and is_of_others(case, output):
            log.warning("%s: replaces a mask that was made from other images", printable(case.name))
    for sentence in refused.values():
        log.error("%s", printable(sentence))
    left = tuple(case for case in cases if case.name not in done and case.name not in refused)
    return Todo(left, frozenset(done), {name: printable(sentence) for name, sentence in refused.items()})


def is_done(case: Case, layout: Layout, output: Path, report: Report | None) -> bool:
    """Whether an earlier run finished a case from the images that it has now.

    Files appear under their names only once they are whole.
    """
    from pvs_model.volume.io import read_grid

    reported = report is None or report.has(case.name)
    if case.problem is not None or not reported or not layout.is_complete(case, output) or is_of_others(case, output):
        return False
    try:
        shape = read_grid(output / case.output).shape
        return any(read_grid(path).shape == shape for path in case.images.values())
    except VolumeError:
        return False  # it is told when the case is run

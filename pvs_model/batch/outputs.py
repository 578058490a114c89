"""Writes masks and reports of many cases, records failures, and recognises cases that are already complete."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pvs_model.batch.prefetch import INTERRUPTED
from pvs_model.errors import PVSError, VolumeError, escape_control_characters, one_line
from pvs_model.layouts import Layout
from pvs_model.layouts.subjects import is_nameless
from pvs_model.pipeline import SegmentationResult
from pvs_model.types import SEQUENCES, Case

if TYPE_CHECKING:
    from pvs_model.reports.folder import ReportFolder


log = logging.getLogger(__name__)

#: Bytes at the beginning and the end of a gzip file, which holds its check sum, that enter its digest.
_DIGEST_BYTES = 4096


@dataclass(frozen=True)
class ReportOptions:
    """Destination of reports.

    Attributes:
        folder: Folder of its own, outside that of the masks.
        probability: Whether probability maps are kept there.
        within_output: Whether the folder may lie among the masks.
        tables: Whether the run ends with tables and an index of all cases in the folder.
        viewer: Whether the page of a case holds its volume.
    """

    folder: Path
    probability: bool = False
    within_output: bool = False
    tables: bool = True
    viewer: bool = True

    def open(self, output: Path) -> ReportFolder:
        """Creates the folder.

        Raises:
            PVSError: The folder lies among the masks, or cannot be created.
        """
        if not self.within_output and self.folder.resolve().is_relative_to(output.resolve()):
            raise PVSError(
                f"{self.folder}: expected a folder for reports outside that of the masks, got one in {output}"
            )
        from pvs_model.reports.folder import ReportFolder

        return ReportFolder(self.folder, self.tables)


def write_case(case: Case, result: SegmentationResult, layout: Layout, output: Path) -> Path:
    """Writes the mask of a case, and region maps if its layout has them, at the places that the layout defines.

    Raises:
        PVSError: The mask cannot be written.
    """
    from pvs_model.volume.io import write_mask

    path = output / case.output
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VolumeError(f"{path.parent}: expected a folder that can be created, got: {error.strerror}") from error
    write_mask(path, result.mask, case.images[result.reference], image_digest(case))
    _write_region_maps(case, result, layout, output)
    layout.finish(case, path, output, result.metadata)
    return path


def _write_region_maps(case: Case, result: SegmentationResult, layout: Layout, output: Path) -> None:
    places, prepared = layout.region_maps(case), result.prepared
    if not places or prepared.anatomy is None:
        return
    from pvs_model.anatomy.inference import write_labels

    maps = {"regions": prepared.anatomy.labels, "brain": prepared.anatomy.brain.astype("uint8")}
    for name, place in places.items():
        write_labels(output / place, prepared.reorientation.invert(maps[name]), case.images[result.reference])


def report_case(case: Case, result: SegmentationResult, report: ReportFolder, reports: ReportOptions) -> None:
    """Measures a case and writes its page, its numbers and, where ``reports`` says so, its probability map.

    Raises:
        PVSError: A file cannot be written.
    """
    from pvs_model.reports.folder import view_of
    from pvs_model.volume.io import read_grid, write_volume

    prepared = result.prepared
    images = dict(zip(SEQUENCES, prepared.image, strict=True))
    mask, metadata = result.canonical_mask, result.metadata
    view = view_of(case.name, images, mask, prepared.grid, prepared.anatomy, metadata, result.pvs_fraction)
    report.add(replace(view, embed_volume=reports.viewer))
    if reports.probability:
        stored = read_grid(case.images[result.reference])
        maps = {"prob": result.probability}
        if result.pvs_fraction is not None:
            maps["fluid"] = prepared.reorientation.invert(result.pvs_fraction)
        for name, values in maps.items():
            write_volume(report.folder / "probability" / f"{case.name}_{name}.nii.gz", values, stored.affine)


def describe_failure(case: Case, error: Exception) -> str:
    """Returns the sentence that reports a failed case."""
    if isinstance(error, PVSError):
        return f"{case.name}: {error}"
    return f"{case.name}: unexpected {type(error).__name__}: {one_line(error)}"


def report_failures(failures: Sequence[str]) -> int:
    """Prints failures on stderr, one line per case; the last line gives their number where there are several.

    Returns:
        Exit status: 0 without failures, else 1.
    """
    last = [f"{len(failures)} cases failed, the last: {failures[-1]}"] if failures[1:] else failures[-1:]
    sys.stderr.writelines(f"error: {failure}\n" for failure in [*failures[:-1], *last])
    return 1 if failures else 0


def report_interrupted(resumable: bool = True) -> int:
    """Prints on stderr that the run was stopped by Ctrl-C or SIGTERM, and returns its exit status."""
    advice = ", --resume does the rest" if resumable else ""
    sys.stderr.write(f"error: stopped; masks already written are complete{advice}\n")
    return INTERRUPTED


def image_digest(case: Case) -> str:
    """Returns a note for a mask's header: a digest that differs where a voxel of the case's images does.

    Of gzip files (``.nii.gz``) it covers size, beginning and end with the check sum; of other files, and of those that
    hold the voxels of a header (``.mhd``), every byte.

    Raises:
        VolumeError: An image cannot be read.
    """
    from pvs_model.volume.itk import voxel_files

    digest = hashlib.sha256()
    for sequence, path in sorted(case.images.items()):
        try:
            for part in (path, *voxel_files(path)):
                digest.update(f"{sequence} {part.stat().st_size} ".encode())
                for block in _digested_blocks(part):
                    digest.update(block)
        except OSError as error:
            raise VolumeError(f"{path}: expected an image that can be read, got: {error.strerror}") from error
    return f"pvs_model, images {digest.hexdigest()[:16]}"


def _digested_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        beginning = file.read(_DIGEST_BYTES)
        yield beginning
        # Blocks with a check sum each (bgzip) have an extra field, the flag 4 of the fourth byte.
        if beginning.startswith(b"\x1f\x8b") and not beginning[3] & 4:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _DIGEST_BYTES))
        while block := file.read(2**20):
            yield block


def has_other_images(case: Case, output: Path) -> bool:
    """Whether the existing mask of a case was made from images other than the present ones."""
    from pvs_model.volume.io import read_note

    try:
        note = read_note(output / case.output)
        return note.startswith("pvs_model, ") and note != image_digest(case)
    except VolumeError:
        return False  # there is no mask, or the error is reported when the case is run


def name_conflict(case: Case, output: Path) -> str | None:
    """Returns why a case without a name of its own must not replace another's mask; None where it may be run."""
    if case.problem is not None or not is_nameless(case.name) or not has_other_images(case, output):
        return None
    return (
        f"{case.name}: expected {output / case.output} to be of these images, got that of other images without a name "
        "too: put the images into a folder named after the subject, or choose another output folder"
    )


def is_complete(case: Case, layout: Layout, output: Path, report: ReportFolder | None) -> bool:
    """Whether an earlier run completed a case from its present images.

    Files appear under their names only once they are complete.
    """
    from pvs_model.volume.io import read_grid

    reported = report is None or report.has(case.name)
    if case.problem is not None or not reported or not layout.is_complete(case, output):
        return False
    if has_other_images(case, output):
        return False
    try:
        shape = read_grid(output / case.output).shape
        return any(read_grid(path).shape == shape for path in case.images.values())
    except VolumeError:
        return False  # the error is reported when the case is run


@dataclass(frozen=True)
class WrittenCase:
    """A case that a run has written: number of PVS voxels, seconds, and the name of the machine if it was another."""

    voxels: int
    seconds: float
    host: str = ""


@dataclass
class ResultWriter:
    """Records the results of a run: log lines, failures, and the files that cases share.

    Attributes:
        cases: All cases of the run, in order.
        report: Reports of the run, if requested.
        pending: Cases to be run.
        completed: Number of cases that an earlier run completed.
        results: Cases written by this run, by name.
        reported: Names of the cases whose reports this run has written.
        failures: One sentence per failed case, by name.
        started: Time at which the run started.
    """

    cases: Sequence[Case]
    report: ReportFolder | None = None
    pending: tuple[Case, ...] = ()
    completed: int = 0
    results: dict[str, WrittenCase] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @classmethod
    def open(
        cls, cases: Sequence[Case], layout: Layout, output: Path, reports: ReportOptions | None, resume: bool
    ) -> ResultWriter:
        """Prepares the output folders and selects the cases to be run.

        Raises:
            PVSError: A folder cannot be created or used.
        """
        layout.prepare_output(output)
        report = reports.open(output) if reports is not None else None
        conflicts = {case.name: text for case in cases if (text := name_conflict(case, output)) is not None}
        complete = {case.name for case in cases if resume and is_complete(case, layout, output, report)}
        if resume:
            log.info("%s: %d of %d cases were there already", output, len(complete), len(cases))
        for case in cases:
            if case.name not in conflicts and case.problem is None and has_other_images(case, output):
                log.warning("%s: replaces a mask that was made from other images", escape_control_characters(case.name))
        failures = {name: escape_control_characters(text) for name, text in conflicts.items()}
        for text in failures.values():
            log.error("%s", text)
        pending = tuple(case for case in cases if case.name not in complete and case.name not in conflicts)
        return cls(cases, report, pending, len(complete), failures=failures)

    @property
    def written(self) -> int:
        """Number of masks written by this run."""
        return len(self.results)

    @property
    def finished(self) -> int:
        """Number of cases that are complete or have failed."""
        failed = sum(self._cases_of[name] for name in self.failures)  # those that clash on one mask have one name
        return self.completed + self.written + failed

    @cached_property
    def _cases_of(self) -> Counter[str]:
        return Counter(case.name for case in self.cases)

    def add(self, case: Case, path: Path, voxels: int, seconds: float, host: str = "") -> None:
        """Records a case whose mask, and report where requested, have been written."""
        self.results[case.name] = WrittenCase(voxels, seconds, host)
        if self.report is not None:
            self.reported.append(case.name)
        log.info(
            "%s: wrote %s, %d PVS voxels (%d of %d, %.1f s%s)",
            escape_control_characters(case.name), path, voxels, self.finished, len(self.cases), seconds,
            f", {host}" if host else "",
        )  # fmt: skip

    def fail(self, case: Case, problem: str) -> None:
        """Records a failed case, with one sentence that begins with its name."""
        self.failures[case.name] = problem = escape_control_characters(problem)
        log.error("%s", problem)
        if self.report is not None:
            try:
                self.report.fail(case.name, problem)
            except (PVSError, OSError) as error:
                log.error("%s", escape_control_characters(f"{case.name}: its report could not be written: {error}"))

    def close(self) -> list[str]:
        """Writes the tables and the index of the reports.

        Returns:
            One sentence per failed case, in the order of cases.

        Raises:
            PVSError: A table cannot be written.
        """
        if self.report is not None:
            self.report.finish(self.reported)
        return [self.failures[case.name] for case in self.cases if case.name in self.failures]

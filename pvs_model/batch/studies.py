"""Segments every study of a DICOM folder, and writes masks, DICOM segmentations and structured reports."""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pvs_model.batch.inputs import log_missing_weights
from pvs_model.batch.outputs import ReportOptions, ResultWriter, describe_failure, report_case, write_case
from pvs_model.batch.run_record import write_run_record
from pvs_model.burden.regions import burden_of
from pvs_model.config import BatchConfig
from pvs_model.dicom.convert import convert, unpacked
from pvs_model.dicom.headers import Study, read_studies, require_extra
from pvs_model.dicom.report import build_report
from pvs_model.dicom.segmentation import build_segmentation, read_headers, study_of, write_dicom
from pvs_model.dicom.sequences import Choices, select
from pvs_model.errors import LayoutError, PVSError, escape_control_characters
from pvs_model.layouts import LAYOUTS, Layout, Options
from pvs_model.pipeline import SegmentationResult, Segmenter
from pvs_model.types import Case
from pvs_model.volume.io import read_grid

log = logging.getLogger(__name__)


def run_studies(
    source: Path,
    output: Path,
    config: BatchConfig,
    choices: Choices = (),
    suffix: str = "pred",
    reports: ReportOptions | None = None,
    nifti: Path | None = None,
) -> list[str]:
    """Segments every study of a DICOM folder. Failed studies are logged; the remaining ones continue.

    Each study gets a folder with its mask (``STUDY_pred.nii.gz``), segmentation (``STUDY_SEG.dcm``) and report of
    measurements (``STUDY_SR.dcm``).

    Args:
        source: Folder or zip file of DICOM images in any structure.
        output: Output folder, created if necessary.
        config: Configuration of the inference; its number of workers is not used.
        choices: Series to use, as for ``dicom.sequences.select``.
        suffix: Suffix of the masks' names.
        reports: Destination of tables and HTML reports, if requested.
        nifti: Folder in which to keep the converted images; None to remove them.

    Returns:
        One sentence per failed study; empty when everything was written.

    Raises:
        PVSError: No study can be run at all.
        KeyboardInterrupt: The run was stopped; files that were written are complete.
    """
    require_extra()
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # it reports every attribute that it copies
    layout = LAYOUTS["epvs"](Options(suffix))
    with unpacked(source) as root:
        studies = read_studies(root)
        check_choices(studies, choices)
        log.info("%s: %d %s", source, len(studies), "study" if len(studies) == 1 else "studies")
        segmenter = Segmenter(config)
        log_missing_weights(config)
        layout.prepare_output(output)
        cases = {study: Case(study.name, {}, Path(study.name, f"{study.name}_{suffix}.nii.gz")) for study in studies}
        report = reports.open(output) if reports is not None else None
        writer = ResultWriter(list(cases.values()), report, tuple(cases.values()))
        run = _Run(segmenter, choices, layout, output, nifti, reports, writer)
        try:
            for study, case in cases.items():
                try:
                    run.process(study, case, config.resume)
                except Exception as error:  # also a bug of a library: the other studies continue
                    log.debug("%s", study.name, exc_info=True)
                    writer.fail(case, describe_failure(case, error))
        finally:
            failures = writer.close()
            write_run_record(writer, layout, source, output, config, None)
        return failures


@dataclass(frozen=True)
class _Run:
    """What the studies of a run share; attributes as of ``run_studies``."""

    segmenter: Segmenter
    choices: Choices
    layout: Layout
    output: Path
    nifti: Path | None
    reports: ReportOptions | None
    writer: ResultWriter

    def process(self, study: Study, case: Case, resume: bool) -> None:
        """Segments a study and writes its files, unless an earlier run has.

        Raises:
            PVSError: It cannot be segmented, or its folder holds another study.
        """
        seg, sr = (self.output / study.name / f"{study.name}_{ending}.dcm" for ending in ("SEG", "SR"))
        writer, report = self.writer, self.writer.report
        owner = study_of(seg)
        written = owner == study.uid and sr.is_file() and (self.output / case.output).is_file()
        if resume and written and (report is None or report.has(case.name)):
            writer.completed += 1
            writer.pending = tuple(other for other in writer.pending if other.name != case.name)
            return
        if owner not in (None, study.uid):
            raise PVSError(f"{seg}: expected study {study.uid}, got {owner}: choose another output folder")
        with tempfile.TemporaryDirectory(prefix="pvs_dicom_") as scratch:
            began = time.perf_counter()
            case, result = _segment(study, case, self.choices, self.segmenter, self.nifti or Path(scratch))
            path = write_case(case, result, self.layout, self.output)
            _write_objects(study, case, result, self.choices, seg, sr)
            if report is not None and self.reports is not None:
                report_case(case, result, report, self.reports)
        writer.add(case, path, int(result.mask.sum()), time.perf_counter() - began)


def describe_studies(source: Path, choices: Choices = ()) -> int:
    """Prints studies, and the sequence of each series or why it is not used; runs nothing.

    Returns:
        Exit status: 0 when every study can be run, else 1.

    Raises:
        PVSError: There is no study.
    """
    require_extra()
    failed = 0
    with unpacked(source) as root:
        studies = read_studies(root)
        check_choices(studies, choices)
        for study in studies:
            try:
                selection = select(study, choices)
                used = {series: sequence for sequence, series in selection.chosen.items()}
                lines = [
                    f"{used.get(series, '-'):5} {series.label}: {why}" for series, why in selection.reasons.items()
                ]
                title = f"{study.name}: study {study.uid}"
            except LayoutError as error:
                failed += 1
                title, lines = f"{study.name}: cannot be run: {error}", []
            sys.stdout.writelines(
                f"{escape_control_characters(line)}\n" for line in (title, *(f"  {x}" for x in lines))
            )
    return 1 if failed else 0


def check_choices(studies: Sequence[Study], choices: Choices) -> None:
    """Checks that every UID of ``--series`` occurs in the input.

    Raises:
        LayoutError: One does not.
    """
    known = {series.uid for study in studies for series in study.series}
    for sequence, pattern in choices:
        if pattern.replace(".", "").isdigit() and pattern not in known:
            raise LayoutError(f"--series {sequence}={pattern}: expected a series of the input, got no such UID")


def _segment(
    study: Study, case: Case, choices: Choices, segmenter: Segmenter, folder: Path
) -> tuple[Case, SegmentationResult]:
    """Converts and segments a study; returns its case with the converted images."""
    images = {}
    (folder / study.name).mkdir(parents=True, exist_ok=True)
    for sequence, series in select(study, choices).chosen.items():
        images[sequence] = folder / study.name / f"{study.name}_{sequence}.nii"
        convert(series, images[sequence])
        log.info("%s: %s is series %s", study.name, sequence, escape_control_characters(series.label))
    case = Case(case.name, images, case.output)
    return case, segmenter.segment(case)


def _write_objects(study: Study, case: Case, result: SegmentationResult, choices: Choices, seg: Path, sr: Path) -> None:
    """Writes segmentation and report on the series that defines the grid of the mask."""
    headers = read_headers(select(study, choices).chosen[result.reference])
    segmentation = build_segmentation(headers, result.mask, read_grid(case.images[result.reference]).affine)
    prepared = result.prepared
    burden = burden_of(result.canonical_mask, prepared.grid.affine, prepared.anatomy, result.pvs_fraction)
    report = build_report(headers, segmentation, burden)
    write_dicom(seg, segmentation)
    write_dicom(sr, report)

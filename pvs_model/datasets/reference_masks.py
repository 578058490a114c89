"""Reference masks of data sets with real labels, and the comparisons that measure a segmentation on them.

A case of VALDO has masks of one or two raters, of which the mean at 0.5 is a reference, too, and may be annotated in a
part of the image only. Any other case has one reference mask beside its images, as for training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pvs_model.datasets.labelled_cases import beside
from pvs_model.errors import PVSError, VolumeError
from pvs_model.evaluation.evaluate import score_cases
from pvs_model.evaluation.file_matching import CaseFiles
from pvs_model.evaluation.regions import Regions, regions_of
from pvs_model.evaluation.results import Evaluation
from pvs_model.layouts.valdo import annotated_in, raters_of
from pvs_model.types import CHALLENGE_REGIONS, Case
from pvs_model.volume.geometry import to_ras_grid
from pvs_model.volume.io import write_mask
from pvs_model.volume.masks import aligned, read_mask

#: Name of the reference of cases without raters, and of the mean of several raters at ``AGREEMENT``.
REFERENCE, MEAN = "reference", "mean of raters"
#: Share of the raters from which a voxel is PVS: with two raters, where either of them marked it.
AGREEMENT = 0.5


@dataclass(frozen=True)
class ReferenceMasks:
    """The reference masks of a case.

    Attributes:
        masks: Files by name: ``REFERENCE``, or one per rater.
        annotated: Files of the annotated part of the image; empty for the whole image.
        regions: Files of region masks by name.
    """

    masks: Mapping[str, Path]
    annotated: tuple[Path, ...] = ()
    regions: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def find_reference_masks(case: Case) -> ReferenceMasks | None:
    """Finds the reference masks beside the images of a case; None if there are none.

    Raises:
        VolumeError: Several files match.
    """
    masks = raters_of(case)
    if not masks:
        reference = beside(case, "PVS")
        masks = {} if reference is None else {REFERENCE: reference}
    regions = {name: (path,) for name in CHALLENGE_REGIONS if (path := beside(case, name)) is not None}
    return ReferenceMasks(masks, annotated_in(case), regions) if masks else None


def write_mean(masks: Sequence[Path], path: Path) -> None:
    """Writes the mean of masks at ``AGREEMENT``, on the grid of the first.

    Raises:
        VolumeError: A mask cannot be read, or lies on another grid than the first.
    """
    images = [read_mask(mask) for mask in masks]
    first = images[0]
    mean = np.mean([aligned(image, first.grid, first.source) for image in images], axis=0)
    write_mask(path, to_ras_grid(first.grid)[1].invert(mean >= AGREEMENT), first.source)


def prepare_comparisons(
    cases: Iterable[tuple[Case, ReferenceMasks]],
    masks: Path,
    folder: Path,
    weights: Path | None = None,
    failed: Collection[str] = (),
) -> dict[str, list[CaseFiles]]:
    """Lists what to compare: the segmentation with each reference, and raters with each other.

    Args:
        cases: Cases with their reference masks.
        masks: Folder of the segmentation's masks.
        folder: Folder for the means of raters, and for estimated regions of cases without region masks.
        weights: Weights folder with the anatomy network; None to do without.
        failed: Names of the cases that could not be segmented; a mask of such a case is of an earlier run.

    Returns:
        Cases by the name of their comparison; a case whose reference cannot be prepared has a data error.
    """
    comparisons: dict[str, list[CaseFiles]] = {}
    for case, references in cases:
        path = Path(case.name)
        site = "" if path.parent == Path() else path.parent.as_posix()
        names = list(references.masks)
        mask = masks / case.output
        segmented = mask.is_file() and case.name not in failed
        files = CaseFiles(
            path.name, site, references.masks[names[0]], mask if segmented else None,
            regions=references.regions, images=case.images, annotated=references.annotated,
        )  # fmt: skip
        try:
            if len(names) > 1:
                mean = folder / case.name / f"{path.name}_PVS.nii.gz"
                write_mean(list(references.masks.values()), mean)
                files = replace(files, reference=mean)
            if not files.regions:
                files = replace(files, regions=_estimated(files, folder / case.name, weights))
        except PVSError as error:
            files = replace(files, data_error=str(error))
        first = MEAN if len(names) > 1 else names[0]
        comparisons.setdefault(f"pvs-model against {first}", []).append(files)
        for k, name in enumerate(names if len(names) > 1 else ()):
            of_rater = replace(files, reference=references.masks[name])
            comparisons.setdefault(f"pvs-model against {name}", []).append(of_rater)
            for other in names[k + 1 :]:
                of_both = replace(of_rater, prediction=references.masks[other])
                comparisons.setdefault(f"{other} against {name}", []).append(of_both)
    return comparisons


def compare(comparisons: Mapping[str, Sequence[CaseFiles]], workers: int | None = None) -> dict[str, Evaluation]:
    """Scores every comparison with the challenge's metrics."""
    return {name: score_cases(files, Regions(), workers) for name, files in comparisons.items()}


def _estimated(case: CaseFiles, folder: Path, weights: Path | None) -> dict[str, tuple[Path, ...]]:
    """Writes the regions that the anatomy network estimates from an image on the grid of the reference, if any."""
    image = read_mask(case.reference)
    try:
        regions = regions_of(case, image, Regions(None, weights))
    except VolumeError:
        return {}  # no brain: scored in the whole image
    files: dict[str, tuple[Path, ...]] = {}
    for name, mask in regions.masks.items():
        files[name] = (folder / f"{case.case}_{name}.nii.gz",)
        write_mask(files[name][0], to_ras_grid(image.grid)[1].invert(mask), case.reference)
    return files

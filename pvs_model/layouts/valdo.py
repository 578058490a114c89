"""Task 1 of VALDO 2021: ``sub-X/sub-X_space-T1_desc-masked_{T1,T2,FLAIR}.nii.gz``, with masks of raters.

Beside the images lie ``sub-X_space-T1_desc-Rater1_PVSSeg.nii.gz`` (and ``Rater2``) of the subjects with segmentations,
and ``sub-X_space-T1_desc-masked_Regions.nii.gz``, which is not 0 where raters have annotated. Outputs are those of
``epvs``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, distinct, duplicates_problem, entries, folders_below, is_within
from pvs_model.layouts.names import image_stem
from pvs_model.types import SEQUENCES, Case

_IMAGE = re.compile(r"(?P<subject>sub-[^_]+)_space-[^_]+_desc-masked_(?P<sequence>T1|T2|FLAIR)", re.IGNORECASE)
_SEQUENCES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}
_RATER = re.compile(r"sub-[^_]+(?:_.*)?_(?:desc-)?(?P<rater>Rater[^_]*)_E?PVS(?:Seg\w*)?", re.IGNORECASE)
_ANNOTATED = re.compile(r"sub-[^_]+_.*?[_-](?:\w*Regions?|\w*ROIs?)(?:_.*)?", re.IGNORECASE)


class Valdo(Layout):
    name = "valdo"
    description = "sub-X/sub-X_space-T1_desc-masked_{T1,T2,FLAIR}.nii.gz, of VALDO 2021"

    def recognises(self, root: Path) -> bool:
        """Whether ``root`` or a folder below contains an image with a name of VALDO."""
        return any(True for _ in self._images(root))

    def find_cases(self, root: Path) -> list[Case]:
        """Returns one case per subject; its name is the folder of its images below ``root``, or else the subject."""
        by_subject: dict[tuple[Path, str], dict[str, list[Path]]] = {}
        for path, subject, sequence in self._images(root):
            images = by_subject.setdefault((path.parent, subject), {name: [] for name in SEQUENCES})
            images[sequence].append(path)
        if not by_subject:
            raise LayoutError(f"{root}: expected {self.description}, got no such image in any folder")
        cases = []
        for (folder, subject), images in by_subject.items():
            below = folder.relative_to(root)
            name = below if below.name == subject else below / subject
            problem = duplicates_problem(folder, images)
            chosen = {} if problem else {sequence: paths[0] for sequence, paths in images.items() if paths}
            output = name / f"{subject}_{self.options.suffix}.nii.gz"
            cases.append(Case(name.as_posix(), chosen, output, problem))
        return distinct(cases)

    def _images(self, root: Path) -> Iterator[tuple[Path, str, str]]:
        """Yields every image with its subject and sequence."""
        below = folders_below(root, lambda folder: is_within(folder, self.options.outputs))
        for files in (entries(root), *(files for _, files, _ in below)):
            for path in self.options.kept(files, root):
                match = _IMAGE.fullmatch(image_stem(path.name) or "")
                if match is not None and not path.is_dir():
                    yield path, match["subject"], _SEQUENCES[match["sequence"].lower()]


def raters_of(case: Case) -> dict[str, Path]:
    """Returns the masks of PVS beside the images of a case by rater, in the order of their names."""
    matches = ((path, _RATER.fullmatch(stem)) for path, stem in _beside(case))
    return {match["rater"]: path for path, match in matches if match is not None}


def annotated_in(case: Case) -> tuple[Path, ...]:
    """Returns the masks or label maps beside the images of a case that are not 0 where raters have annotated."""
    return tuple(path for path, stem in _beside(case) if _ANNOTATED.fullmatch(stem) and not _RATER.fullmatch(stem))


def _beside(case: Case) -> Iterator[tuple[Path, str]]:
    for folder in sorted({path.parent for path in case.images.values()}):
        yield from ((path, stem) for path in entries(folder) if (stem := image_stem(path.name)) is not None)

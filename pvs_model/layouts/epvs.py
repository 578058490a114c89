"""Case folders at any depth: ``<site...>/<case>/<case>_{T1w,T2w,FLAIR}.nii.gz``.

The mask is ``<site...>/<case>/<case>_<suffix>.nii.gz``: exactly one NIfTI per case folder and
nothing in the root, because the challenge's scripts use the first NIfTI of a folder.
Folders per sequence (``<case>/T1/scan.nii.gz``, ``T1/<case>.nii.gz``), FreeSurfer subjects and folders
of several subjects are supported, too.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts import freesurfer
from pvs_model.layouts.base import (
    Layout,
    broken_link_problem,
    distinct,
    duplicates_problem,
    entries,
    folders_below,
    is_within,
    listed,
)
from pvs_model.layouts.flat import Flat
from pvs_model.layouts.names import EXTENSIONS, NO_SEQUENCE, explain, group, image_stem, sequence_of, sequence_of_stem
from pvs_model.layouts.subjects import NAMELESS, by_subject, is_part, own_name
from pvs_model.types import Case

#: Unsupported image formats. A folder of such files is a case with a problem.
UNSUPPORTED = (".hdr", ".img", ".dcm", ".ima", ".mgh", ".par", ".rec", ".bz2", ".zip")
#: Folders of other data sets, and FreeSurfer's template.
OTHER_DATA = frozenset({"derivatives", "sourcedata", "fsaverage"})

Searched = list[tuple[Path, list[Path], bool]]


class Epvs(Layout):
    name = "epvs"
    description = "<case>/<case>_T1w.nii.gz, _T2w, _FLAIR in folders of any depth"

    def recognises(self, root: Path) -> bool:
        """Whether a folder below ``root`` contains a sequence.

        If ``root`` directly contains images, too, the folders only count if their files have the folder's name as
        prefix; otherwise the input is one flat case with other files beside it.
        """
        flat = Flat(self.options).recognises(root)
        searched = self._search(root)
        for folder, files, _ in searched:
            for sequence_files in group(files, folder.name).values():
                if not flat or any(path.name.lower().startswith(folder.name.lower()) for path in sequence_files):
                    return True
        return not flat and (
            any(freesurfer.is_mri(folder, files) for folder, files, _ in searched)
            or bool(_folders_of_sequences(root, searched))
        )

    def find_cases(self, root: Path) -> list[Case]:
        """Returns one case per folder with images; its name is the folder's path below ``root``.

        Masks and other files in a case folder and in its subfolders are ignored. A folder with images but none of the
        three sequences is a case with a problem. So are a broken link and an empty folder beside cases, whose images
        are missing.
        """
        searched = self._search(root)
        holding = [folder.relative_to(root).parts[0] for folder, files, _ in searched if group(files, folder.name)]
        source = _Source(root, subject=all(map(is_part, holding)))
        cases: list[tuple[Path, Case]] = []
        subjects = {folder.parent: files for folder, files, _ in searched if freesurfer.is_mri(folder, files)}
        for subject, files in subjects.items():
            cases += self._cases(source, subject, {"": freesurfer.choose(files)}, None)
        searched = [(f, files, more) for f, files, more in searched if not {f, *f.parents} & set(subjects)]
        taken: set[Path] = set()
        for parent, folders in _folders_of_sequences(root, searched).items():
            taken |= {path.parent for images in folders.values() for path in images}
            cases += self._cases(source, parent, *_by_folder(root, parent, folders))
        without: list[tuple[Path, Case]] = []
        empty: list[tuple[Path, Case]] = []
        for folder, files, has_folders in searched:
            images = [path for path in files if image_stem(path.name) is not None]
            sequences = {path: name for path in images if (name := sequence_of(path.name, folder.name)) is not None}
            if folder in taken:
                continue
            if sequences:
                cases += self._cases(source, folder, *by_subject(sequences, folder.name, alone=False))
            elif unsupported := [path for path in files if path.name.lower().endswith(UNSUPPORTED)]:
                problem = f"{folder}: expected an image ({', '.join(EXTENSIONS)}), got {listed(unsupported)}"
                without.append(self._failed(source, folder, problem))
            elif images and not all(self._is_own(path) for path in images):
                problem = f"{folder}: expected a T1w, T2w or FLAIR image by its name, got {listed(images)}"
                without.append(self._failed(source, folder, problem))
            elif not files and not has_folders:
                readable = os.access(folder, os.R_OK | os.X_OK)
                content = "an empty folder" if readable else "a folder that cannot be read"
                problem = f"{folder}: expected a T1w, T2w or FLAIR image, got {content}"
                empty.append(self._failed(source, folder, problem))
        top = root.parent if source.subject else root
        inside = {_subject(folder, top) for folder, _ in cases}
        cases += [entry for entry in without if not inside & set(entry[0].parents)]
        beside = {_subject(folder, top).parent for folder, _ in cases}
        cases += [entry for entry in empty if entry[0].parent in beside]
        for folder in [root, *(folder for folder, _, _ in searched)]:
            for path in _listed(folder):
                if (broken := broken_link_problem(path)) is not None and not self._skips(path):
                    cases.append(self._failed(source, path, broken))
        if not cases:
            raise LayoutError(f"{root}: expected {self.description}, got no image in any folder")
        return distinct(case for _, case in cases)

    def _search(self, root: Path) -> Searched:
        return [
            (folder, self.options.kept(files, root), more) for folder, files, more in folders_below(root, self._skips)
        ]

    def _skips(self, folder: Path) -> bool:
        return folder.name in OTHER_DATA or is_within(folder, self.options.outputs)

    def _is_own(self, path: Path) -> bool:
        """Whether a file has the name of a mask or probability map of an earlier run."""
        stem = image_stem(path.name) or ""
        return stem.endswith((f"_{self.options.suffix}", "_prob", "_space-orig_label-PVS_mask"))

    def _failed(self, source: _Source, folder: Path, problem: str) -> tuple[Path, Case]:
        ((_, case),) = self._cases(source, folder, {"": {}}, problem)
        return folder, case

    def _cases(
        self, source: _Source, folder: Path, groups: dict[str, dict[str, list[Path]]], problem: str | None
    ) -> list[tuple[Path, Case]]:
        """Returns the cases of a folder, one per subject."""
        cases = []
        for key, images_of in groups.items():
            name = source.name_of(folder)
            output = name / f"{name.name}_{self.options.suffix}.nii.gz"
            if key and (len(groups) > 1 or folder == source.root):
                above = name if folder != source.root else Path()
                name, output = above / key, above / key / f"{key}_{self.options.suffix}.nii.gz"
            message = problem if problem is None or problem.startswith(str(folder)) else f"{folder}: {problem}"
            message = message or duplicates_problem(folder, images_of)
            chosen = {} if message else {sequence: paths[0] for sequence, paths in images_of.items()}
            cases.append((folder, Case(name.as_posix(), chosen, output, message)))
        return cases


@dataclass(frozen=True)
class _Source:
    """An input folder, and whether it belongs to one subject: all its images are in folders such as anat and ses-1."""

    root: Path
    subject: bool

    def name_of(self, folder: Path) -> Path:
        """Returns the path of a case's folder below the input folder, preceded by the name of its only subject."""
        below = folder.relative_to(self.root)
        own = own_name(self.root) if self.subject and all(map(is_part, below.parts)) else None
        return Path(own or ("" if below.parts else NAMELESS)) / below


def _listed(folder: Path) -> list[Path]:
    try:
        return entries(folder)
    except LayoutError:
        return []


def _subject(folder: Path, top: Path) -> Path:
    """Returns the subject's folder of a case's folder, below ``top``: P1 for P1/anat."""
    while top not in (folder, folder.parent) and is_part(folder.name):
        folder = folder.parent
    return folder


def _images_of_sequence(folder: Path, sequence: str, files: list[Path]) -> list[Path]:
    """Returns the images of a folder named after a sequence, if no file in it has another sequence in its name.

    There are none if a file name consists of the folder's name and a sequence, as the folder is then that of a case.
    """
    rests = [path.name.removeprefix(folder.name) for path in files if path.name.startswith(folder.name)]
    if any(sequence_of(rest) is not None for rest in rests):
        return []
    parsed = {path: explain(stem, folder.name) for path in files if (stem := image_stem(path.name)) is not None}
    if any(name not in (None, sequence) for name, _ in parsed.values()):
        return []
    named = [path for path, (name, _) in parsed.items() if name == sequence]
    return named or [path for path, (_, reason) in parsed.items() if reason == NO_SEQUENCE]


def _folders_of_sequences(root: Path, searched: Searched) -> dict[Path, dict[Path, list[Path]]]:
    """Lists folders named after a sequence that only contain its images, by parent folder.

    The images may be deeper, as in XNAT and ADNI: ``3-t1_mprage/resources/NIFTI/files/image.nii``. A single folder only
    counts if its files do not name the sequence, or its name is nothing but that of the sequence.
    """
    by_parent: dict[Path, dict[Path, list[Path]]] = defaultdict(dict)
    several = set()
    for folder, files, _ in searched:
        for above in [folder, *folder.parents][: len(folder.relative_to(root).parts)]:
            if (sequence := sequence_of_stem(above.name)) is not None:
                if images := _images_of_sequence(folder, sequence, files):
                    several |= {above} & set(by_parent[above.parent])
                    by_parent[above.parent][above] = images
                break
    chosen = {}
    for parent, named in by_parent.items():
        folders = {folder: images for folder, images in named.items() if folder not in several}
        plain = any(re.fullmatch(r"t[12]w?|flair", folder.name, re.IGNORECASE) for folder in folders)
        unnamed = any(sequence_of(path.name) is None for images in folders.values() for path in images)
        if len({sequence_of_stem(f.name) for f in folders}) > 1 or (parent != root and folders and (plain or unnamed)):
            chosen[parent] = folders
    return chosen


def _by_folder(
    root: Path, parent: Path, folders: dict[Path, list[Path]]
) -> tuple[dict[str, dict[str, list[Path]]], str | None]:
    """Groups images as ``by_subject``, by the names of the files, or of folders that hold one image each."""
    by_file: dict[Path, str] = {}
    by_name: dict[Path, str] = {}
    real: dict[Path, Path] = {}
    for folder, images in folders.items():
        sequence = sequence_of_stem(folder.name) or ""
        for path in images:
            stem = image_stem(path.name) or path.name
            own = folder / f"{stem if sequence_of_stem(stem) is not None else f'{stem}_{sequence}'}.nii"
            by_file[own], real[own] = sequence, path
            by_name[folder.with_name(f"{folder.name}.nii")] = sequence
            real[folder.with_name(f"{folder.name}.nii")] = path
    several = any(len(images) > 1 for images in folders.values())
    groups, problem = by_subject(by_file, parent.name, alone=several or parent == root)
    if not several and (len(groups) == 1 or problem is not None):
        groups_by_name, problem_by_name = by_subject(by_name, parent.name, alone=parent == root)
        if len(groups_by_name) > 1 or (problem is not None and parent != root):
            groups, problem = groups_by_name, problem_by_name
    return {
        key: {sequence: [real[path] for path in paths] for sequence, paths in images_of.items()}
        for key, images_of in groups.items()
    }, problem

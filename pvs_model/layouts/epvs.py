"""Case folders at any depth: ``<site...>/<case>/<case>_{T1w,T2w,FLAIR}.nii.gz``.

The mask goes to ``<site...>/<case>/<case>_<suffix>.nii.gz``: exactly one NIfTI per case folder and
nothing in the root, because the challenge's scripts take the first NIfTI that they find there.
Folders per sequence (``<case>/T1/scan.nii.gz``, ``T1/<case>.nii.gz``), FreeSurfer's subjects and folders
of several subjects are read, too.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts import freesurfer
from pvs_model.layouts.base import Layout, distinct, doubled, entries, folders_below, is_within, leads_nowhere, listed
from pvs_model.layouts.flat import Flat
from pvs_model.layouts.names import EXTENSIONS, NO_SEQUENCE, explain, group, image_stem, sequence_of, sequence_of_stem
from pvs_model.layouts.subjects import NAMELESS, by_subject, is_part, own_name
from pvs_model.types import Case

#: Images that are not read. A folder of them is a case that cannot be run, not one to pass over.
FOREIGN = (".hdr", ".img", ".dcm", ".ima", ".mgh", ".par", ".rec", ".bz2", ".zip")
#: Folders of other data sets, and FreeSurfer's template.
OTHERS = frozenset({"derivatives", "sourcedata", "fsaverage"})

Looked = list[tuple[Path, list[Path], bool]]


class Epvs(Layout):
    name = "epvs"
    looks_for = "<case>/<case>_T1w.nii.gz, _T2w, _FLAIR in folders of any depth"

    def recognises(self, root: Path) -> bool:
        """Whether a folder below ``root`` holds a sequence.

        Where images lie straight in ``root`` as well, the folders count only if their files
        bear the folder's name; else the input is one flat case with other things beside it.
        """
        flat = Flat(self.options).recognises(root)
        looked = self._looked(root)
        for folder, files, _ in looked:
            for sequence_files in group(files, folder.name).values():
                if not flat or any(path.name.lower().startswith(folder.name.lower()) for path in sequence_files):
                    return True
        return not flat and (
            any(freesurfer.is_mri(folder, files) for folder, files, _ in looked)
            or bool(_folders_of_sequences(root, looked))
        )

    def find_cases(self, root: Path) -> list[Case]:
        """One case per folder that holds images; its name is the folder's path below ``root``.

        Masks and other extra files in a case folder, and folders of them inside it, are passed
        over. A folder with images but none of the three sequences is a case with a problem, and
        so are a link that leads nowhere and an empty folder beside cases: its images have gone missing.
        """
        looked = self._looked(root)
        holding = [folder.relative_to(root).parts[0] for folder, files, _ in looked if group(files, folder.name)]
        source = _Source(root, subject=all(map(is_part, holding)))
        cases: list[tuple[Path, Case]] = []
        subjects = {folder.parent: files for folder, files, _ in looked if freesurfer.is_mri(folder, files)}
        for subject, files in subjects.items():
            cases += self._cases(source, subject, {"": freesurfer.choose(files)}, None)
        looked = [(f, files, more) for f, files, more in looked if not {f, *f.parents} & set(subjects)]
        taken: set[Path] = set()
        for parent, folders in _folders_of_sequences(root, looked).items():
            taken |= {path.parent for images in folders.values() for path in images}
            cases += self._cases(source, parent, *_by_folder(root, parent, folders))
        without: list[tuple[Path, Case]] = []
        empty: list[tuple[Path, Case]] = []
        for folder, files, has_folders in looked:
            images = [path for path in files if image_stem(path.name) is not None]
            sequences = {path: found for path in images if (found := sequence_of(path.name, folder.name)) is not None}
            if folder in taken:
                continue
            if sequences:
                cases += self._cases(source, folder, *by_subject(sequences, folder.name, alone=False))
            elif foreign := [path for path in files if path.name.lower().endswith(FOREIGN)]:
                problem = f"{folder}: expected an image ({', '.join(EXTENSIONS)}), found {listed(foreign)}"
                without.append(self._failed(source, folder, problem))
            elif images and not all(self._is_own(path) for path in images):
                problem = f"{folder}: expected a T1w, T2w or FLAIR image by its name, found {listed(images)}"
                without.append(self._failed(source, folder, problem))
            elif not files and not has_folders:
                listable = os.access(folder, os.R_OK | os.X_OK)
                what = "an empty folder" if listable else "a folder that may not be read"
                problem = f"{folder}: expected a T1w, T2w or FLAIR image, found {what}"
                empty.append(self._failed(source, folder, problem))
        top = root.parent if source.subject else root
        inside = {_subject(folder, top) for folder, _ in cases}
        cases += [entry for entry in without if not inside & set(entry[0].parents)]
        beside = {_subject(folder, top).parent for folder, _ in cases}
        cases += [entry for entry in empty if entry[0].parent in beside]
        for folder in [root, *(folder for folder, _, _ in looked)]:
            for path in _listed(folder):
                if (broken := leads_nowhere(path)) is not None and not self._skips(path):
                    cases.append(self._failed(source, path, broken))
        if not cases:
            raise LayoutError(f"{root}: expected {self.looks_for}, found no image in any folder")
        return distinct(case for _, case in cases)

    def _looked(self, root: Path) -> Looked:
        return [
            (folder, self.options.kept(files, root), more) for folder, files, more in folders_below(root, self._skips)
        ]

    def _skips(self, folder: Path) -> bool:
        return folder.name in OTHERS or is_within(folder, self.options.outputs)

    def _is_own(self, path: Path) -> bool:
        """Whether a file is named as a mask or a probability map of an earlier run."""
        stem = image_stem(path.name) or ""
        return stem.endswith((f"_{self.options.suffix}", "_prob", "_space-orig_label-PVS_mask"))

    def _failed(self, source: _Source, folder: Path, problem: str) -> tuple[Path, Case]:
        ((_, case),) = self._cases(source, folder, {"": {}}, problem)
        return folder, case

    def _cases(
        self, source: _Source, folder: Path, groups: dict[str, dict[str, list[Path]]], problem: str | None
    ) -> list[tuple[Path, Case]]:
        """The cases of a folder, by subject."""
        cases = []
        for key, found in groups.items():
            name = source.name_of(folder)
            output = name / f"{name.name}_{self.options.suffix}.nii.gz"
            if key and (len(groups) > 1 or folder == source.root):
                above = name if folder != source.root else Path()
                name, output = above / key, above / key / f"{key}_{self.options.suffix}.nii.gz"
            told = problem if problem is None or problem.startswith(str(folder)) else f"{folder}: {problem}"
            told = told or doubled(folder, found)
            chosen = {} if told else {sequence: paths[0] for sequence, paths in found.items()}
            cases.append((folder, Case(name.as_posix(), chosen, output, told)))
        return cases


@dataclass(frozen=True)
class _Source:
    """An input folder, and whether it is that of one subject: all images lie in folders such as anat and ses-1."""

    root: Path
    subject: bool

    def name_of(self, folder: Path) -> Path:
        """The path of a case's folder below the input folder, after the subject's name where that is the folder's."""
        below = folder.relative_to(self.root)
        own = own_name(self.root) if self.subject and all(map(is_part, below.parts)) else None
        return Path(own or ("" if below.parts else NAMELESS)) / below


def _listed(folder: Path) -> list[Path]:
    try:
        return entries(folder)
    except LayoutError:
        return []


def _subject(folder: Path, top: Path) -> Path:
    """The folder of the subject that a case's folder belongs to: P1 for P1/anat. It lies below ``top``."""
    while top not in (folder, folder.parent) and is_part(folder.name):
        folder = folder.parent
    return folder


def _images_of_sequence(folder: Path, sequence: str, files: list[Path]) -> list[Path]:
    """The images of a folder that is named after a sequence, if no file in it says another.

    There are none where a file bears the folder's name before its own sequence: the folder is that of a case.
    """
    rests = [path.name.removeprefix(folder.name) for path in files if path.name.startswith(folder.name)]
    if any(sequence_of(rest) is not None for rest in rests):
        return []
    said = {path: explain(stem, folder.name) for path in files if (stem := image_stem(path.name)) is not None}
    if any(found not in (None, sequence) for found, _ in said.values()):
        return []
    named = [path for path, (found, _) in said.items() if found == sequence]
    return named or [path for path, (_, why) in said.items() if why == NO_SEQUENCE]


def _folders_of_sequences(root: Path, looked: Looked) -> dict[Path, dict[Path, list[Path]]]:
    """Folders that are named after a sequence and hold images of it alone, by the folder that they lie in.

    The images may lie deeper, as XNAT and ADNI have them: ``3-t1_mprage/resources/NIFTI/files/image.nii``. One folder
    alone counts where its name is all that there is to tell the sequence by, or is nothing but that of the sequence.
    """
    by_parent: dict[Path, dict[Path, list[Path]]] = defaultdict(dict)
    several = set()
    for folder, files, _ in looked:
        for above in [folder, *folder.parents][: len(folder.relative_to(root).parts)]:
            if (sequence := sequence_of_stem(above.name)) is not None:
                if images := _images_of_sequence(folder, sequence, files):
                    several |= {above} & set(by_parent[above.parent])
                    by_parent[above.parent][above] = images
                break
    chosen = {}
    for parent, found in by_parent.items():
        folders = {folder: images for folder, images in found.items() if folder not in several}
        plain = any(re.fullmatch(r"t[12]w?|flair", folder.name, re.IGNORECASE) for folder in folders)
        unnamed = any(sequence_of(path.name) is None for images in folders.values() for path in images)
        if len({sequence_of_stem(f.name) for f in folders}) > 1 or (parent != root and folders and (plain or unnamed)):
            chosen[parent] = folders
    return chosen


def _by_folder(
    root: Path, parent: Path, folders: dict[Path, list[Path]]
) -> tuple[dict[str, dict[str, list[Path]]], str | None]:
    """As ``by_subject``: subjects by the names of the files, or of the folders where each holds one image."""
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
        key: {sequence: [real[path] for path in paths] for sequence, paths in found.items()}
        for key, found in groups.items()
    }, problem

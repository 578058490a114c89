"""Groups the images of one folder by subject, using the parts of their names besides the sequence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pvs_model.layouts.names import explain, front_and_rest, image_stem
from pvs_model.types import SEQUENCES

#: Name of a case if neither files nor folder give one.
NAMELESS = "case"

#: Folder names that do not identify a subject: of input folders, and of folders below a subject.
_GENERIC = frozenset({"input", "inputs", "in", "data", "dataset", "case", "cases", "subjects", "tmp"})
_PARTS = re.compile(
    r"anat|structural|images?|scans?|nii|nifti|niftis|mri|mr|raw|orig|dicom|(?:ses|session|visit|timepoint)[-_]?\w*|tp[-_]?\d{1,2}",
    re.IGNORECASE,
)
#: Words of protocols: planes, pulse sequences, options of scanners. They do not identify a subject.
_PROTOCOL = re.compile(
    r"ax|axial|tra|trans|transverse|transversal|sag|sagittal|cor|coronal|obl|oblique|[23]d|iso|isotropic|hr|hires|my"
    r"|cube|spc|space|vista|brainview|propeller|blade|tse|fse|frfse|se|gre|ffe|tfe|ir|fs|fatsat|ns|nd|norm|brain|head"
    r"|neuro|anat|mr|mri|wip|sense|cs|csense|arc|asset|grappa|caipi|s|v|vw|vw3d|with|skull|stripped|orig|raw|irprep"
    r"|\d+x[\dx]*(?:mm)?|\d+mm|ser(?:ies)?|scan|image|img",
    re.IGNORECASE,
)
#: Suffixes of scanners and converters: acceleration, echo, number of the series.
_ADDED = re.compile(r"(?:e|s|se|i|a|x)\d+|(?<=[\W_])p[234]", re.IGNORECASE)
_SERIES = re.compile(r"(?:s|se|ser|series|i|im|img|image)?\d+", re.IGNORECASE)
_PADDED = re.compile(r"\D*0\d")
_BARE = re.compile(r"\w?\d+[\W_]*(?:t1|t2|flair)w?", re.IGNORECASE)
_ADVICE = "put each subject into its own folder"

#: Images by sequence, by subject.
Groups = dict[str, dict[str, list[Path]]]


def own_name(folder: Path) -> str | None:
    """Returns the subject that a folder is named after: P1, P1_ses-2 for P1/ses-2/anat; None for generic names."""
    parts: list[str] = []
    for part in reversed(Path(os.path.abspath(folder)).parts[1:]):
        if part.lower() in _GENERIC:
            break
        if not _PARTS.fullmatch(part):
            return "_".join([part, *parts])
        if re.match(r"ses|visit|tp|time", part, re.IGNORECASE):
            parts.insert(0, part)
    return None


def is_part(name: str) -> bool:
    """Whether a folder name is a subfolder of a subject, such as anat or ses-2, and not a subject."""
    return _PARTS.fullmatch(name) is not None


def is_nameless(case: str) -> bool:
    """Whether the name of a case does not identify a subject: case, anat, ses-2/anat."""
    return all(part == NAMELESS or is_part(part) for part in Path(case).parts)


def by_subject(files: Mapping[Path, str], folder: str, alone: bool) -> tuple[Groups, str | None]:
    """Groups the images of a folder by subject.

    Names with the same prefix before the sequence belong to one subject, disregarding planes, pulse sequences and
    series numbers. Names that only differ in their numbers (P001_T1, P002_FLAIR) belong to several subjects.

    Args:
        files: Images, each with its sequence.
        folder: Name of the folder; as the prefix of a file name it stands for the subject the folder is named after.
        alone: Whether the folder is the input folder itself, which may contain all subjects.

    Returns:
        Images by subject and sequence, where "" is the subject that the folder is named after; and a problem, without
        the folder, if the subjects are ambiguous.
    """
    stems = {path: _without(folder, image_stem(path.name) or path.name) for path in sorted(files)}
    names = ", ".join(path.name for path in stems) if len(stems) < 5 else f"{len(stems)} images"

    def split(after: bool = False, numbers: bool = False) -> Groups:
        groups: Groups = {}
        for path, stem in stems.items():
            name = _identity(front_and_rest(stem)[after], numbers, after)
            groups.setdefault(name, {}).setdefault(files[path], []).append(path)
        return {name: _joined({name: images}) for name, images in groups.items()}

    groups = split()
    named = [name for name in groups if name]
    if len(named) > 1:
        if _differ_in_numbers(groups) or (alone and _repeated(groups)):
            return groups, None
        problem = f"expected images of one subject, or names that begin with the subject, got {names}"
        return {"": _joined(groups)}, f"{problem}: {_ADVICE}"
    joined = _joined(groups)
    doubled = _has_duplicates(joined)
    tails = split(after=True)
    listed = alone and doubled and "" not in tails and not any(map(_has_duplicates, tails.values()))
    if not named and len(tails) > 1 and (_differ_in_numbers(tails) or listed):
        return tails, None
    numbered = split(numbers=True)
    if sum(_SERIES.fullmatch(name) is not None for name in numbered) > 1:
        distinct = not any(map(_has_duplicates, numbered.values()))
        if doubled and distinct and (alone or any(len(images) > 1 for images in numbered.values())):
            return numbered, None
        if alone and not doubled and (any(map(_PADDED.match, numbered)) or all(map(_BARE.fullmatch, stems.values()))):
            problem = f"expected images of one subject, got {names}, whose numbers may be of series or of subjects"
            return {"": joined}, f"{problem}: {_ADVICE}"
    return {named[0] if named else "": joined}, None


def _without(folder: str, stem: str) -> str:
    """Removes the folder's name from the start of a file name if a sequence follows."""
    rest = stem[len(folder) :]
    own = folder and stem.lower().startswith(folder.lower()) and rest and not rest[0].isalnum()
    return rest if own and explain(rest)[0] is not None else stem


def _identity(text: str, numbers: bool, after: bool) -> str:
    """Removes words of protocols and series numbers from a part of a name: "P001" of "P001_ax_3".

    Args:
        text: Part of the name before or after the sequence.
        numbers: Whether to keep a number that stands alone.
        after: Whether the text follows the sequence.
    """
    words = list(re.finditer(r"[^\W_]+", text))
    kept = [word for word in words if not _PROTOCOL.fullmatch(word.group())]
    kept = [word for word in kept if not (after and _ADDED.fullmatch(text, *word.span()))]
    while len(kept) > 1 and re.fullmatch(r"[1-9]\d?", kept[-1].group()) and re.search(r"\d", kept[-2].group()):
        kept.pop()
    if not kept or (not numbers and all(_SERIES.fullmatch(word.group()) for word in kept)):
        return ""
    return text[kept[0].start() : kept[-1].end()]


def _joined(groups: Groups) -> dict[str, list[Path]]:
    joined: dict[str, list[Path]] = {}
    for images in groups.values():
        for sequence, paths in images.items():
            joined.setdefault(sequence, []).extend(paths)
    return {sequence: sorted(joined[sequence]) for sequence in SEQUENCES if sequence in joined}


def _has_duplicates(images: Mapping[str, list[Path]]) -> bool:
    return any(len(paths) > 1 for paths in images.values())


def _differ_in_numbers(groups: Mapping[str, object]) -> bool:
    """Whether names only differ in their numbers, as those of subjects do: P001 and P002."""
    masked = {re.sub(r"\d+", "#", name.lower()) for name in groups}
    return len(groups) > 1 and len(masked) == 1 and "#" in masked.pop()


def _repeated(groups: Groups) -> bool:
    """Whether a sequence occurs in several groups."""
    return _has_duplicates(_joined(groups))

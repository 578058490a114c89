"""Tells the images of several subjects in one folder apart, by what their names say besides the sequence."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pvs_model.layouts.names import explain, front_and_rest, image_stem
from pvs_model.types import SEQUENCES

#: The name of a case whose files and folder give it none.
NAMELESS = "case"

#: Names of folders that say nothing about whose images lie in them: of an input folder, and of one below a subject.
_PLACES = frozenset({"input", "inputs", "in", "data", "dataset", "case", "cases", "subjects", "tmp"})
_PARTS = re.compile(
    r"anat|structural|images?|scans?|nii|nifti|niftis|mri|mr|raw|orig|dicom|(?:ses|session|visit|timepoint)[-_]?\w*|tp[-_]?\d{1,2}",
    re.IGNORECASE,
)
#: Words of protocols: planes, pulse sequences, options of scanners. They do not name a subject.
_PROTOCOL = re.compile(
    r"ax|axial|tra|trans|transverse|transversal|sag|sagittal|cor|coronal|obl|oblique|[23]d|iso|isotropic|hr|hires|my"
    r"|cube|spc|space|vista|brainview|propeller|blade|tse|fse|frfse|se|gre|ffe|tfe|ir|fs|fatsat|ns|nd|norm|brain|head"
    r"|neuro|anat|mr|mri|wip|sense|cs|csense|arc|asset|grappa|caipi|s|v|vw|vw3d|with|skull|stripped|orig|raw|irprep"
    r"|\d+x[\dx]*(?:mm)?|\d+mm|ser(?:ies)?|scan|image|img",
    re.IGNORECASE,
)
#: What scanners and converters add behind the name: acceleration, echo, number of the series.
_ADDED = re.compile(r"(?:e|s|se|i|a|x)\d+|(?<=[\W_])p[234]", re.IGNORECASE)
_SERIES = re.compile(r"(?:s|se|ser|series|i|im|img|image)?\d+", re.IGNORECASE)
_PADDED = re.compile(r"\D*0\d")
_BARE = re.compile(r"\w?\d+[\W_]*(?:t1|t2|flair)w?", re.IGNORECASE)
_ADVICE = "give each subject a folder of its own"

#: Images by sequence, by subject.
Groups = dict[str, dict[str, list[Path]]]


def own_name(folder: Path) -> str | None:
    """The subject that a folder is named after: P1, P1_ses-2 for P1/ses-2/anat; None where its name says nothing."""
    parts: list[str] = []
    for part in reversed(Path(os.path.abspath(folder)).parts[1:]):
        if part.lower() in _PLACES:
            break
        if not _PARTS.fullmatch(part):
            return "_".join([part, *parts])
        if re.match(r"ses|visit|tp|time", part, re.IGNORECASE):
            parts.insert(0, part)
    return None


def is_part(name: str) -> bool:
    """Whether a folder of this name is one of a subject, such as anat or ses-2, and does not name the subject."""
    return _PARTS.fullmatch(name) is not None


def is_nameless(case: str) -> bool:
    """Whether the name of a case is the same whosever images these are: case, anat, ses-2/anat."""
    return all(part == NAMELESS or is_part(part) for part in Path(case).parts)


def by_subject(files: Mapping[Path, str], folder: str, alone: bool) -> tuple[Groups, str | None]:
    """Groups the images of a folder by subject.

    Names that begin alike up to the sequence are of one subject, planes, pulse sequences and series numbers apart.
    Names that differ in their numbers only (P001_T1, P002_FLAIR) are of several subjects.

    Args:
        files: images, each with its sequence.
        folder: the folder's name: a name that begins with it is of the subject that the folder is named after.
        alone: whether the folder is the input folder itself, in which all subjects may lie.

    Returns:
        images by sequence, by subject; "" is the subject that the folder is named after. And a sentence, without the
        folder, where it cannot be said whose images these are.
    """
    stems = {path: _without(folder, image_stem(path.name) or path.name) for path in sorted(files)}
    told = ", ".join(path.name for path in stems) if len(stems) < 5 else f"{len(stems)} images"

    def split(behind: bool = False, numbers: bool = False) -> Groups:
        groups: Groups = {}
        for path, stem in stems.items():
            name = _identity(front_and_rest(stem)[behind], numbers, behind)
            groups.setdefault(name, {}).setdefault(files[path], []).append(path)
        return {name: _joined({name: found}) for name, found in groups.items()}

    groups = split()
    named = [name for name in groups if name]
    if len(named) > 1:
        if _differ_in_numbers(groups) or (alone and _repeated(groups)):
            return groups, None
        problem = f"expected images of one subject, or names that begin with the subject, found {told}"
        return {"": _joined(groups)}, f"{problem}: {_ADVICE}"
    joined = _joined(groups)
    doubled = _doubled(joined)
    tails = split(behind=True)
    listed = alone and doubled and "" not in tails and not any(map(_doubled, tails.values()))
    if not named and len(tails) > 1 and (_differ_in_numbers(tails) or listed):
        return tails, None
    numbered = split(numbers=True)
    if sum(_SERIES.fullmatch(name) is not None for name in numbered) > 1:
        distinct = not any(map(_doubled, numbered.values()))
        if doubled and distinct and (alone or any(len(found) > 1 for found in numbered.values())):
            return numbered, None
        if alone and not doubled and (any(map(_PADDED.match, numbered)) or all(map(_BARE.fullmatch, stems.values()))):
            problem = f"expected images of one subject, found {told}, whose numbers may be of series or of subjects"
            return {"": joined}, f"{problem}: {_ADVICE}"
    return {named[0] if named else "": joined}, None


def _without(folder: str, stem: str) -> str:
    """A name without that of its folder in front, where a sequence follows."""
    rest = stem[len(folder) :]
    own = folder and stem.lower().startswith(folder.lower()) and rest and not rest[0].isalnum()
    return rest if own and explain(rest)[0] is not None else stem


def _identity(text: str, numbers: bool, behind: bool) -> str:
    """What is left of a part of a name without words of protocols and numbers of series: "P001" of "P001_ax_3".

    Args:
        text: what stands in front of the sequence, or behind it.
        numbers: keep a number that stands alone.
        behind: whether the text stands behind the sequence.
    """
    words = list(re.finditer(r"[^\W_]+", text))
    kept = [word for word in words if not _PROTOCOL.fullmatch(word.group())]
    kept = [word for word in kept if not (behind and _ADDED.fullmatch(text, *word.span()))]
    while len(kept) > 1 and re.fullmatch(r"[1-9]\d?", kept[-1].group()) and re.search(r"\d", kept[-2].group()):
        kept.pop()
    if not kept or (not numbers and all(_SERIES.fullmatch(word.group()) for word in kept)):
        return ""
    return text[kept[0].start() : kept[-1].end()]


def _joined(groups: Groups) -> dict[str, list[Path]]:
    joined: dict[str, list[Path]] = {}
    for found in groups.values():
        for sequence, paths in found.items():
            joined.setdefault(sequence, []).extend(paths)
    return {sequence: sorted(joined[sequence]) for sequence in SEQUENCES if sequence in joined}


def _doubled(found: Mapping[str, list[Path]]) -> bool:
    return any(len(paths) > 1 for paths in found.values())


def _differ_in_numbers(groups: Mapping[str, object]) -> bool:
    """Whether names are those of a list of subjects: P001 and P002."""
    masked = {re.sub(r"\d+", "#", name.lower()) for name in groups}
    return len(groups) > 1 and len(masked) == 1 and "#" in masked.pop()


def _repeated(groups: Groups) -> bool:
    """Whether a sequence occurs in several groups."""
    return _doubled(_joined(groups))

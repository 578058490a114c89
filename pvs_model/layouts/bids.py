"""BIDS: ``sub-X[/ses-Y]/anat/sub-X[_ses-Y][_...]_{T1w,T2w,FLAIR}.nii[.gz]``.

The output is a BIDS derivative: ``..._space-orig_label-PVS_mask.nii.gz`` in the same folders, each
with a JSON sidecar, and ``dataset_description.json`` in the root. That of the BIDS App (``Options.derivative_of``) also
has ``..._space-orig_seg-regions_dseg.nii.gz`` and ``..._space-orig_label-brain_mask.nii.gz``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.errors import LayoutError
from pvs_model.files import write_text
from pvs_model.layouts.base import (
    Layout,
    Options,
    broken_link_problem,
    distinct,
    duplicates_problem,
    entries,
    listed,
    read_json,
)
from pvs_model.layouts.names import image_stem
from pvs_model.types import SEQUENCES, Case

_IMAGE = re.compile(r"(?P<entities>.+)_(?P<suffix>T1w|T2w|FLAIR)\.nii(?:\.gz)?", re.IGNORECASE)
_SUBJECT = re.compile(r"(?P<subject>sub-[^_]+)(?:_(?P<session>ses-[^_]+))?")
#: Scans after contrast agent, parts of complex images, and masks: excluded unless a filter selects them.
_EXCLUDED = re.compile(r"_(?:ce-|part-(?:phase|real|imag)|label-)", re.IGNORECASE)
#: Original images are preferred to derived ones on the same grid, and these to images in another space.
_DERIVED = re.compile(r"_desc-", re.IGNORECASE)
_MOVED = re.compile(r"_space-(?!orig|T1w|T2w|FLAIR|individual|native)", re.IGNORECASE)
_SEQUENCE = {sequence.lower(): sequence for sequence in SEQUENCES}

#: Entities by their names in filters of BIDS apps.
ENTITIES = {
    "subject": "sub", "session": "ses", "acquisition": "acq", "ceagent": "ce", "reconstruction": "rec", "run": "run",
    "space": "space", "desc": "desc", "description": "desc", "resolution": "res", "part": "part", "echo": "echo",
}  # fmt: skip

#: Further keys in filters of other apps, which are ignored.
_NO_ENTITIES = ("datatype", "suffix", "extension")

#: Folder of reports in the output of the BIDS App, which validators ignore.
REPORTS = "reports"
_README = f"""# Perivascular spaces

Segmented by pvs_model {__version__} on the grid of one image of each session (`reference` in the sidecars):

- `*_label-PVS_mask.nii.gz`: enlarged perivascular spaces; the sidecar names the networks, the threshold and warnings.
- `*_label-brain_mask.nii.gz`, `*_seg-regions_dseg.nii.gz`: estimated brain and regions (`seg-regions_dseg.tsv`).
- `{REPORTS}`: numbers and a page of each session; tables and an index after the analysis level `group`.

Not for clinical use.
"""

Filters = Mapping[str, Mapping[str, Any]]


def read_filter(path: Path) -> Filters:
    """Reads a filter file of fMRIPrep and other BIDS apps: ``{"t1w": {"reconstruction": "norm"}}``.

    By sequence ("t1w", "t2w", "flair"), the required value of each entity, or a list of allowed values; null requires
    its absence.

    Raises:
        LayoutError: The file cannot be read, or is not a filter.
    """
    content = read_json(path)
    known = {*ENTITIES, *ENTITIES.values(), *_NO_ENTITIES}
    usable = isinstance(content, dict) and all(
        isinstance(wanted, dict) and set(wanted) <= known
        for name, wanted in content.items()
        if name.lower() in _SEQUENCE
    )
    if not usable or not {name.lower() for name in content} & set(_SEQUENCE):
        raise LayoutError(
            f'{path}: expected a filter such as {{"t1w": {{"reconstruction": "norm"}}}} with the entities '
            f"{', '.join(ENTITIES)}, got {content!r:.80}"
        )
    return {_SEQUENCE[name.lower()]: wanted for name, wanted in content.items() if name.lower() in _SEQUENCE}


def _passes(entities: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a file's entities satisfy a filter."""
    present = dict(part.split("-", 1) for part in entities.split("_") if "-" in part)
    for name, value in wanted.items():
        if name in _NO_ENTITIES:
            continue
        allowed = value if isinstance(value, list) else [value]
        given = present.get(ENTITIES.get(name, name))
        if given not in [None if option is None else str(option) for option in allowed] and not (
            given is not None and given.isdigit() and int(given) in allowed
        ):
            return False
    return True


def _prefixed(path: Path, prefix: str) -> bool:
    return path.name.startswith(prefix) and path.is_dir()


def _subjects(root: Path) -> list[tuple[Path, Path]]:
    """Lists folders of subjects and sessions, each with its path below the root of the data set.

    ``root`` may be the data set, or a subject or a session of it.
    """
    folders = []
    own = Path(os.path.abspath(root))
    if own.name.startswith("ses-") and own.parent.name.startswith("sub-"):
        return [(root, Path(own.parent.name, own.name))]
    subjects = [root] if own.name.startswith("sub-") else [p for p in entries(root) if _prefixed(p, "sub-")]
    for subject in subjects:
        below = Path(own.name if subject == root else subject.name)
        folders.append((subject, below))
        folders += [(path, below / path.name) for path in _entries(subject) if _prefixed(path, "ses-")]
    return folders


def _anat_folders(root: Path) -> list[tuple[Path, Path]]:
    """Lists the ``anat`` folders, each with its path below the root of the data set.

    ``derivatives`` and ``sourcedata`` hold other data sets. If the input folder belongs to a subject but has another
    name, as when mounted, the subject is taken from the image names.
    """
    folders = [(path / "anat", below / "anat") for path, below in _subjects(root) if (path / "anat").is_dir()]
    if folders:
        return folders
    own = Path(os.path.abspath(root))
    inside = [root] if own.name == "anat" else [root / "anat"]
    inside += [path / "anat" for path in entries(root) if _prefixed(path, "ses-")]
    for anat in inside:
        names = [path.name for path in (_entries(anat) if anat.is_dir() else []) if _IMAGE.fullmatch(path.name)]
        if names and (match := _SUBJECT.match(names[0])):
            folders.append((anat, Path(*filter(None, match.groups()), "anat")))
    return folders


def _entries(folder: Path) -> list[Path]:
    """Lists a folder as ``entries``; an unreadable one is empty, and its case fails."""
    try:
        return entries(folder)
    except LayoutError:
        return []


def _sidecar(mask_path: Path) -> Path:
    return mask_path.with_name(f"{image_stem(mask_path.name)}.json")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, default=str) + "\n", LayoutError)


class Bids(Layout):
    name = "bids"
    description = "sub-<X>[/ses-<Y>]/anat/sub-<X>[_ses-<Y>]_T1w.nii.gz, _T2w, _FLAIR"

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        path = self.options.bids_filter
        self.filters: Filters = {} if path is None else read_filter(path)

    def recognises(self, root: Path) -> bool:
        return any(_IMAGE.fullmatch(path.name) for anat, _ in _anat_folders(root) for path in _entries(anat))

    def find_cases(self, root: Path) -> list[Case]:
        """Returns one case per ``anat`` folder with images, named ``sub-X[_ses-Y]``.

        Of each sequence the original image is used, else a derived one (``desc-``), else one in another space. Several
        images of equal rank are a problem, which the user can solve by a filter. Scans after contrast agent (``ce-``)
        are excluded. A broken link is a case with a problem.
        """
        cases = []
        for anat, below in self._selected(root):
            inside = self.options.kept(_entries(anat), root)
            images = [path for path in inside if image_stem(path.name) is not None]
            by_sequence = self._images(images)
            problem = duplicates_problem(anat, by_sequence)
            if problem is not None and not self.filters:
                problem += ', or --bids-filter-file FILE with {"t1w": {"reconstruction": "norm"}} or the like'
            if not by_sequence:
                content = listed(images) or listed(_entries(anat)) or "an empty folder"
                problem = f"{anat}: expected an image that ends in _T1w, _T2w or _FLAIR, got {content}"
                if not os.access(anat, os.R_OK | os.X_OK):
                    problem = f"{anat}: expected a folder of images, got one that cannot be read"
            chosen = {} if problem else {key: by_sequence[key][0] for key in SEQUENCES if key in by_sequence}
            cases.append(self._case(below, chosen, problem))
        for folder in [root, *(path for path, _ in _subjects(root) if not self._is_excluded(path))]:
            for path in _entries(folder):
                if self.excludes(path):
                    continue
                expected = path.name == "anat" or path.name.startswith(("sub-", "ses-"))
                if expected and (problem := broken_link_problem(path)) is not None:
                    cases.append(self._case(path.relative_to(root) / "anat", {}, problem))
                elif path.name.startswith("sub-") and path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
                    problem = f"{path}: expected a folder of images, got one that cannot be read"
                    cases.append(self._case(path.relative_to(root) / "anat", {}, problem))
        if not cases:
            raise LayoutError(f"{root}: expected {self.description}, got no image in any anat folder")
        return distinct(cases)

    def excludes(self, folder: Path) -> bool:
        """Whether the labels of participants and sessions exclude a folder ``sub-X`` or ``ses-Y``."""
        for prefix, labels in (("sub-", self.options.participants), ("ses-", self.options.sessions)):
            if labels and folder.name.startswith(prefix):
                return folder.name.removeprefix(prefix) not in {label.removeprefix(prefix) for label in labels}
        return False

    def _is_excluded(self, folder: Path) -> bool:
        return self.excludes(folder) or self.excludes(folder.parent)

    def _selected(self, root: Path) -> list[tuple[Path, Path]]:
        """Lists the ``anat`` folders of the participants and sessions given by the options.

        Raises:
            LayoutError: There is none of a participant or of a session.
        """
        folders = _anat_folders(root)
        selected = [(anat, below) for anat, below in folders if not any(map(self.excludes, (below, *below.parents)))]
        if self.options.sessions:
            selected = [(anat, below) for anat, below in selected if below.parent.name.startswith("ses-")]
        for prefix, labels in (("sub-", self.options.participants), ("ses-", self.options.sessions)):
            present = {part for _, below in selected for part in below.parts if part.startswith(prefix)}
            if missing := sorted({prefix + label.removeprefix(prefix) for label in labels} - present):
                every = sorted({part for _, below in folders for part in below.parts if part.startswith(prefix)})
                raise LayoutError(
                    f"{root}: expected an anat folder of {listed(missing)}, got {listed(every) or 'none'}"
                )
        return selected

    def _images(self, images: list[Path]) -> dict[str, list[Path]]:
        """Selects the images of highest rank, by sequence."""
        by_sequence: dict[str, dict[tuple[bool, bool], list[Path]]] = {}
        for path in images:
            if (match := _IMAGE.fullmatch(path.name)) is None:
                continue
            entities, sequence = match["entities"], _SEQUENCE[match["suffix"].lower()]
            wanted = self.filters.get(sequence)
            if _EXCLUDED.search(f"_{entities}_") if wanted is None else not _passes(entities, wanted):
                continue
            rank = (_MOVED.search(entities) is not None, _DERIVED.search(entities) is not None)
            by_sequence.setdefault(sequence, {}).setdefault(rank, []).append(path)
        return {sequence: by_rank[min(by_rank)] for sequence, by_rank in by_sequence.items()}

    def _case(self, below: Path, chosen: dict[str, Path], problem: str | None) -> Case:
        parts = [part for part in below.parts if part != "anat"]
        name = "_".join(parts)
        output = Path(*parts, "anat", f"{name}_space-orig_label-PVS_mask.nii.gz")
        sources = {key: Path(*below.parts, path.name).as_posix() for key, path in chosen.items()}
        return Case(name, chosen, output, problem, extra=sources)

    def prepare_output(self, output_root: Path) -> None:
        super().prepare_output(output_root)
        description, source = output_root / "dataset_description.json", self.options.derivative_of
        # An existing file may be the user's own (masks written into their data set).
        if not description.exists():
            _write_json(
                description,
                {
                    "Name": "Perivascular space segmentation",
                    "BIDSVersion": "1.9.0",
                    "DatasetType": "derivative",
                    "GeneratedBy": [{"Name": "pvs_model", "Version": __version__}],
                    **({"DatasetLinks": {"raw": str(source.absolute())}} if source is not None else {}),
                },
            )
        if source is not None:
            from pvs_model.anatomy.label_tables import bids_text

            texts = {"README.md": _README, ".bidsignore": f"{REPORTS}\n", "seg-regions_dseg.tsv": bids_text()}
            for name, text in texts.items():
                write_text(output_root / name, text, LayoutError)

    def is_complete(self, case: Case, output_root: Path) -> bool:
        """Whether the mask and its sidecar exist, which is written after it."""
        return super().is_complete(case, output_root) and _sidecar(output_root / case.output).is_file()

    def region_maps(self, case: Case) -> Mapping[str, Path]:
        """Returns the paths of the region maps of the BIDS App; none otherwise."""
        if self.options.derivative_of is None:
            return {}
        ends = {"regions": "seg-regions_dseg", "brain": "label-brain_mask"}
        return {name: case.output.with_name(f"{case.name}_space-orig_{end}.nii.gz") for name, end in ends.items()}

    def finish(self, case: Case, mask_path: Path, output_root: Path, metadata: Mapping[str, Any]) -> None:
        """Writes the sidecars with the keys of BIDS, that of the mask with the metadata."""
        sources = list(case.extra.values())
        common: dict[str, Any] = {"SpatialReference": "orig", "RawSources": sources}
        if self.options.derivative_of is not None:
            common = {"SpatialReference": "orig", "Sources": [f"bids:raw:{source}" for source in sources]}
        descriptions = {
            "regions": {"Description": "Estimated regions of the brain; names in seg-regions_dseg.tsv"},
            "brain": {"Description": "Estimated brain: 1 inside, 0 outside", "Type": "Brain"},
        }
        for name, place in self.region_maps(case).items():
            if metadata["anatomy"]:
                _write_json(_sidecar(output_root / place), {**common, **descriptions[name]})
        description = {"Description": "Enlarged perivascular spaces: 1 inside, 0 outside", "Type": "ROI"}
        _write_json(_sidecar(mask_path), {**metadata, **description, **common})

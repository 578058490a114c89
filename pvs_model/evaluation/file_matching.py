"""Matches reference masks, predictions and region masks by the names of their files.

A reference mask is a file ``<case>_PVS``, ``PVS`` in a folder named like the case, or BIDS's ``..._label-PVS_mask``;
in a folder without any of these, each image is one. Its prediction has the name of the case, alone or followed by
``_<suffix>``, ``_PVS`` and the like, or lies alone in a folder of that name (grand-challenge's
``<case>/output/images/<slug>/x.mha`` as well). Of several, the one in the same folder below the root counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import entries, folders_below, listed
from pvs_model.layouts.labels import bids_mask, subject_of
from pvs_model.layouts.names import group, image_stem
from pvs_model.types import SEQUENCES

_REFERENCE = re.compile(r"(?:(?P<case>.+)_)?e?pvs", re.IGNORECASE)
#: Endings of a prediction's name after the name of the case.
_ENDINGS = ("pred", "prediction", "pvs", "epvs", "mask", "seg", "segmentation")

#: Names of region masks: the last words of a file's name, and the challenge's own atlas files, which are united.
_REGION_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "CSO": (("cso",), ("cso_native_space",)),
    "BG": (("bg",), ("bg_native_space",), ("lbg_native_space", "rbg_native_space")),
}


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case to score.

    Attributes:
        case, site: Name of the case, and the folders above it ("" where there are none).
        reference: File of the reference mask.
        prediction: File of the mask to score, or None.
        problem: Reason why no prediction could be chosen from several.
        data_error: Reason why the case cannot be scored: several reference masks.
        regions: Files of region masks by name, several to be united.
        images: Images of the scan beside the reference mask, by sequence.
        annotated: Files of the part of the image that raters have annotated; empty for the whole image.
    """

    case: str
    site: str
    reference: Path
    prediction: Path | None = None
    problem: str | None = None
    data_error: str | None = None
    regions: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    annotated: tuple[Path, ...] = ()

    @property
    def label(self) -> str:
        """Site and case."""
        return f"{self.site}/{self.case}" if self.site else self.case


@dataclass(frozen=True)
class _File:
    path: Path
    folder: Path  # below the root
    stem: str
    alone: bool  # the only image in its folder


def find_references(root: Path, regions: Path | None = None) -> list[CaseFiles]:
    """Returns the cases of a folder of reference masks, sorted by site and name, without predictions.

    Two reference masks of one name in one place are a data error of their case.

    Raises:
        LayoutError: the folder is missing or holds no mask.
    """
    by_place: dict[tuple[str, str], CaseFiles] = {}
    for case, site, file in _references(root):
        place = (case.lower(), site)
        if place in by_place:
            first = by_place[place].reference
            error = f"expected one reference mask of {case} in {site or root}, got {first.name} and {file.path.name}"
            by_place[place] = replace(by_place[place], data_error=error)
            continue
        images = _sequences(file.path.parent, case)
        by_place[place] = CaseFiles(case, site, file.path, regions=_regions(case, file, regions), images=images)
    return list(by_place.values())


def match_files(
    references: Path, predictions: Path, regions: Path | None = None, suffix: str = "pred"
) -> tuple[list[CaseFiles], list[Path]]:
    """Returns the cases of a folder of reference masks, sorted, and the predictions that belong to none of them.

    Args:
        references: Folder of reference masks, in any of the forms above.
        predictions: Folder of masks to score.
        regions: Folder of region masks, laid out like ``references`` or all in one; None for those beside the
            reference masks.
        suffix: One more ending of the predictions' names.

    Raises:
        LayoutError: a folder is missing or holds no mask.
    """
    cases = find_references(references, regions)
    files = list(_images(predictions))
    if not files:
        raise LayoutError(f"{predictions}: expected masks to score, got no image in it or in any folder below")
    own = {_resolved(path) for case in cases for path in _files_of_reference(case)}
    files = [file for file in files if _may_be_prediction(file) and _resolved(file.path) not in own]
    count = Counter(case.case.lower() for case in cases)
    by_name = {file.path: _by_name(file, suffix) for file in files}
    # The folder decides only where the file's own name does not.
    by_folder = {file.path: set() if by_name[file.path] & set(count) else _by_folder(file) for file in files}
    other_sites = _other_sites(cases, references)
    named: dict[str, list[CaseFiles]] = {}
    for case in cases:
        named.setdefault(case.case.lower(), []).append(case)
    # Where there are cases x and x_mask, x_mask.nii.gz is of the latter only.
    longest = {
        file.path: max(
            (n for n in by_name[file.path] if any(_may_be_of(c, file, other_sites) for c in named.get(n, []))),
            key=len,
            default=None,
        )
        for file in files
    }
    matched, used = [], set()
    for case in cases:
        name, folder = case.case.lower(), case.reference.parent.relative_to(references)
        candidates = [file for file in files if name == longest[file.path] or name in by_folder[file.path]]
        candidates = [file for file in candidates if _may_be_of(case, file, other_sites)]
        same_site = [file for file in candidates if _within(case.site, file.folder)]
        # If a name occurs at several sites, the folder decides.
        candidates = same_site if same_site or count[name] > 1 else candidates
        if len(candidates) > 1:
            candidates = [file for file in candidates if file.folder == folder] or candidates
        used |= {file.path for file in candidates}
        if len(candidates) > 1:
            several = listed(file.path for file in candidates)
            case = replace(case, problem=f"{predictions}: expected one prediction for {case.case}, got {several}")
        elif candidates:
            case = replace(case, prediction=candidates[0].path)
        matched.append(case)
    unused = [f for f in files if f.path not in used and not _assign(matched, f, by_name[f.path], other_sites)]
    return matched, [file.path for file in unused]


def _other_sites(cases: list[CaseFiles], references: Path) -> dict[Path, set[str]]:
    """Returns, by reference mask, the folders of other cases' sites that it does not lie in."""
    sites = {case.site for case in cases}
    return {case.reference: sites - _ancestors(case.reference.parent.relative_to(references)) for case in cases}


def _may_be_of(case: CaseFiles, file: _File, other_sites: Mapping[Path, set[str]]) -> bool:
    """Whether a prediction is not in the folder of another site than the case."""
    return not _ancestors(file.folder) & other_sites[case.reference]


def _ancestors(folder: Path) -> set[str]:
    return {parent.as_posix() for parent in (folder, *folder.parents)} - {"."}


def _assign(cases: list[CaseFiles], file: _File, names: set[str], other_sites: Mapping[Path, set[str]]) -> bool:
    """Assigns a prediction without any case's whole name to its only possible case.

    ``sub-01_label-PVS_mask`` is of sub-01_run-1 where there is no other run. It is of none of two runs, nor is
    ``a_pred`` of one of ``a_rater1_PVS`` and ``a_rater2_PVS``: neither case is scored.

    Returns:
        Whether the prediction belongs to a case, or to one of several that get a data error.
    """
    bids = bids_mask(file.stem)
    names = {bids[0].lower()} if bids is not None else names
    free = [k for k, case in enumerate(cases) if case.prediction is None and case.problem is None]
    free = [k for k in free if _may_be_of(cases[k], file, other_sites)]
    fitting = [k for k in free if any(cases[k].case.lower().startswith(f"{name}_") for name in names)]
    fitting = [k for k in fitting if _within(cases[k].site, file.folder)] or fitting
    if len(fitting) == 1 and bids is not None and subject_of(cases[fitting[0]].case).lower() in names:
        cases[fitting[0]] = replace(cases[fitting[0]], prediction=file.path)
        return True
    if len(fitting) < 2:
        return False
    several = listed(cases[k].reference for k in fitting)
    for k in fitting:
        cases[k] = replace(cases[k], data_error=f"expected one reference mask for {file.path}, got {several}")
    return True


def _references(root: Path) -> list[tuple[str, str, _File]]:
    """Returns (case, site, file) of every reference mask below ``root``."""
    files = list(_images(root))
    masks = [(*named, file) for file in files if (named := _reference_name(file)) is not None]
    if not masks:
        others = [f for f in files if not _is_region(f.stem)]
        masks = [(file.stem, "" if file.folder == Path() else file.folder.as_posix(), file) for file in others]
    if not masks:
        raise LayoutError(f"{root}: expected reference masks (<case>_PVS.nii.gz, PVS.nii.gz), got no image")
    return sorted(masks, key=lambda entry: (entry[1], entry[0]))


def _reference_name(file: _File) -> tuple[str, str] | None:
    """Returns (case, site) of a file that is named as a reference mask."""
    if (mask := bids_mask(file.stem)) is not None:
        return (mask[0], "") if mask[1].lower() == "pvs" else None
    match = _REFERENCE.fullmatch(file.stem)
    if match is None:
        return None
    case, above = match["case"], file.folder
    if case is None:
        if file.folder == Path():
            return "case", ""
        case, above = file.folder.name, file.folder.parent
    elif file.folder.name.lower() == case.lower():
        above = file.folder.parent
    return case, "" if above == Path() else above.as_posix()


def ignore_mask_of(reference: Path) -> Path | None:
    """Returns the mask of voxels that are not scored beside a reference mask (of simulated cases), if there is one."""
    mask = reference.with_name(reference.name.replace("_PVS.", "_IGNORE."))
    return mask if mask != reference and mask.is_file() else None


def _files_of_reference(case: CaseFiles) -> list[Path]:
    """Returns reference, regions and ignored voxels of a case, which are no predictions where these lie beside them."""
    ignored = ignore_mask_of(case.reference)
    return [
        case.reference,
        *(path for paths in case.regions.values() for path in paths),
        *([ignored] if ignored else []),
    ]


def _resolved(path: Path) -> Path:
    """Returns a path whose folders are no links; a link to a reference may well be a prediction."""
    return path.parent.resolve() / path.name


def _may_be_prediction(file: _File) -> bool:
    """Whether a file is no mask of anything else than PVS, such as BIDS's ``label-brain``."""
    mask = bids_mask(file.stem)
    return mask is None or mask[1].lower() == "pvs"


def _by_name(file: _File, suffix: str) -> set[str]:
    """Returns, in lower case, the cases that a prediction may be of by its own name."""
    if (mask := bids_mask(file.stem)) is not None:
        return {mask[0].lower(), subject_of(mask[0]).lower()}
    stem = file.stem.lower()
    endings = [f"_{ending}" for ending in (*_ENDINGS, suffix.lower())]
    return {stem, *(stem.removesuffix(ending) for ending in endings)}


def _by_folder(file: _File) -> set[str]:
    """Returns, in lower case, the cases that a prediction may be of by its folder, where it lies alone."""
    parts = [part.lower() for part in file.folder.parts]
    if not file.alone or not parts or _is_region(file.stem):
        return set()
    names = {parts[-1]}
    if "images" in parts[1:]:  # grand-challenge: CASE/[output/]images/SLUG/x.mha
        above = parts[: parts.index("images", 1)]
        names.add(above[-2] if above[-1] == "output" and len(above) > 1 else above[-1])
    return names


def _images(root: Path) -> Iterator[_File]:
    """Yields every image in ``root`` and below."""
    if not root.is_dir():
        raise LayoutError(f"{root}: expected a folder, got {'a file' if root.exists() else 'no such folder'}")
    below = ((folder, files) for folder, files, _ in folders_below(root))
    for folder, files in [(root, [path for path in entries(root) if path.is_file()]), *below]:
        images = [(path, stem) for path in files if (stem := image_stem(path.name)) is not None]
        for path, stem in images:
            yield _File(path, folder.relative_to(root), stem, len(images) == 1)


def _within(site: str, folder: Path) -> bool:
    parts = Path(site).parts
    return folder.parts[: len(parts)] == parts


def _regions(case: str, file: _File, elsewhere: Path | None) -> dict[str, tuple[Path, ...]]:
    """Returns region masks beside the reference, or in the same folder below ``elsewhere``, or there by name."""
    folders = [file.path.parent]
    if elsewhere is not None:
        folders = [elsewhere / file.folder, elsewhere / case, elsewhere]
    for folder in folders:
        if not folder.is_dir():
            continue
        stems: dict[str, list[Path]] = {}
        for path in entries(folder):
            if (stem := image_stem(path.name)) is not None and path.is_file():
                stems.setdefault(stem.lower(), []).append(path)
        # In a folder of the case's own, the name of the region is enough.
        bare = folder == file.path.parent and file.stem.lower() in ("pvs", "epvs")
        own = bare or folder.name.lower() == case.lower()
        masks = {}
        for region, ways in _REGION_NAMES.items():
            for parts in ways:
                named = [stems.get(f"{case}_{part}".lower(), stems.get(part, []) if own else []) for part in parts]
                if all(len(paths) == 1 for paths in named):
                    masks[region] = tuple(paths[0] for paths in named)
                    break
        if masks:
            return masks
    return {}


def _is_region(stem: str) -> bool:
    return any(
        stem.lower() == part or stem.lower().endswith(f"_{part}")
        for ways in _REGION_NAMES.values()
        for parts in ways
        for part in parts
    )


def _sequences(folder: Path, case: str) -> dict[str, Path]:
    """Returns the images of the case beside its reference mask, of sequences that are there once."""
    mine = [p for p in entries(folder) if p.is_file() and (p.parent.name == case or p.name.startswith(f"{case}_"))]
    images = group((p for p in mine if image_stem(p.name) is not None), case)
    return {name: images[name][0] for name in SEQUENCES if len(images.get(name, [])) == 1}

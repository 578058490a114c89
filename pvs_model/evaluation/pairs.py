"""Which prediction belongs to which truth, and which region masks: found by name in every form that we write.

A truth is a file ``<case>_PVS``, ``PVS`` in a folder named like the case, or BIDS's ``..._label-PVS_mask``; in a
folder without any of these, each image is one. A prediction belongs to it that bears the name of the case, alone or
followed by ``_<suffix>``, ``_PVS`` and the like, or lies alone in a folder of that name (grand-challenge's
``<case>/output/images/<slug>/x.mha`` as well). Where several do, that in the same folder below the root counts.
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

_TRUTH = re.compile(r"(?:(?P<case>.+)_)?e?pvs", re.IGNORECASE)
#: What the name of a prediction may end in, after the name of the case.
_ENDINGS = ("pred", "prediction", "pvs", "epvs", "mask", "seg", "segmentation")

#: Names of region masks: the last words of a file's name, and the challenge's own atlas files, which are united.
_REGION_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "CSO": (("cso",), ("cso_native_space",)),
    "BG": (("bg",), ("bg_native_space",), ("lbg_native_space", "rbg_native_space")),
}


@dataclass(frozen=True)
class Pair:
    """A case to score.

    Attributes:
        case, site: name, and the folders above it ("" where there are none).
        truth: file of its true mask.
        prediction: file of the mask to score; None where there is none.
        problem: why none could be chosen, where there are several.
        fault: why the case cannot be scored: its true mask is one of several.
        regions: files of region masks by name, several to be united.
        images: the scan's own images beside the truth, by sequence, if any.
    """

    case: str
    site: str
    truth: Path
    prediction: Path | None = None
    problem: str | None = None
    fault: str | None = None
    regions: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.site}/{self.case}" if self.site else self.case


@dataclass(frozen=True)
class _File:
    path: Path
    folder: Path  # below the root
    stem: str
    alone: bool  # the only image in its folder


def find_truths(root: Path, regions: Path | None = None) -> list[Pair]:
    """The cases of a folder of truth, sorted by site and name, without predictions.

    Two true masks of one name in one place are a fault of their case.

    Raises:
        LayoutError: the folder is missing or holds no mask.
    """
    by_place: dict[tuple[str, str], Pair] = {}
    for case, site, true in _truths(root):
        place = (case.lower(), site)
        if place in by_place:
            first = by_place[place].truth
            fault = f"expected one true mask of {case} in {site or root}, found {first.name} and {true.path.name}"
            by_place[place] = replace(by_place[place], fault=fault)
            continue
        images = _sequences(true.path.parent, case)
        by_place[place] = Pair(case, site, true.path, regions=_regions(case, true, regions), images=images)
    return list(by_place.values())


def find_pairs(
    truth: Path, predictions: Path, regions: Path | None = None, suffix: str = "pred"
) -> tuple[list[Pair], list[Path]]:
    """The cases of a folder of truth, sorted, and the predictions that belong to none of them.

    Args:
        truth: folder of true masks, in any of the forms above.
        predictions: folder of masks to score.
        regions: folder of region masks, laid out like ``truth`` or all in one; None for those beside the truth.
        suffix: one more ending that the names of predictions may have.

    Raises:
        LayoutError: a folder is missing or holds no mask.
    """
    truths = find_truths(truth, regions)
    guesses = list(_images(predictions))
    if not guesses:
        raise LayoutError(f"{predictions}: expected masks to score, found no image in it or in any folder below")
    again = Counter(pair.case.lower() for pair in truths)
    by_name = {guess.path: _by_name(guess, suffix) for guess in guesses}
    # The folder speaks for a file only where its own name does not.
    by_folder = {g.path: set() if by_name[g.path] & set(again) else _by_folder(g) for g in guesses}
    pairs, taken = [], set()
    for pair in truths:
        case, folder = pair.case.lower(), pair.truth.parent.relative_to(truth)
        found = [g for g in guesses if case in by_name[g.path] | by_folder[g.path]]
        here = [g for g in found if _within(pair.site, g.folder)]
        # Where a name occurs at several sites, the folder has to say which is meant.
        found = here if here or again[case] > 1 else found
        if len(found) > 1:
            found = [g for g in found if g.folder == folder] or found
        problem = None
        if len(found) > 1:
            problem = f"{predictions}: expected one prediction for {pair.case}, found {listed(g.path for g in found)}"
        taken |= {g.path for g in found}
        pairs.append(replace(pair, prediction=found[0].path if len(found) == 1 else None, problem=problem))
    for guess in guesses:
        if guess.path not in taken:
            taken |= {guess.path} if _assign(pairs, guess, by_name[guess.path]) else set()
    return pairs, [guess.path for guess in guesses if guess.path not in taken]


def _assign(pairs: list[Pair], guess: _File, names: set[str]) -> bool:
    """Gives a prediction that bears no case's whole name to the one that it can be of; says so where there are several.

    ``sub-01_label-PVS_mask`` is of sub-01_run-1 where there is no other run. It is of none of two runs, nor is
    ``a_pred`` of one of ``a_rater1_PVS`` and ``a_rater2_PVS``: neither case is scored.
    """
    bids = bids_mask(guess.stem)
    names = {bids[0].lower()} if bids is not None else names
    free = [k for k, pair in enumerate(pairs) if pair.prediction is None and pair.problem is None]
    fitting = [k for k in free if any(pairs[k].case.lower().startswith(f"{name}_") for name in names)]
    fitting = [k for k in fitting if _within(pairs[k].site, guess.folder)] or fitting
    if len(fitting) == 1 and bids is not None and subject_of(pairs[fitting[0]].case).lower() in names:
        pairs[fitting[0]] = replace(pairs[fitting[0]], prediction=guess.path)
        return True
    if len(fitting) < 2:
        return False
    told = listed(pairs[k].truth for k in fitting)
    for k in fitting:
        pairs[k] = replace(pairs[k], fault=f"expected one true mask for {guess.path}, found {told}")
    return True


def _truths(root: Path) -> list[tuple[str, str, _File]]:
    """(case, site, file) of every true mask below ``root``."""
    files = list(_images(root))
    found = [(*named, file) for file in files if (named := _truth_name(file)) is not None]
    if not found:
        kept = [f for f in files if not _is_region(f.stem)]
        found = [(file.stem, "" if file.folder == Path() else file.folder.as_posix(), file) for file in kept]
    if not found:
        raise LayoutError(f"{root}: expected true masks (<case>_PVS.nii.gz, PVS.nii.gz), found no image")
    return sorted(found, key=lambda entry: (entry[1], entry[0]))


def _truth_name(file: _File) -> tuple[str, str] | None:
    """(case, site) of a file that is named as a true mask."""
    if (mask := bids_mask(file.stem)) is not None:
        return (mask[0], "") if mask[1].lower() == "pvs" else None
    match = _TRUTH.fullmatch(file.stem)
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


def _by_name(file: _File, suffix: str) -> set[str]:
    """In small letters, the cases that a prediction may be of by its own name."""
    if (mask := bids_mask(file.stem)) is not None:
        return {mask[0].lower(), subject_of(mask[0]).lower()}
    stem = file.stem.lower()
    endings = [f"_{ending}" for ending in (*_ENDINGS, suffix.lower())]
    return {stem, *(stem.removesuffix(ending) for ending in endings)}


def _by_folder(file: _File) -> set[str]:
    """In small letters, the cases that a prediction may be of by where it lies, alone in its folder."""
    parts = [part.lower() for part in file.folder.parts]
    if not file.alone or not parts:
        return set()
    names = {parts[-1]}
    if "images" in parts[1:]:  # grand-challenge: CASE/[output/]images/SLUG/x.mha
        above = parts[: parts.index("images", 1)]
        names.add(above[-2] if above[-1] == "output" and len(above) > 1 else above[-1])
    return names


def _images(root: Path) -> Iterator[_File]:
    """Every image in ``root`` and below."""
    if not root.is_dir():
        raise LayoutError(f"{root}: expected a folder, found {'a file' if root.exists() else 'nothing there'}")
    below = ((folder, files) for folder, files, _ in folders_below(root))
    for folder, files in [(root, [path for path in entries(root) if path.is_file()]), *below]:
        images = [(path, stem) for path in files if (stem := image_stem(path.name)) is not None]
        for path, stem in images:
            yield _File(path, folder.relative_to(root), stem, len(images) == 1)


def _within(site: str, folder: Path) -> bool:
    parts = Path(site).parts
    return folder.parts[: len(parts)] == parts


def _regions(case: str, true: _File, elsewhere: Path | None) -> dict[str, tuple[Path, ...]]:
    """Region masks beside the truth, or in the same folder below ``elsewhere``, or there by the case's name."""
    folders = [true.path.parent]
    if elsewhere is not None:
        folders = [elsewhere / true.folder, elsewhere / case, elsewhere]
    for folder in folders:
        if not folder.is_dir():
            continue
        stems: dict[str, list[Path]] = {}
        for path in entries(folder):
            if (stem := image_stem(path.name)) is not None and path.is_file():
                stems.setdefault(stem.lower(), []).append(path)
        # In a folder of the case's own, the name of the region is enough.
        bare = folder == true.path.parent and true.stem.lower() in ("pvs", "epvs")
        own = bare or folder.name.lower() == case.lower()
        found = {}
        for region, ways in _REGION_NAMES.items():
            for parts in ways:
                named = [stems.get(f"{case}_{part}".lower(), stems.get(part, []) if own else []) for part in parts]
                if all(len(paths) == 1 for paths in named):
                    found[region] = tuple(paths[0] for paths in named)
                    break
        if found:
            return found
    return {}


def _is_region(stem: str) -> bool:
    return any(
        stem.lower() == part or stem.lower().endswith(f"_{part}")
        for ways in _REGION_NAMES.values()
        for parts in ways
        for part in parts
    )


def _sequences(folder: Path, case: str) -> dict[str, Path]:
    """The images of the case beside its truth, where each sequence is there once."""
    mine = [p for p in entries(folder) if p.is_file() and (p.parent.name == case or p.name.startswith(f"{case}_"))]
    found = group((p for p in mine if image_stem(p.name) is not None), case)
    return {name: found[name][0] for name in SEQUENCES if len(found.get(name, [])) == 1}

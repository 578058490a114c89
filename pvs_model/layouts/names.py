"""From a file name to a sequence: the one matcher that every layout uses.

The order of recognition, stated once. Names are compared without regard to case.

1. The extension must be that of an image (``EXTENSIONS``).
2. The name is cut into tokens at everything that is neither letter nor digit, and where a small
   letter meets a capital (``myFLAIR``). BIDS entities (``acq-T1like_``) are dropped, and so is
   the name of the case, where the caller knows it: they say whose scan it is, not what it shows.
3. A name that says mask, label, segmentation, region or prediction is no sequence (``T1_PVS``).
4. What follows ``to``, ``in``, ``onto`` or ``on`` is where an image lies: ``T2_to_T1`` is a T2w.
5. FLAIR in any spelling (``T2-FLAIR``, ``T2FLAIR``, ``t2_tirm_dark-fluid``) is FLAIR, never T2w.
6. Then T1 (also ``mprage``, ``spgr``) is T1w and T2 is T2w. A name that says T1 besides T2 or
   FLAIR is ambiguous, and is not guessed. Maps (``T1map``), T2* and T1 after contrast agent
   (``T1c``, ``T1ce``, ``T1gd``) are none of the three.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pvs_model.types import SEQUENCES

#: Extensions of the images that can be read; the longer one comes before the one it ends in.
EXTENSIONS = (".nii.gz", ".nii", ".mha", ".mhd", ".mgz", ".nrrd", ".tiff", ".tif")

_BIDS_ENTITY = re.compile(
    r"(?:(?<=_)|^)(?:sub|ses|acq|run|rec|ce|space|res|desc|echo|part|task|dir|mod|chunk|den)-[^_]*_",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_GLUED_TO = re.compile(r"(t1w?|t2w?|flair)(?:to|in|2)(t1w?|t2w?|flair)")

_FLAIR = re.compile(r"(?:[23]d)?(?:t2w?)?flair(?:[23]d|w)?|t2f|tirm|darkfluid")
_KINDS = r"(?:w|wi|weighted|[23]d|w[23]d|mprage|mpr|spgr|tfe|ffe|gre|se|tse|fse|vibe|space|n)?"
_T1 = re.compile(r"(?:[23]d)?t1" + _KINDS + r"|mprage|f?spgr|bravo")
_T2 = re.compile(r"(?:[23]d)?t2" + _KINDS)

_ANNOTATION = re.compile(
    r"e?pvs|bg|cso|roi|(?:brain|pvs)?masks?|\w*(?:mask|seg|label)s?|\w*segmentations?|segmented"
    r"|pred(?:iction)?s?|prob(?:s|ability|abilities)?|regions?|parc(?:ellation)?|aseg|truth|groundtruth"
)
#: These make an annotation only as the last word: ``T1_lesion_filled`` is still a T1w.
_ANNOTATION_LAST = frozenset({"lesion", "lesions", "wmh", "gt", "manual", "consensus"})
_LIES_ON = frozenset({"to", "in", "onto", "on"})
_NOT_WEIGHTED = frozenset({"map", "maps", "star", "relaxometry", "gd", "ce", "contrast", "post"})


def image_stem(name: str) -> str | None:
    """The file name without its image extension; None where it is no image, or hidden."""
    if name.startswith("."):
        return None
    for extension in EXTENSIONS:
        if name.lower().endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return None


def image_extension(name: str) -> str | None:
    """The image extension of a file name in small letters, or None where it is no image."""
    stem = image_stem(name)
    return None if stem is None else name[len(stem) :].lower()


def is_image(path: Path) -> bool:
    """Whether a path is named like an image and is no folder; a link that leads nowhere is told when it is read."""
    return image_stem(path.name) is not None and not path.is_dir()


def _tokens(text: str) -> list[tuple[str, int]]:
    """Tokens in small letters, each with the place where it ends in ``text``."""
    found = []
    for word in _TOKEN.finditer(text):
        start = word.start()
        for part in _CAMEL.split(word.group()):
            found.append((part.lower(), start + len(part)))
            start += len(part)
    return found


def _sequence_of_token(token: str) -> str | None:
    for pattern, sequence in ((_FLAIR, "FLAIR"), (_T1, "T1w"), (_T2, "T2w")):
        if pattern.fullmatch(token):
            return sequence
    return None


def _sequence_of_tokens(tokens: list[str]) -> str | None:
    if any(_ANNOTATION.fullmatch(token) for token in tokens):
        return None
    if tokens and tokens[-1] in _ANNOTATION_LAST:
        return None
    found: set[str] = set()
    for i, token in enumerate(tokens):
        sequence = _sequence_of_token(token)
        if sequence is None and token == "dark" and tokens[i + 1 : i + 2] == ["fluid"]:
            sequence = "FLAIR"
        if sequence is None and token == "mp" and tokens[i + 1 : i + 2] == ["rage"]:
            sequence = "T1w"
        if sequence is None or (i > 0 and tokens[i - 1] in _LIES_ON):
            continue
        if sequence != "FLAIR" and tokens[i + 1 : i + 2] and tokens[i + 1] in _NOT_WEIGHTED:
            return None
        found.add(sequence)
    if "FLAIR" in found:
        found.discard("T2w")  # T2-FLAIR
    return found.pop() if len(found) == 1 else None


def sequence_of_stem(stem: str, case: str = "") -> str | None:
    """As ``sequence_of``, of a name without extension (a socket's slug, for one)."""
    if case and stem.lower().startswith(case.lower()):
        rest = stem[len(case) :]
        # Only a whole prefix: case "T1" must not eat the front of "T1w".
        if rest and not rest[0].isalnum():
            sequence = sequence_of_stem(rest)
            if sequence is not None:
                return sequence  # else the folder may be called by its sequence: T1/T1_1mm.nii
    stem = _BIDS_ENTITY.sub("", stem).replace("*", "star")
    tokens: list[str] = []
    for token, _ in _tokens(stem):
        tokens += _GLUED_TO.sub(r"\1 to \2", token).split()
    # "T2toT1" is cut at its capital into "t2to" and "t1".
    mended: list[str] = []
    for token in tokens:
        ending = re.fullmatch(r"(t1w?|t2w?|flair)(to|in)", token)
        mended += list(ending.groups()) if ending else [token]
    return _sequence_of_tokens(mended)


def sequence_of(name: str, case: str = "") -> str | None:
    """The sequence that an image file's name says: "T1w", "T2w", "FLAIR", or None.

    Args:
        name: the file's name, with its extension and without its folder.
        case: the case's name, where known; a leading one is left out of the comparison, so that
            a case called ``BG_T1study`` does no harm.
    """
    stem = image_stem(name)
    return None if stem is None else sequence_of_stem(stem, case)


def common_name(names: Iterable[str]) -> str | None:
    """What the names of one case's images begin with before they name their sequences.

    ``("sub01_T1.nii.gz", "sub01_T2.nii.gz")`` gives ``"sub01"``; None where nothing is shared.
    """
    fronts: list[list[tuple[str, int]]] = []
    stems: list[str] = []
    for name in names:
        stem = image_stem(name)
        if stem is None:
            continue
        tokens = _tokens(stem)
        cut = next((i for i, (t, _) in enumerate(tokens) if _sequence_of_token(t)), len(tokens))
        fronts.append(tokens[:cut])
        stems.append(stem)
    if not fronts:
        return None
    shared = 0
    while all(len(front) > shared and front[shared][0] == fronts[0][shared][0] for front in fronts):
        shared += 1
    return stems[0][: fronts[0][shared - 1][1]] if shared else None


def group(paths: Iterable[Path], case: str = "") -> dict[str, list[Path]]:
    """Image files by the sequence that their names say, in the order of ``SEQUENCES``."""
    found: dict[str, list[Path]] = {sequence: [] for sequence in SEQUENCES}
    for path in sorted(paths):
        sequence = sequence_of(path.name, case)
        if sequence is not None:
            found[sequence].append(path)
    return {sequence: files for sequence, files in found.items() if files}

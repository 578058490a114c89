"""Recognises the sequence of an image from its file name, for all layouts.

The rules in their order; names are compared case-insensitively:

1. The extension must be that of an image (``EXTENSIONS``).
2. The name is cut into tokens at everything that is neither letter nor digit, and where a small
   letter meets a capital (``myFLAIR``). BIDS entities (``acq-T1like_``) are dropped, and so is
   the name of the case, if known: they identify the scan and not its sequence.
3. A name with mask, label, segmentation, region or prediction is not a sequence (``T1_PVS``).
4. What follows ``to``, ``in``, ``onto`` or ``on`` is the space of an image: ``T2_to_T1`` is a T2w.
5. FLAIR in any spelling (``T2-FLAIR``, ``T2FLAIR``, ``t2_tirm_dark-fluid``) is FLAIR, never T2w.
6. Then T1 (also ``mprage``, ``spgr``, ``tfl3d``) is T1w and T2 is T2w. A name with T1 besides T2 or
   FLAIR is ambiguous and not recognised. Maps (``T1map``), T2* and susceptibility (``T2_GRE``,
   ``t2_fl2d_hemo``, ``swi``), other inversion recoveries (``t2_stir``), localisers, and images after
   contrast agent (``T1c``, ``t1_tra_KM``, ``T1+C``) are none of the three.
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
_BIDS_SUFFIX = re.compile(r"(.*[^\W_].*)_(T1w|T2w|FLAIR)")
_TOKEN = re.compile(r"[^\W_]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_GLUED_TO = re.compile(r"(t1w?|t2w?|flair)(?:to|in|2)(t1w?|t2w?|flair)")

_FLAIR = re.compile(r"(?:[23]d)?(?:t2w?)?flair(?:[23]d|w)?|t2f|tirm|darkfluid|spcir")
#: Pairs of words: Siemens' dark fluid, and inversion recovery by SPACE; MP-RAGE.
_PAIRS = {
    **dict.fromkeys([("dark", "fluid"), ("da", "fl"), ("dark", "fl"), ("spc", "ir"), ("space", "ir")], "FLAIR"),
    ("mp", "rage"): "T1w",
}
_VARIANTS = r"w|wi|weighted|[23]d|w[23]d|se|tse|fse|space|n"
_T1 = re.compile(rf"(?:[23]d)?t1(?:{_VARIANTS}|mprage|mpr|spgr|tfe|ffe|gre|vibe)?|mprage|f?spgr|bravo|tfl3d\d*")
_T2 = re.compile(rf"(?:[23]d)?t2(?:{_VARIANTS}|frfse|haste|blade|propeller|spc|cube|vista)?")

#: Gradient echoes: T2* with T2, T1w with T1.
_GRADIENT_ECHO = re.compile(r"gre|ffe|fl[23]d\w*|me[23]d\w*|medic")
_SUSCEPTIBILITY = re.compile(r"hemo|swi\w*|swan|venbold|qsm|t2s|t2(?:star|gre|ffe|swi)\w*")
_INVERSION = re.compile(r"stir|ir|irprep")
_OTHER = re.compile(r"locali[sz]er|scout|survey|dwi|dti|adc|ep2d|bold|tof")
#: Words for a contrast agent at any position, and words that mean one only after the name of the sequence.
_AGENT = re.compile(r"gd|gad|gado\w+|gadavist|km|kontrast\w*|post(?:gd|gad|km|contrast)|nachkm|t1w?(?:c|ce|gd|km|post)")
_AGENT_AFTER = frozenset({"post", "contrast", "ce", "c", "enhanced"})
_PLUS_AGENT = re.compile(r"\+[\s_]*(?:c|gd|km|gad\w*|contrast)(?![a-z0-9])|(?<![a-z0-9])c\+", re.IGNORECASE)
_WITHOUT = frozenset({"pre", "no", "non", "without", "ohne", "vor", "before"})

_ANNOTATION = re.compile(
    r"e?pvs|bg|cso|roi|(?:brain|pvs)?masks?|\w*(?:mask|seg|label)s?|\w*segmentations?|segmented"
    r"|pred(?:iction)?s?|prob(?:s|ability|abilities)?|regions?|parc(?:ellation)?|aseg|truth|groundtruth"
)
#: Words for an annotation only in last position: ``T1_lesion_filled`` is a T1w.
_ANNOTATION_LAST = frozenset({"lesion", "lesions", "wmh", "gt", "manual", "consensus"})
_SPACE_OF = frozenset({"to", "in", "onto", "on"})
_MAPS = frozenset({"map", "maps", "relaxometry"})


#: Reason of ``explain`` for a name without any known word.
NO_SEQUENCE = "its name contains none of T1w, T2w and FLAIR"


def image_stem(name: str) -> str | None:
    """Returns a file name without its image extension; None if it is hidden or not an image."""
    if name.startswith("."):
        return None
    for extension in EXTENSIONS:
        if name.lower().endswith(extension) and len(name) > len(extension):
            return name[: -len(extension)]
    return None


def image_extension(name: str) -> str | None:
    """Returns the image extension of a file name in lower case; None if it is not an image."""
    stem = image_stem(name)
    return None if stem is None else name[len(stem) :].lower()


def is_image(path: Path) -> bool:
    """Whether a path has the name of an image and is not a folder; a broken link is reported when it is read."""
    return image_stem(path.name) is not None and not path.is_dir()


def _tokens(text: str) -> list[tuple[str, int]]:
    """Returns the tokens of a text in lower case, each with the position of its end."""
    tokens = []
    for word in _TOKEN.finditer(text):
        start = word.start()
        for part in _CAMEL.split(word.group()):
            tokens.append((part.lower(), start + len(part)))
            start += len(part)
    return tokens


def _sequence_of_token(token: str) -> str | None:
    for pattern, sequence in ((_FLAIR, "FLAIR"), (_T1, "T1w"), (_T2, "T2w")):
        if pattern.fullmatch(token):
            return sequence
    return None


def _agent(tokens: list[str], sequence_index: int | None) -> str | None:
    """Returns the word for a contrast agent, if any."""
    for i, token in enumerate(tokens):
        after = sequence_index is not None and i > sequence_index and token in _AGENT_AFTER
        if (after or _AGENT.fullmatch(token)) and not (i and tokens[i - 1] in _WITHOUT):
            return token
    return None


def _explain(tokens: list[str]) -> tuple[str | None, str]:
    annotation = next((token for token in tokens if _ANNOTATION.fullmatch(token)), None)
    if annotation is None and tokens and tokens[-1] in _ANNOTATION_LAST:
        annotation = tokens[-1]
    if annotation is not None:
        return None, f'a mask, label or map ("{annotation}")'
    named: dict[str, str] = {}
    first: int | None = None
    for i, token in enumerate(tokens):
        sequence, word = _sequence_of_token(token), token
        if sequence is None and tuple(tokens[i : i + 2]) in _PAIRS:
            sequence, word = _PAIRS[tokens[i], tokens[i + 1]], f"{token} {tokens[i + 1]}"
        if sequence is None or (i > 0 and tokens[i - 1] in _SPACE_OF):
            continue
        if sequence != "FLAIR" and _MAPS & set(tokens[i + 1 : i + 2]):
            return None, f'a map ("{tokens[i + 1]}")'
        first = i if first is None else first
        named.setdefault(sequence, word)
    other = next((token for token in tokens if _OTHER.fullmatch(token)), None)
    if other is not None:
        return None, f'another scan type ("{other}")'
    if (agent := _agent(tokens, first)) is not None:
        return None, f'after contrast agent ("{agent}")'
    if "FLAIR" in named:
        named.pop("T2w", None)  # T2-FLAIR
    for token in tokens:
        echo = "T2w" in named and (_GRADIENT_ECHO.fullmatch(token) or token == "star")
        if echo or _SUSCEPTIBILITY.fullmatch(token):
            return None, f'T2* or susceptibility ("{token}")'
        if "T2w" in named and _INVERSION.fullmatch(token):
            return None, f'an inversion recovery other than FLAIR ("{token}")'
    if len(named) > 1:
        return None, f"its name contains {' and '.join(named)}"
    if not named:
        return None, NO_SEQUENCE
    (sequence, word), *_ = named.items()
    return sequence, f'"{word}"'


def sequence_of_stem(stem: str, case: str = "") -> str | None:
    """Recognises the sequence of a name without extension, such as a socket's slug."""
    return explain(stem, case)[0]


def explain(stem: str, case: str = "") -> tuple[str | None, str]:
    """Recognises the sequence of a name without extension, or None; also returns the decisive word or the reason."""
    if case and stem.lower().startswith(case.lower()):
        rest = stem[len(case) :]
        # Only a whole prefix: case "T1" must not remove the start of "T1w".
        if rest and not rest[0].isalnum():
            sequence, reason = explain(rest)
            if sequence is not None:
                return sequence, reason  # otherwise the folder may be named after its sequence: T1/T1_1mm.nii
    stem = _PLUS_AGENT.sub(" gd ", _BIDS_ENTITY.sub("", stem).replace("*", "star"))
    tokens: list[str] = []
    for token, _ in _tokens(stem):
        tokens += _GLUED_TO.sub(r"\1 to \2", token).split()
    # "T2toT1" is split at its capital into "t2to" and "t1".
    parts: list[str] = []
    for token in tokens:
        ending = re.fullmatch(r"(t1w?|t2w?|flair)(to|in)", token)
        parts += list(ending.groups()) if ending else [token]
    return _explain(parts)


def sequence_of(name: str, case: str = "") -> str | None:
    """Recognises the sequence of an image file: "T1w", "T2w", "FLAIR", or None.

    Args:
        name: File name with extension, without folder.
        case: Name of the case, if known; as a prefix of the file name it is removed first, so that a case
            ``BG_T1study`` is no problem.
    """
    stem = image_stem(name)
    return None if stem is None else sequence_of_stem(stem, case)


def front_and_rest(stem: str) -> tuple[str, str]:
    """Splits a name at its first sequence: ("sub01", "mprage_3") for "sub01_T1_mprage_3".

    The first part of a BIDS name consists of subject and session.
    """
    if bids := re.match(r"sub-[^_]+(?:_ses-[^_]+)?", stem):
        return bids.group(), ""
    start = 0
    for token, end in _tokens(stem):
        if _sequence_of_token(token) is not None:
            return stem[:start].rstrip(" _-."), stem[end:].lstrip(" _-.")
        start = end
    return "", stem


def subjects_like_sequences(stems: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Recognises subjects that are named like a sequence, such as t1 and t2 of t1_T1w, t1_T2w, t2_T1w and t2_T2w.

    They are taken for subjects where one of them has several sequences, as BIDS spells them at the end of a name, and
    one of these is there of another subject, too. ``T1_T2w`` alone is ambiguous.

    Returns:
        (subject, sequence) of their names.
    """
    suffixed = {stem: match.groups() for stem in stems if (match := _BIDS_SUFFIX.fullmatch(stem))}
    sequences: dict[str, set[str]] = {}
    for front, sequence in suffixed.values():
        sequences.setdefault(front, set()).add(sequence)
    words = {front: [token for token, _ in _tokens(front)] for front in sequences}
    subjects = {
        front for front in sequences if _sequence_of_token(words[front][0]) and words[front][-1] not in _SPACE_OF
    }
    several = [front for front in subjects if len(sequences[front]) > 1]
    if not any(sequences[front] & sequences[other] for front in several for other in sequences if other != front):
        return {}
    return {stem: (front, sequence) for stem, (front, sequence) in suffixed.items() if front in subjects}


def group(paths: Iterable[Path], case: str = "") -> dict[str, list[Path]]:
    """Groups image files by the sequence of their names, in the order of ``SEQUENCES``."""
    by_sequence: dict[str, list[Path]] = {sequence: [] for sequence in SEQUENCES}
    for path in sorted(paths):
        sequence = sequence_of(path.name, case)
        if sequence is not None:
            by_sequence[sequence].append(path)
    return {sequence: files for sequence, files in by_sequence.items() if files}

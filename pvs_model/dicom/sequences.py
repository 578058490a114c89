"""Recognises T1w, T2w and FLAIR series by their headers, and chooses one series per sequence of a study.

The timing of a spin or gradient echo says what its contrast is; the description may exclude a series (localisers, T2*,
after contrast agent), and decides where the timing is missing. Names of files play no role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pvs_model.dicom.headers import Series, Study
from pvs_model.errors import LayoutError
from pvs_model.layouts.names import NO_SEQUENCE, explain
from pvs_model.types import SEQUENCES

#: Values of ImageType of images that are no magnitude images of the head.
_EXCLUDED_TYPES = frozenset(
    {
        "LOCALIZER", "ADC", "DIFFUSION", "TRACEW", "FA", "PHASE", "PHASE MAP", "P", "R", "I", "REAL", "IMAGINARY",
        "PROJECTION IMAGE", "MIP", "MIN IP", "SUBTRACTION", "T1 MAP", "T2 MAP", "T2_STAR", "PERFUSION", "SCREEN SAVE",
    }
)  # fmt: skip
#: Words of descriptions of other scans, in addition to those of file names.
_OTHER = re.compile(
    r"field ?_?map\w*|inv[12]|ciss|fiesta\w*|tru(?:fi|e ?fisp)|asl|p?casl|perf\w*|mra|angio\w*|b[01]|mt|dixon\w*",
    re.IGNORECASE,
)
#: Sequence of a timing that is none of the three.
_NONE = "none"

#: Choices of ``--series``: (sequence, UID or pattern of descriptions, or "none").
Choices = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Selection:
    """The series of a study by sequence, and why the others are not used.

    Attributes:
        chosen: Series by sequence.
        reasons: Sequence of each series, or the reason why it is not used.
    """

    chosen: Mapping[str, Series]
    reasons: Mapping[Series, str]


def recognise(series: Series) -> tuple[str | None, str]:
    """Recognises the sequence of a series: (sequence or None, reason).

    >>> recognise(Series("1.2", description="Ax FLAIR", pulse="spin", echo_ms=120, inversion_ms=2500))
    ('FLAIR', 'TI 2500 ms, TE 120 ms')
    >>> recognise(Series("1.3", description="t2_fl2d_hemo", pulse="gradient", repetition_ms=620, echo_ms=20))
    (None, 'T2* or susceptibility ("fl2d")')
    """
    if series.modality != "MR":
        return None, f"modality {series.modality or 'unknown'}"
    if excluded := sorted(_EXCLUDED_TYPES & set(series.image_type)):
        return None, f"image type {excluded[0]}"
    if series.problem is not None:
        return None, series.problem
    if series.agent and series.agent.lower() not in ("no", "none"):
        return None, f'after contrast agent ("{series.agent}")'
    if other := re.search(rf"(?<![^\W_])(?:{_OTHER.pattern})(?![^\W_])", series.description, re.IGNORECASE):
        return None, f'another scan type ("{other.group()}")'
    described, why = explain(series.description)
    if described is None and why != NO_SEQUENCE and not why.startswith("its name contains"):
        return None, why
    timed, timing = _by_timing(series)
    if described == "FLAIR" and timed == "T2w" and not series.inversion_ms:
        timed = "FLAIR"  # the inversion time is missing
    if timed is None:
        return described, why.replace("its name", "its description")
    if timed == _NONE or described not in (None, timed):
        stated = f", its description says {described}" if described is not None else ""
        return None, f"the timing ({timing}) is that of {'no such sequence' if timed == _NONE else timed}{stated}"
    return timed, timing


def _by_timing(series: Series) -> tuple[str | None, str]:
    """The sequence by the times of the header: None where they are missing, ``_NONE`` for other contrasts."""
    echo, repetition, inversion = series.echo_ms, series.repetition_ms, series.inversion_ms
    if series.pulse == "echo-planar":
        return _NONE, "echo-planar"
    if echo is None:
        return None, ""
    if inversion:
        timing = f"TI {inversion:g} ms, TE {echo:g} ms"
        if echo >= 60:
            return ("FLAIR" if inversion >= 1500 else _NONE), timing
        return ("T1w" if 300 <= inversion < 1500 and echo < 35 else _NONE), timing
    if repetition is None:
        return None, ""
    timing = f"TR {repetition:g} ms, TE {echo:g} ms"
    if series.pulse == "gradient":
        return ("T1w" if repetition < 50 else None) if echo < 10 else _NONE, timing
    if repetition >= 1800:
        if series.inversion:
            return None, timing
        return ("T2w" if echo >= 60 else _NONE), timing
    if series.pulse == "spin":
        return ("T1w" if repetition <= 1200 and echo < 35 else None), timing
    return None, timing


def select(study: Study, choices: Choices = ()) -> Selection:
    """Chooses one series per sequence of a study.

    Of several, original images are preferred to derived ones. ``choices`` narrow a sequence to series of a UID, or of
    descriptions that match a pattern, whatever their headers say; "none" leaves the sequence out.

    Raises:
        LayoutError: Several series qualify for a sequence, or none for any.
    """
    recognised = {series: recognise(series) for series in study.series}
    chosen: dict[str, Series] = {}
    for sequence in SEQUENCES:
        candidates = [series for series, (name, _) in recognised.items() if name == sequence]
        for name, pattern in choices:
            if name == sequence:
                named = [series for series in study.series if _matches(series, pattern)]
                candidates = [] if pattern == "none" else named or candidates
        original = [series for series in candidates if "DERIVED" not in series.image_type]
        candidates = original or candidates
        if len({series.uid for series in candidates}) == 1 and len(candidates) > 1:
            candidates = [series for series in candidates if recognised[series][0] == sequence] or candidates
        if len(candidates) > 1:
            raise LayoutError(
                f"expected one {sequence} series, got {'; '.join(s.label for s in candidates)}: choose "
                f"with --series {sequence}={candidates[0].uid}, or leave the sequence out with --series {sequence}=none"
            )
        if candidates:
            chosen[sequence] = candidates[0]
    reasons = {series: f"{name} ({why})" if name else why for series, (name, why) in recognised.items()}
    for sequence, series in chosen.items():
        if series.problem is not None:
            raise LayoutError(f"expected a volume in series {series.label}, got {series.problem}")
        if recognised[series][0] != sequence:
            reasons[series] = f"{sequence} (as chosen)"
    if not chosen:
        listed = "; ".join(f"{series.label}: {why}" for series, why in reasons.items())
        raise LayoutError(f"expected a T1w, T2w or FLAIR series, got {listed}: choose with --series T2w=UID")
    return Selection(chosen, reasons)


def _matches(series: Series, pattern: str) -> bool:
    return series.uid == pattern or fnmatchcase(series.description.lower(), pattern.lower())

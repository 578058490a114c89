"""Words and lengths: the source uses the terms of the field, and its files can be read in one sitting.

Each word of ``AVOIDED`` was a private term of an earlier version; beside it stands the term that replaced it. Names are
searched as whole words, so that ``told`` is found in ``told``, not in ``threshold``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAX_LINES = 400

#: Folders and files that are still being revised. This list must become empty.
NOT_YET: tuple[str, ...] = ()

#: Regular expression of a term -> the term of the field.
AVOIDED: Mapping[str, str] = {
    r"told|tells?|telling|tell_\w+": "report, warn, log, print",
    r"upright": "canonical, RAS-oriented",
    r"mend(?:s|ed|ing)?": "fix, correct",
    r"at hand": "available",
    r"for ever": "indefinitely",
    r"amid": "during",
    r"so many": "n",
    r"torn": "interrupted",
    r"beforehand": "before",
    r"peers": "baselines",
    r"_?Desk": "ResultWriter",
    r"_?(?:LEAST|MOST)_\w+": "MIN_..., MAX_...",
    r"without_specks|specks?": "remove_small_components",
    r"keep_within": "remove_components_outside",
    r"RARE_LOGIT|starting_rare": "PRIOR_LOGIT, init_bias_to_prior",
    r"PatientNorm\w*": "SingleVoxelInstanceNorm",
    r"ShallowSafeConv3d": "Bf16SafeConv3d",
    r"Material": "FoldData",
    r"RenderAhead": "ScenePrefetcher",
    r"Logbook|Recorder|Pace": "CsvLog, RunLogger, Throughput",
    r"hosts|PVS_HOSTS|find_hosts": "insertion sites",
    r"look-?alikes?": "mimics",
    r"guess(?:es|ed)?": "predictions",
    r"network_kind|kind_of": "configuration",
    r"believable|one_volume|Opened": "check_affine, check_shape, ImageHandle",
    r"smm_sf": "studentized_max_modulus_sf",
    r"Standing": "RankingRow",
    r"house|rooms": "architecture, packages",
    r"slices_last": "axis_order",
    r"expected [^\n\"']{1,80}, found": "expected ..., got ...",
}

#: (file, term) -> why it may stay: file formats, keys of CSV and JSON, options, and names of others.
ALLOWED: Mapping[tuple[str, str], str] = {
    ("pvs_model/datasets/real_scans.py", "hosts"): "name of an array in cached files",
}


def sources() -> Iterator[Path]:
    """The files that users and developers read."""
    code = ("process.py", "pvs_model/**/*.py", "pvs_model/**/*.html", "benchmarks/**/*.py")
    for pattern in (*code, "README.md", "docs/**/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            if not path.relative_to(ROOT).as_posix().startswith(NOT_YET):
                yield path


def avoided_terms(text: str) -> Iterator[tuple[int, str, str]]:
    """Yields line, term and replacement."""
    for expression, better in AVOIDED.items():
        for match in re.finditer(rf"(?<![\w-])(?:{expression})(?![\w-])", text):
            yield text.count("\n", 0, match.start()) + 1, match.group(), better


@pytest.mark.parametrize("path", [*sources()], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_source_uses_the_terms_of_the_field(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    complaints = [
        f"{name}:{line}: {term!r}: write {better}"
        for line, term, better in avoided_terms(path.read_text(encoding="utf-8"))
        if (name, term) not in ALLOWED
    ]
    assert complaints == []


def test_allowed_terms_are_used() -> None:
    used = {
        (path.relative_to(ROOT).as_posix(), term)
        for path in sources()
        for _, term, _ in avoided_terms(path.read_text(encoding="utf-8"))
    }
    assert set(ALLOWED) <= used, "an exception that nothing needs any more"
    assert all(ALLOWED.values()), "an exception needs a reason"


def test_avoided_terms_are_recognised() -> None:
    text = "a threshold\nthe caller is told\nself._Desk = 1\nexpected a mask, found an image\n# _MOST_REGIONS\n"
    assert [(line, term) for line, term, _ in sorted(avoided_terms(text))] == [
        (2, "told"), (3, "_Desk"), (4, "expected a mask, found"), (5, "_MOST_REGIONS"),
    ]  # fmt: skip


def test_no_file_is_long() -> None:
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "pvs_model").rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}

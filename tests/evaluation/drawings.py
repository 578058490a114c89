"""Masks drawn in characters, and small random ones: what the tests of scores are made of.

In a drawing ``#`` is inside and ``.`` outside. x grows downwards, y along a row, z from one group of a row to the
next: slices lie side by side. A bar stands between truth and prediction, and before the region where there is one.
A prediction drawn ``?`` is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Drawn:
    """Masks (x, y, z), both within the region where there is one; ``prediction`` None where it is missing."""

    truth: Bool
    prediction: Bool | None


def drawn(drawing: str) -> Drawn:
    """The masks of a drawing.

    Raises:
        ValueError: when its rows do not fit together or hold another character.
    """
    columns = list(zip(*(line.split("|") for line in drawing.strip().splitlines()), strict=True))
    truth, prediction, *regions = (None if "?" in "".join(column) else _mask(column) for column in columns)
    assert truth is not None
    for region in regions:
        assert prediction is not None and region is not None
        truth, prediction = truth & region, prediction & region
    return Drawn(truth, prediction)


def _mask(rows: tuple[str, ...]) -> Bool:
    characters = np.array([[list(part) for part in row.split()] for row in rows])  # refused where ragged
    if characters.ndim != 3 or not np.isin(characters, ("#", ".")).all():
        raise ValueError(f"expected equal rows of # and ., got {rows}")
    return np.asarray(characters.swapaxes(1, 2) == "#")


def explained(readme: Path) -> dict[str, tuple[str, str]]:
    """The sections of a README by their titles: the drawing, and what is said of it."""
    text = readme.read_text(encoding="utf-8")
    sections = re.findall(r"^### ([^\n]+)\n+```\n(.+?)\n```\n(.+?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    return {title: (drawing, said) for title, drawing, said in sections}


@st.composite
def small_masks(draw: st.DrawFn, count: int = 2) -> tuple[Bool, ...]:
    """Random masks of one shape, 1 to 6 voxels along each axis: empty to full, some of them much like the first.

    Hypothesis draws shape, fill and seed, numpy the voxels: drawn one by one, most masks would be nearly empty.
    """
    shape = draw(st.tuples(*[st.sampled_from((1, 6, 4, 5, 3, 2))] * 3))
    fills = draw(st.tuples(*[st.sampled_from((0.1, 0.05, 0.2, 0.5, 0.02, 1.0, 0.0))] * count))
    alike = draw(st.tuples(*[st.booleans()] * (count - 1)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    first, *others = (rng.random(shape) < fill for fill in fills)
    kept = [first & (rng.random(shape) < 0.7) for _ in others]
    likenesses = [part | (other & (rng.random(shape) < 0.2)) for part, other in zip(kept, others, strict=True)]
    return first, *(like if a else other for a, like, other in zip(alike, likenesses, others, strict=True))

"""What the tests of reports share: a drawn case, names that must not change a page, and a parser of pages."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import numpy.typing as npt

from pvs_model.burden.measure import measure
from pvs_model.reports.case_report import CaseView

Bool = npt.NDArray[np.bool_]
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "' onmouseover='alert(1)",
    "</title></style></svg><b>bold</b>",
    "{{ 7 * 7 }}{% raw %}{# gone #}",
    "<!-- --> ]]> &lt;i&gt; &amp;",
    "javascript:alert(1) https://example.org/x",
    "right\u202eleft\u2066 \x00\x1b[31m\nnext\udc80",
)
METADATA = {
    "network": "3d",
    "members": 2,
    "threshold": 0.6,
    "low_threshold": 0.3,
    "prompt": "PVS on T1w and T2w, 1 mm slices",
    "sequences": ["T1w", "T2w"],
    "reference": "T2w",
    "spacing_mm": [1.0, 1.0, 1.0],
    "warnings": ["T1w covers only 60% of the field of view of T2w"],
    "seconds": {"read": 1.4, "predict": 40.8},
    "version": "9.8.7",
}


def head(
    shape: tuple[int, int, int] = (40, 48, 36), spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> tuple[Bool, Bool]:
    """A head that fills its grid, and a box in its middle."""
    x, y, z = np.meshgrid(*((np.arange(n) - (n - 1) / 2) / (n / 2 - 1) for n in shape), indexing="ij", sparse=True)
    inner = np.broadcast_to((abs(x) < 0.4) & (abs(y) < 0.4) & (abs(z) < 0.4), shape)
    return x**2 + y**2 + z**2 < 1, inner


def view(
    shape: tuple[int, int, int] = (40, 48, 36),
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    sequences: Sequence[str] = ("T1w", "T2w"),
    marked: Sequence[tuple[slice | int, slice | int, slice | int]] | None = None,
    **given: Any,
) -> CaseView:
    """A case with a line in the box (BG) and two in the rest (CSO); or with what is marked."""
    inside, box = head(shape, spacing_mm)
    x, y, z = (n // 2 for n in shape)
    mask = np.zeros(shape, bool)
    for place in ((x, slice(y, y + 4), z), (x // 3, y, z), (x // 3, y + 2, z)) if marked is None else marked:
        mask[place] = True
    rng = np.random.default_rng(0)
    images = {name: np.where(inside, rng.normal(0, 0.3, shape) + 2 * mask, 0).astype(np.float32) for name in sequences}
    regions = {"CSO": inside & ~box, "BG": inside & box}
    hemispheres = np.broadcast_to(np.where(np.arange(shape[0]) < shape[0] // 2, 1, 2)[:, None, None], shape)
    given = {"regions": regions, "metadata": METADATA, **given}
    burden = measure(mask, given["regions"], np.diag([*spacing_mm, 1.0]), inside, hemispheres)
    return CaseView(
        **{"name": "sub-01", "images": images, "mask": mask, "spacing_mm": spacing_mm, "burden": burden, **given}
    )


class Seen(HTMLParser):
    """Elements with their attributes in order, and all text, as a parser of HTML sees them."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are nested"

    def handle_data(self, data: str) -> None:
        self.text.append("" if self.open[-1:] in (["script"], ["style"]) else data)

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    @property
    def words(self) -> str:
        return " ".join("\n".join(self.text).split())


def between(html: str, start: str, end: str) -> str:
    return html.split(start, 1)[1].split(end, 1)[0]


def check_policy(html: str) -> None:
    """The page allows its own style and script only, and images that it holds itself."""
    policy = next(
        value for name, value in Seen(html).attributes if name == "content" and value and "default-src" in value
    )
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        text = between(html, f"<{tag}>", f"</{tag}>")
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert "img-src data:;" in policy


def check_accessible(html: str) -> None:
    """The page has its landmarks, captions, scopes of header cells and labels of figures."""
    seen = Seen(html)
    tags = [tag for tag, _ in seen.elements]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(landmark) == 1
    assert ("lang", "en") in seen.attributes
    assert tags.count("caption") == tags.count("table")
    assert all("scope" in names for tag, names in seen.elements if tag == "th")
    assert all({"aria-label", "aria-hidden"} & set(names) for tag, names in seen.elements if tag == "svg")


def check_scores_are_estimated(html: str) -> None:
    """No score is shown without saying that it is estimated."""
    for words in re.findall(r">([^<>]*\bscores?\b[^<>]*)", between(html, "</style>", "<script>"), re.IGNORECASE):
        assert "stimated" in words, words


def luminance(colour: str) -> float:
    linear = [(int(colour[k : k + 2], 16) / 255) for k in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

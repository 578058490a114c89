"""The pages of a case and of a cohort: complete, true to the voxel, harmless whatever they are given."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pvs_model.burden import page as module
from pvs_model.burden import pictures
from pvs_model.burden.measure import measure
from pvs_model.burden.page import NONE, CaseView, Entry, case_page, entry_of, index_page, write_case_page, write_index
from pvs_model.errors import PVSError

Bool = npt.NDArray[np.bool_]
BY = "\N{MULTIPLICATION SIGN}"
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
FACTS = {
    "network": "3d",
    "members": 2,
    "threshold": 0.3,
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
    given = {"regions": regions, "facts": FACTS, **given}
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


def figures(html: str, region: str) -> list[str]:
    """The figures of slices of a region."""
    part = between(html, f"<bdi>{region}</bdi></h3>", "</section>")
    return re.findall(r"<figure>.*?</figure>", part, re.DOTALL)


def image_of(figure: str) -> npt.NDArray[np.uint8]:
    """The first image of a figure."""
    data = between(figure, "data:image/png;base64,", '"')
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.mode == "L"
    return np.array(image)


@pytest.fixture(scope="module")
def usual() -> str:
    return case_page(view())


# --- outlines and pictures ------------------------------------------------------------------------------


def drawn(text: str) -> Bool:
    """A mask from rows of "#" and "."."""
    return np.array([[c == "#" for c in row] for row in text.split()])


@pytest.mark.parametrize(
    ("mask", "path"),
    [
        ("#", "M0 0h1v1h-1z"),
        ("..... .###. .....", "M1 1h3v1h-3z"),
        ("##. .#. .##", "M0 0h2v2h1v1h-2v-2h-1z"),
        ("### #.# ###", "M0 0h3v3h-3zM1 1v1h1v-1z"),  # a hole runs the other way round
        ("#. .#", "M0 0h1v1h-1zM1 1h1v1h-1z"),  # touching by a corner: two lines
        (".# #.", "M1 0h1v1h-1zM0 1h1v1h-1z"),
        ("... ...", ""),
    ],
)
def test_the_outline_runs_along_the_edges_of_pixels(mask: str, path: str) -> None:
    assert pictures.path(drawn(mask)) == path


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_outlines_enclose_the_mask_and_nothing_else(share: float) -> None:
    mask = np.random.default_rng(1).random((23, 31)) < share
    found = np.zeros(mask.shape, bool)
    for corners in pictures.outlines(mask):
        for (x, y), (to_x, to_y) in zip(corners, corners[1:] + corners[:1], strict=True):
            assert (x == to_x) != (y == to_y), "each step is along one axis, and each corner a turn"
            if x == to_x:
                found[min(y, to_y) : max(y, to_y), x:] ^= True
    np.testing.assert_array_equal(found, mask)


def test_the_outline_on_the_page_is_that_of_the_mask() -> None:
    figure = figures(case_page(view(marked=[(20, slice(24, 28), 18)])), "basal ganglia (BG)")[0]
    # Four voxels towards anterior: one pixel wide, four high, twice its size in the clip and thrice drawn.
    assert re.findall(r'class="edging (\w+)" d="(M\d+ \d+h1v4h-1z)"', figure)
    paths = set(re.findall(r'class="edging \w+" d="([^"]+)"', figure))
    assert len(paths) == 1
    assert f'z{paths.pop()}"/></clipPath>' in figure, "all but the marked voxels may be drawn on"


def test_left_is_on_the_right_and_front_on_top() -> None:
    # In RAS+ order a high x is right, a high y anterior: the marked corner is to the patient's right and front.
    made = view(shape=(66, 70, 30), marked=[(60, 65, 15)], regions={})
    made.images["T2w"][:] = 1
    made.images["T2w"][60, 65, 15] = 5
    html = case_page(made)
    (figure,) = figures(html, "whole image")
    seen = image_of(figure)
    assert seen.shape == (70, 66)
    assert np.argwhere(seen == seen.max()).tolist() == [[70 - 1 - 65, 66 - 1 - 60]]
    assert 'd="M5 4h1v1h-1z"' in figure
    assert '<span class="edge l" aria-hidden="true">R</span><span class="edge r" aria-hidden="true">L</span>' in figure
    assert (
        "Radiological convention: the patient\N{RIGHT SINGLE QUOTATION MARK}s right (R) is on the left of the picture"
        in Seen(html).words
    )


@pytest.mark.parametrize("plane", [pictures.AXIAL, pictures.CORONAL, pictures.SAGITTAL])
def test_planes_lie_as_a_radiologist_hangs_them(plane: pictures.Plane) -> None:
    volume = np.zeros((5, 6, 7), bool)
    volume[4, 5, 6] = True  # right, front, top
    seen = plane.projected(volume)
    assert np.argwhere(seen).tolist() == [[0, 0]]
    np.testing.assert_array_equal(seen, plane.slice_of(volume, volume.shape[plane.across] - 1))
    assert plane.edges == ("AP" if plane is pictures.SAGITTAL else "RL")


def test_voxels_keep_their_shape() -> None:
    html = case_page(view((48, 60, 12), (0.45, 0.45, 6.0), facts={**FACTS, "network": "2d"}))
    for figure in figures(html, "basal ganglia (BG)"):
        assert 'transform="scale(0.45 0.45)"' in figure
        width, height = map(float, between(figure, 'viewBox="0 0 ', '"').split())
        assert image_of(figure).shape == (round(height / 0.45), round(width / 0.45))
    assert 'transform="scale(0.45 6)"' in html, "the coronal projection is not squashed"
    assert f"0.45 {BY} 0.45 {BY} 6 mm" in html
    assert "2D, the mean of 2 networks: the largest voxel spacing, 6 mm, is not below 2.5 mm." in html
    assert "axial slice 6 (of 0 to 11)" in html and "36.0 mm above the lowest" in html


def test_slices_lie_in_the_plane_of_acquisition() -> None:
    assert pictures.plane_of((1.0, 1.0, 1.1)) is pictures.AXIAL
    assert pictures.plane_of((0.5, 3.0, 0.5)) is pictures.CORONAL
    html = case_page(view((14, 48, 48), (4.0, 1.0, 1.0)))
    assert "sagittal slice" in html and "The patient\N{RIGHT SINGLE QUOTATION MARK}s front (A) is on the left" in html


def test_positions_in_the_scanner_where_they_are_known() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 3] = -20
    assert "18.0 mm above the lowest; z = \N{MINUS SIGN}2.0 mm in the scanner" in case_page(view(affine=affine))
    assert "in the scanner" not in case_page(view())


def test_greys_are_black_outside_and_within_the_window() -> None:
    image = np.array([[0.0, -3.0, 5.0, 1.0]], np.float32)
    assert pictures.grey(image, (-1.0, 3.0)).tolist() == [[0, 0, 255, 128]]
    low, high = pictures.window(np.zeros((3, 3, 3), np.float32), "T1w")
    assert low < high


def test_the_slices_with_most_pvs_lie_apart() -> None:
    mask = np.zeros((30, 30, 40), bool)
    for z, count in ((10, 3), (12, 4), (30, 2), (31, 1), (20, 1)):
        mask[2 : 2 + 3 * count : 3, 5, z] = True
    region = np.ones(mask.shape, bool)
    chosen = pictures.choose_slices(pictures.clusters(mask), region, pictures.AXIAL, (1.0, 1.0, 1.0), 3)
    assert [(one.index, one.pvs) for one in chosen] == [(12, 4), (20, 1), (30, 2)]
    (control,) = pictures.choose_slices(
        pictures.clusters(mask), region & (np.arange(40) == 5), pictures.AXIAL, (1, 1, 1)
    )
    assert (control.index, control.pvs) == (5, 0)
    assert pictures.choose_slices(pictures.clusters(mask), ~region, pictures.AXIAL, (1.0, 1.0, 1.0)) == []


# --- the page of a case ---------------------------------------------------------------------------------


def test_another_spacing_of_the_network_is_told() -> None:
    for seen, told in (((1.0, 1.0, 1.0), False), ((1.0, 1.0, 1.6), True), ("nonsense", False)):
        page = case_page(view(facts={"network_spacing_mm": seen}))
        assert ("its probabilities were brought back" in page) == told


def test_what_was_assumed_is_told(usual: str) -> None:
    words = Seen(usual).words
    for fact in (
        "Perivascular spaces: sub-01", "Not for clinical use", "T1w, T2w. Not given, or not usable: FLAIR.",
        "T2w: the mask lies on its grid. T1w was resampled onto it.",
        f"40 {BY} 48 {BY} 36 voxels of 1 {BY} 1 {BY} 1 mm",
        "3D, the mean of 2 networks: the largest voxel spacing, 1 mm, is below 2.5 mm.",
        "A voxel is marked from a probability of 0.3 on.", "“PVS on T1w and T2w, 1 mm slices”",
        "pvs_model 9.8.7, in 42 s", "centrum semiovale (CSO), basal ganglia (BG)",
    ):  # fmt: skip
        assert fact in words, fact


def test_every_warning_is_shown_once() -> None:
    made = view(warnings=["a of the caller", FACTS["warnings"][0]])  # type: ignore[index]
    assert made.burden is not None
    made = replace(made, burden=replace(made.burden, warnings=("one of the burden",)))
    notice = between(case_page(made), 'class="notice warning"', "</section>")
    assert "Warnings (3)" in notice
    for sentence in ("T1w covers only 60% of the field of view of T2w", "a of the caller", "one of the burden"):
        assert notice.count(f"<li><bdi>{sentence}</bdi></li>") == 1
    assert case_page(view(facts={}, burden=None)).count("No warnings.") == 1


def test_the_table_holds_the_burden(usual: str) -> None:
    table = Seen(between(usual, '<table class="burden">', "</table>")).words
    # Four voxels of 1 mm3 on one PVS in the box; two single ones outside it, on the left.
    assert re.search(r"basal ganglia \(BG\) both sides 1 4\.0 ", table)
    assert re.search(r"centrum semiovale \(CSO\) left 2 2\.0 ", table)
    assert re.search(rf"whole image both sides 3 6\.0 {NONE} {NONE} {NONE} ", table)
    scores = Seen(between(usual, '<table class="scores">', "</table>")).words
    assert "basal ganglia (BG) Potter, 0 to 4 1 1 PVS on the right, on axial slice" in scores
    assert "Estimated score" in scores and "No rater has seen the scan" in scores
    assert "ating" not in Seen(usual).words.replace("No rater", "")


def test_scores_are_always_called_estimated(usual: str) -> None:
    for html in (usual, index_page([entry_of(case_json())])):
        for words in re.findall(r">([^<>]*\bscores?\b[^<>]*)", between(html, "</style>", "<script>"), re.IGNORECASE):
            assert "stimated" in words, words


@pytest.mark.parametrize(
    "given",
    [
        {"regions": {}},
        {"marked": []},
        {"marked": [], "regions": {}},
        {"regions": {"BG": head()[1]}},
        {"sequences": ("FLAIR",)},
        {"burden": None, "facts": {}},
        {"regions": {"BG": head()[1], "HIP": head()[1] & False, "L-own <b>": head()[0]}},
        {"facts": {"warnings": None, "sequences": None, "seconds": "?", "threshold": None, "network": "9d"}},
    ],
    ids=[
        "no region",
        "empty",
        "empty, no region",
        "one region",
        "one sequence",
        "bare",
        "an empty region",
        "odd facts",
    ],
)
def test_whatever_is_missing_the_page_stands(given: dict[str, Any]) -> None:
    html = case_page(view(**given))
    seen = Seen(html)
    assert seen.open == []
    assert not re.search(
        r"\b(None|nan|NaN|inf|Undefined)\b", between(html, "</style>", "<script>").replace("None:", "")
    )
    ids = [value for name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {
        v.removeprefix("#") for n, v in seen.attributes if n in ("href", "aria-labelledby") and v and v[:5] != "data:"
    }
    assert targets <= set(ids)
    assert [tag for tag, _ in seen.elements].count("image") >= 1


def test_an_empty_mask_shows_a_control_slice() -> None:
    html = case_page(view(marked=[]))
    for region in ("basal ganglia (BG)", "centrum semiovale (CSO)"):
        (figure,) = figures(html, region)
        assert "no PVS of this region here" in figure
        assert "edging" not in figure
    assert html.count("A slice without any is shown as a control.") == 2
    assert "projection of the mask, which is empty" in html


def test_what_lies_outside_the_regions_is_shown_too() -> None:
    html = case_page(view(regions={"BG": head()[1]}))
    assert len(figures(html, "outside the regions")) == 1
    assert "2 PVS of the whole image in none of the regions." in html


def test_a_voxel_belongs_to_the_region_named_first() -> None:
    html = case_page(view(regions={"BG": head()[1], "CSO": head()[0]}))
    assert len(figures(html, "basal ganglia (BG)")) == 1
    assert "1 PVS of this region here" in figures(html, "basal ganglia (BG)")[0]
    assert "2 PVS of this region here" in figures(html, "centrum semiovale (CSO)")[0]


def test_sequences_can_be_changed_and_one_cannot(usual: str) -> None:
    assert re.findall(r'type="radio"[^>]*> (\w+)', usual) == ["T2w", "T1w"]
    assert 'type="radio"' not in case_page(view(sequences=("FLAIR",)))
    empty = view()
    empty.images["T1w"][:] = 0
    assert 'type="radio"' not in case_page(empty)


def test_large_pictures_are_fewer_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_PIXELS", 4000)
    html = case_page(view())
    assert "To keep this file small, only T2w is shown, and" in html
    assert html.count("<image") == html.count("<figure>") - 3


def test_views_that_do_not_fit_are_refused() -> None:
    usual = view()
    with pytest.raises(ValueError, match="BG: expected the shape of the mask"):
        replace(usual, regions={"BG": np.ones((2, 2, 2), bool)})
    with pytest.raises(ValueError, match="expected images of T1w"):
        replace(usual, images={"PD": usual.images["T1w"]})
    with pytest.raises(ValueError, match="a value other than 0"):
        replace(usual, images={"T1w": usual.images["T1w"] * 0})


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_add_no_element_and_no_attribute(name: str) -> None:
    inside, box = head()

    def made_of(text: str) -> str:
        facts = {**FACTS, "warnings": [text], "prompt": text, "version": text, "reference": text, "network": text}
        regions = {"BG": box, f"r{text}": inside}
        return case_page(view(name=text, facts={**facts, "sequences": [text]}, warnings=[f"{text}2"], regions=regions))

    plain, hostile = Seen(made_of("x")), Seen(made_of(name))
    assert hostile.elements == plain.elements
    assert hostile.comments == []
    assert hostile.open == []
    shown = "\n".join(hostile.text)
    assert (name if name.isprintable() else r"right\u202eleft\u2066 \x00\x1b[31m\nnext\udc80") in shown


def check_policy(html: str, more: str) -> None:
    policy = next(
        value for name, value in Seen(html).attributes if name == "content" and value and "default-src" in value
    )
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        text = between(html, f"<{tag}>", f"</{tag}>")
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert ("img-src data:" in policy) == (more == "data:")


def test_nothing_is_fetched_and_nothing_runs_but_the_own_script(usual: str) -> None:
    assert "://" not in usual and "@import" not in usual
    assert set(re.findall(r"url\(([^)]*)\)", usual)) <= {"#hatch"} | {
        f"#{key}" for key in re.findall(r'clipPath id="([^"]+)"', usual)
    }
    for name, value in Seen(usual).attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "style", "xlink:href"), name
        if name == "href":
            assert value is not None and value.startswith(("#", "data:image/png;base64,"))
    check_policy(usual, "data:")


def test_accessible(usual: str) -> None:
    for html in (usual, index_page([entry_of(case_json())])):
        seen = Seen(html)
        tags = [tag for tag, _ in seen.elements]
        for landmark in ("header", "nav", "main", "footer", "h1"):
            assert tags.count(landmark) == 1
        assert ("lang", "en") in seen.attributes
        assert tags.count("caption") == tags.count("table")
        assert all("scope" in names for tag, names in seen.elements if tag == "th")
        assert all({"aria-label", "aria-hidden"} & set(names) for tag, names in seen.elements if tag == "svg")
        assert html.count("<input") == len(re.findall(r"<label><input[^>]*>[^<]*\S|<label><input[^>]*> <svg", html))


def luminance(colour: str) -> float:
    linear = [(int(colour[k : k + 2], 16) / 255) for k in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_of_text_and_signs(scheme: int, usual: str) -> None:
    style = between(usual, "<style>", "</style>")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    for text in ("ink", "soft", "link", "bad", "warn"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for sign in range(6):
        assert contrast(colours[f"c{sign}"], colours["paper"]) >= 3, sign


def test_the_outline_differs_from_every_grey_in_luminance(usual: str) -> None:
    line, edge = "#ffd23f", "#000000"
    assert f".line {{ stroke: {line};" in usual and f".near {{ stroke: {edge};" in usual
    for grey in range(0, 256, 5):
        colour = f"#{grey:02x}{grey:02x}{grey:02x}"
        assert max(contrast(line, colour), contrast(edge, colour)) >= 3


def test_the_same_view_gives_the_same_bytes_and_no_part_is_left(tmp_path: Path, usual: str) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    write_case_page(target, view())
    assert target.read_bytes() == usual.encode()
    assert list(tmp_path.iterdir()) == [target]


def test_a_head_of_a_millimetre_is_light_and_quick(tmp_path: Path) -> None:
    shape = (180, 220, 180)
    inside, box = head(shape)
    rng = np.random.default_rng(2)
    mask = np.zeros(shape, bool)
    for x, y, z in rng.integers((30, 30, 30), (150, 190, 150), (400, 3)):
        mask[x, y, z : z + 5] = True
    mask &= inside
    noise = rng.normal(0, 1, shape).astype(np.float32) * inside  # nothing is harder to pack
    made = CaseView(
        "sub-01",
        {"T1w": noise, "T2w": noise + mask, "FLAIR": -noise},
        mask,
        {"CSO": inside & ~box, "BG": box & inside},
        (1.0, 1.0, 1.0),
        measure(mask, {"CSO": inside & ~box, "BG": box & inside}, np.eye(4)),
        FACTS,
    )
    start = time.perf_counter()
    write_case_page(tmp_path / "page.html", made)
    assert time.perf_counter() - start < 3
    assert (tmp_path / "page.html").stat().st_size < 3_000_000


# --- the index ------------------------------------------------------------------------------------------


def case_json(case: str = "sub-01", factor: float = 1.0, **given: Any) -> dict[str, Any]:
    """As it lies beside the page of a case."""
    burden = view().burden
    assert burden is not None
    content = burden.as_json()
    for row in content["regions"]:
        row["pvs_volume_mm3"] *= factor
    return json.loads(
        json.dumps({"case": case, "facts": FACTS, "burden": content, "page": f"{case}.html", "problem": None} | given)
    )


def test_an_entry_holds_what_the_json_says() -> None:
    entry = entry_of(case_json())
    assert entry.counts == {"CSO": 2, "BG": 1, "all": 3}
    assert entry.volumes_mm3 == {"CSO": 2.0, "BG": 4.0, "all": 6.0}
    assert entry.scores["Potter", "BG"] == 1
    assert (entry.network, entry.sequences, entry.page) == ("3D", ("T1w", "T2w"), "sub-01.html")
    assert entry.warnings == tuple(FACTS["warnings"])  # type: ignore[arg-type]
    failed = entry_of({"case": "b", "facts": None, "burden": None, "page": None, "problem": "no such file"})
    assert failed == Entry("b", problem="no such file")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"case": "a", "facts": 3},
        {"case": "a", "burden": {"regions": [{}]}},
        {"case": "a", "burden": {"regions": [{"region": "BG", "hemisphere": "both", "pvs_count": "x"}]}},
        {"case": "a", "burden": {"estimated_scores": 3}},
        case_json(factor=float("nan")),
        [],
    ],
    ids=range(7),
)
def test_other_json_is_refused_with_a_sentence(wrong: Mapping[str, Any]) -> None:
    with pytest.raises(PVSError, match="expected the JSON of a case"):
        entry_of(wrong)


def test_the_index_tells_of_every_case() -> None:
    entries = [entry_of(case_json(f"sub-{n}", 1 + n / 10)) for n in (10, 2, 1)]
    html = index_page([*entries, Entry("gone", problem="expected an image, found none")])
    words = Seen(html).words
    assert re.findall(r'<th scope="row">.*?<bdi>([^<]+)</bdi>', html) == ["gone", "sub-1", "sub-2", "sub-10"]
    assert "Perivascular spaces of 4 cases" in words and "1 failed" in words and "3 with warnings" in words
    assert words.count("expected an image, found none") == 2
    assert '<a href="./sub-10.html"><bdi>sub-10</bdi></a>' in html
    assert "Estimated Potter score, BG" in words
    assert "sub-1 T1w, T2w 3D 2 2.2 1 4.4 3 6.6" in words


def test_outliers_are_named_and_linked() -> None:
    entries = [entry_of(case_json(f"sub-{n:02d}", 1 + n / 50)) for n in range(20)]
    html = index_page([*entries, entry_of(case_json("wild", 40))])
    figure = between(html, "<figure>", "</figure>")
    assert 'Outside the whiskers:\n<a href="./wild.html"><bdi>wild</bdi></a> (80.0 mm³)' in figure
    assert figure.count('class="d h"') == 1
    assert "1 value beyond the axis, up to 80.0: drawn at its end." in figure
    assert "Outside the whiskers:" not in index_page(entries)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_few_cases_have_no_box(count: int) -> None:
    html = index_page([entry_of(case_json(f"sub-{n}")) for n in range(count)])
    assert ('class="box"' in html) == (count >= 5)
    assert Seen(html).open == []


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_entries_add_no_element_and_no_attribute(name: str) -> None:
    def made_of(text: str) -> Seen:
        facts = {"sequences": [text], "network": text, "warnings": [text]}
        content = case_json(text, facts=facts, page=text)
        content["burden"]["regions"].append({**content["burden"]["regions"][0], "region": f"r{text}"})
        content["burden"]["estimated_scores"].append({"scale": text, "region": text, "estimated_score": 1})
        return Seen(index_page([entry_of(content), Entry(f"{text} failed", page=text, problem=text)]))

    plain, hostile = made_of("x"), made_of(name)
    assert hostile.elements == plain.elements
    assert hostile.comments == [] and hostile.open == []
    for attribute, value in hostile.attributes:
        assert not attribute.startswith("on") and attribute not in ("src", "style")
        if attribute == "href":
            assert value is not None and re.fullmatch(r"#\w+|\./[\w.~/%-]*", value)


@pytest.mark.parametrize(
    "path", ["/etc/x.html", "//host/x.html", "https://host/x", "\\\\host\\x", "javascript:x", "\ud800"]
)
def test_links_lead_to_files_below(path: str) -> None:
    assert re.fullmatch(r"\./[^/:\\][^:\\]*", module._href(path))


def test_the_index_fetches_nothing() -> None:
    html = index_page([entry_of(case_json())])
    assert "://" not in html and "@import" not in html and "<image" not in html
    check_policy(html, "")


def test_five_thousand_cases_stay_light(tmp_path: Path) -> None:
    content = case_json()
    entries = []
    factors = np.random.default_rng(3).lognormal(0, 0.6, 5000)
    one = entry_of(content)
    for n, factor in enumerate(factors):
        volumes = {region: value * factor for region, value in one.volumes_mm3.items()}
        entries.append(replace(one, case=f"sub-{n:04d}", page=f"pages/sub-{n:04d}.html", volumes_mm3=volumes))
    start = time.perf_counter()
    write_index(tmp_path / "index.html", entries)
    assert time.perf_counter() - start < 5
    html = (tmp_path / "index.html").read_text()
    assert len(html) < 4_000_000
    assert between(html, '<table class="all', "</table>").count("<tr") == 5001
    assert html.count('class="d') < 3000
    write_index(tmp_path / "index.html", reversed(entries))
    assert (tmp_path / "index.html").read_text() == html, "the order of entries does not matter"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]

"""The report of a case: complete, true to the voxel, harmless with any input."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pages import (
    HOSTILE,
    METADATA,
    Bool,
    Seen,
    between,
    check_accessible,
    check_policy,
    check_scores_are_estimated,
    contrast,
    head,
    view,
)
from PIL import Image

from pvs_model.burden.measure import measure
from pvs_model.reports import case_report as module
from pvs_model.reports import slices
from pvs_model.reports.case_report import CaseView, case_report, write_case_report
from pvs_model.reports.html import NO_VALUE

BY = "\N{MULTIPLICATION SIGN}"


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
    return case_report(view())


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
    assert slices.path(drawn(mask)) == path


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_outlines_enclose_the_mask_and_nothing_else(share: float) -> None:
    mask = np.random.default_rng(1).random((23, 31)) < share
    filled = np.zeros(mask.shape, bool)
    for corners in slices.outlines(mask):
        for (x, y), (to_x, to_y) in zip(corners, corners[1:] + corners[:1], strict=True):
            assert (x == to_x) != (y == to_y), "each step is along one axis, and each corner a turn"
            if x == to_x:
                filled[min(y, to_y) : max(y, to_y), x:] ^= True
    np.testing.assert_array_equal(filled, mask)


def test_the_outline_on_the_page_is_that_of_the_mask() -> None:
    figure = figures(case_report(view(marked=[(20, slice(24, 28), 18)])), "basal ganglia (BG)")[0]
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
    html = case_report(made)
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


@pytest.mark.parametrize("plane", [slices.AXIAL, slices.CORONAL, slices.SAGITTAL])
def test_planes_lie_as_a_radiologist_hangs_them(plane: slices.Plane) -> None:
    volume = np.zeros((5, 6, 7), bool)
    volume[4, 5, 6] = True  # right, front, top
    seen = plane.projected(volume)
    assert np.argwhere(seen).tolist() == [[0, 0]]
    np.testing.assert_array_equal(seen, plane.slice_of(volume, volume.shape[plane.across] - 1))
    assert plane.edges == ("AP" if plane is slices.SAGITTAL else "RL")


def test_voxels_keep_their_shape() -> None:
    html = case_report(view((48, 60, 12), (0.45, 0.45, 6.0), metadata={**METADATA, "network": "2d"}))
    for figure in figures(html, "basal ganglia (BG)"):
        assert 'transform="scale(0.45 0.45)"' in figure
        width, height = map(float, between(figure, 'viewBox="0 0 ', '"').split())
        assert image_of(figure).shape == (round(height / 0.45), round(width / 0.45))
    assert 'transform="scale(0.45 6)"' in html, "the coronal projection is not squashed"
    assert f"0.45 {BY} 0.45 {BY} 6 mm" in html
    assert "2D, the mean of 2 networks: the largest voxel spacing, 6 mm, is not below 2.5 mm." in html
    assert "axial slice 6 (of 0 to 11)" in html and "36.0 mm above the lowest" in html


def test_slices_lie_in_the_plane_of_acquisition() -> None:
    assert slices.plane_of((1.0, 1.0, 1.1)) is slices.AXIAL
    assert slices.plane_of((0.5, 3.0, 0.5)) is slices.CORONAL
    html = case_report(view((14, 48, 48), (4.0, 1.0, 1.0)))
    assert "sagittal slice" in html and "The patient\N{RIGHT SINGLE QUOTATION MARK}s front (A) is on the left" in html


def test_positions_in_the_scanner_where_they_are_known() -> None:
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 3] = -20
    assert "18.0 mm above the lowest; z = \N{MINUS SIGN}2.0 mm in the scanner" in case_report(view(affine=affine))
    assert "in the scanner" not in case_report(view())


def test_greys_are_black_outside_and_within_the_window() -> None:
    image = np.array([[0.0, -3.0, 5.0, 1.0]], np.float32)
    assert slices.grey(image, (-1.0, 3.0)).tolist() == [[0, 0, 255, 128]]
    low, high = slices.window(np.zeros((3, 3, 3), np.float32), "T1w")
    assert low < high


def test_the_slices_with_most_pvs_lie_apart() -> None:
    mask = np.zeros((30, 30, 40), bool)
    for z, count in ((10, 3), (12, 4), (30, 2), (31, 1), (20, 1)):
        mask[2 : 2 + 3 * count : 3, 5, z] = True
    region = np.ones(mask.shape, bool)
    chosen = slices.choose_slices(slices.clusters(mask), region, slices.AXIAL, (1.0, 1.0, 1.0), 3)
    assert [(one.index, one.pvs) for one in chosen] == [(12, 4), (20, 1), (30, 2)]
    (control,) = slices.choose_slices(slices.clusters(mask), region & (np.arange(40) == 5), slices.AXIAL, (1, 1, 1))
    assert (control.index, control.pvs) == (5, 0)
    assert slices.choose_slices(slices.clusters(mask), ~region, slices.AXIAL, (1.0, 1.0, 1.0)) == []


# --- the page of a case ---------------------------------------------------------------------------------


def test_another_spacing_of_the_network_is_told() -> None:
    for seen, warned in (((1.0, 1.0, 1.0), False), ((1.0, 1.0, 1.6), True), ("nonsense", False)):
        page = case_report(view(metadata={"network_spacing_mm": seen}))
        assert ("its probabilities were resampled back" in page) == warned


@pytest.mark.parametrize("low", [None, "?", 0.6])
def test_one_threshold_alone(low: object) -> None:
    page = case_report(view(metadata={"threshold": 0.6, "low_threshold": low}))
    assert "Voxels are marked at a probability of 0.6 or more." in page


def test_what_was_assumed_is_told(usual: str) -> None:
    words = Seen(usual).words
    for fact in (
        "Perivascular spaces: sub-01", "Not for clinical use", "T1w, T2w. Not given, or not usable: FLAIR.",
        "T2w: the mask lies on its grid. T1w was resampled onto it.",
        f"40 {BY} 48 {BY} 36 voxels of 1 {BY} 1 {BY} 1 mm",
        "3D, the mean of 2 networks: the largest voxel spacing, 1 mm, is below 2.5 mm.",
        "Voxels are marked at a probability of 0.3 or more, in clusters that reach 0.6.",
        "“PVS on T1w and T2w, 1 mm slices”",
        "pvs_model 9.8.7, in 42 s", "centrum semiovale (CSO), basal ganglia (BG)",
    ):  # fmt: skip
        assert fact in words, fact


def test_every_warning_is_shown_once() -> None:
    made = view(warnings=["a of the caller", METADATA["warnings"][0]])  # type: ignore[index]
    assert made.burden is not None
    made = replace(made, burden=replace(made.burden, warnings=("one of the burden",)))
    notice = between(case_report(made), 'class="notice warning"', "</section>")
    assert "Warnings (3)" in notice
    for sentence in ("T1w covers only 60% of the field of view of T2w", "a of the caller", "one of the burden"):
        assert notice.count(f"<li><bdi>{sentence}</bdi></li>") == 1
    assert case_report(view(metadata={}, burden=None)).count("No warnings.") == 1


def test_the_table_holds_the_burden(usual: str) -> None:
    table = Seen(between(usual, '<table class="burden">', "</table>")).words
    # Four voxels of 1 mm3 on one PVS in the box; two single ones outside it, on the left.
    assert re.search(r"basal ganglia \(BG\) both sides 1 4\.0 ", table)
    assert re.search(r"centrum semiovale \(CSO\) left 2 2\.0 ", table)
    assert re.search(rf"whole image both sides 3 6\.0 {NO_VALUE} {NO_VALUE} {NO_VALUE} ", table)
    scores = Seen(between(usual, '<table class="scores">', "</table>")).words
    assert "basal ganglia (BG) Potter, 0 to 4 1 1 PVS on the right, on axial slice" in scores
    assert "Estimated score" in scores and "No rater has seen the scan" in scores
    assert "ating" not in Seen(usual).words.replace("No rater", "")


def test_scores_are_always_called_estimated(usual: str) -> None:
    check_scores_are_estimated(usual)


@pytest.mark.parametrize(
    "given",
    [
        {"regions": {}},
        {"marked": []},
        {"marked": [], "regions": {}},
        {"regions": {"BG": head()[1]}},
        {"sequences": ("FLAIR",)},
        {"burden": None, "metadata": {}},
        {"regions": {"BG": head()[1], "HIP": head()[1] & False, "L-own <b>": head()[0]}},
        {"metadata": {"warnings": None, "sequences": None, "seconds": "?", "threshold": None, "network": "9d"}},
    ],
    ids=[
        "no region",
        "empty",
        "empty, no region",
        "one region",
        "one sequence",
        "bare",
        "an empty region",
        "odd metadata",
    ],
)
def test_whatever_is_missing_the_page_stands(given: dict[str, Any]) -> None:
    html = case_report(view(**given))
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
    html = case_report(view(marked=[]))
    for region in ("basal ganglia (BG)", "centrum semiovale (CSO)"):
        (figure,) = figures(html, region)
        assert "no PVS of this region here" in figure
        assert "edging" not in figure
    assert html.count("A slice without any is shown as a control.") == 2
    assert "projection of the mask, which is empty" in html


def test_what_lies_outside_the_regions_is_shown_too() -> None:
    html = case_report(view(regions={"BG": head()[1]}))
    assert len(figures(html, "outside the regions")) == 1
    assert "2 PVS of the whole image in none of the regions." in html


def test_a_voxel_belongs_to_the_region_named_first() -> None:
    html = case_report(view(regions={"BG": head()[1], "CSO": head()[0]}))
    assert len(figures(html, "basal ganglia (BG)")) == 1
    assert "1 PVS of this region here" in figures(html, "basal ganglia (BG)")[0]
    assert "2 PVS of this region here" in figures(html, "centrum semiovale (CSO)")[0]


def test_sequences_can_be_changed_and_one_cannot(usual: str) -> None:
    assert re.findall(r'type="radio"[^>]*> (\w+)', usual) == ["T2w", "T1w"]
    assert 'type="radio"' not in case_report(view(sequences=("FLAIR",)))
    empty = view()
    empty.images["T1w"][:] = 0
    assert 'type="radio"' not in case_report(empty)


def test_large_pictures_are_fewer_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PIXELS", 4000)
    html = case_report(view())
    assert "To keep this file small, only T2w is shown, and" in html
    assert html.count("<image") == html.count("<figure>") - 3 - 3, "three projections and three panes of the viewer"


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
        metadata = {**METADATA, "warnings": [text], "prompt": text, "version": text, "reference": text, "network": text}
        regions = {"BG": box, f"r{text}": inside}
        return case_report(
            view(name=text, metadata={**metadata, "sequences": [text]}, warnings=[f"{text}2"], regions=regions)
        )

    plain, hostile = Seen(made_of("x")), Seen(made_of(name))
    assert hostile.elements == plain.elements
    assert hostile.comments == []
    assert hostile.open == []
    shown = "\n".join(hostile.text)
    assert (name if name.isprintable() else r"right\u202eleft\u2066 \x00\x1b[31m\nnext\udc80") in shown


def test_nothing_is_fetched_and_nothing_runs_but_the_own_script(usual: str) -> None:
    assert "://" not in usual and "@import" not in usual
    assert set(re.findall(r"url\(([^)]*)\)", usual)) <= {"#hatch"} | {
        f"#{key}" for key in re.findall(r'clipPath id="([^"]+)"', usual)
    }
    for name, value in Seen(usual).attributes:
        assert not name.startswith("on") and name not in ("src", "srcset", "action", "style", "xlink:href"), name
        if name == "href":
            assert value is not None and value.startswith(("#", "data:image/png;base64,"))
    check_policy(usual)


def test_accessible(usual: str) -> None:
    check_accessible(usual)
    assert usual.count("<input") == len(re.findall(r"<label><input[^>]*>[^<]*\S|<label><input[^>]*> <svg", usual))


@pytest.mark.parametrize("scheme", [0, 1])
def test_contrast_of_text_and_signs(scheme: int, usual: str) -> None:
    style = between(usual, "<style>", "</style>")
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", style, re.DOTALL)[scheme]))
    for text in ("ink", "soft", "link", "bad", "warn"):
        for ground in ("paper", "panel"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for kind in ("bad", "warn"):
        for text in ("ink", "soft", kind):
            assert contrast(colours[text], colours[f"{kind}-paper"]) >= 4.5, (text, kind)
    # A flagged precision may be in the row of an invalid case.
    assert contrast(colours["warn"], colours["bad-paper"]) >= 4.5
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
    write_case_report(target, view())
    assert target.read_bytes() == usual.encode()
    assert list(tmp_path.iterdir()) == [target]


def test_a_head_of_a_millimetre_is_light(tmp_path: Path) -> None:
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
        METADATA,
    )
    write_case_report(tmp_path / "page.html", replace(made, embed_volume=False))
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
    write_case_report(tmp_path / "page.html", made)
    assert (tmp_path / "page.html").stat().st_size < 16_000_000

"""The volume in a page: every voxel at its place, every PVS where its row says, and not more than fits."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pages import Seen, between, check_policy, view

from pvs_model.reports import viewer as module
from pvs_model.reports.case_report import CaseView, case_report
from pvs_model.reports.slices import clusters, grey, head_of, window
from pvs_model.reports.viewer import pvs_rows, viewer_of


def embedded(html: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(between(html, '<script type="application/json" id="volume">', "</script>"))
    return data


def unpacked(text: str, shape: list[int]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8).reshape(shape, order="F")


def places(html: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, value.split())) for name, value in Seen(html).attributes if name == "data-place" and value]


def test_the_page_holds_the_volume_cropped_to_the_head() -> None:
    made = view(shape=(44, 50, 36))
    html = case_report(made)
    data = embedded(html)
    head = head_of(made.images)
    box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in np.nonzero(head))
    assert data["sequences"] == ["T2w", "T1w"] and data["corner"] == [part.start for part in box]
    for name, image in zip(data["sequences"], data["images"], strict=True):
        expected = grey(made.images[name], window(made.images[name], name))[box]
        np.testing.assert_array_equal(unpacked(image, data["shape"]), expected)
    np.testing.assert_array_equal(unpacked(data["mask"], data["shape"]), made.mask[box])
    check_policy(html)


def test_every_row_of_the_list_leads_into_its_own_pvs() -> None:
    made = view()
    html = case_report(made)
    data, rows = embedded(html), places(html)
    labels = clusters(made.mask)
    seen = {int(labels[tuple(np.add(place, data["corner"]))]) for place in rows}
    assert seen == {1, 2, 3} and len(rows) == 3
    words = Seen(between(html, '<table class="sortable pvs">', "</table>")).words
    assert "BG right 4.0 \N{EN DASH} 4.0 " in words and "CSO left 1.0" in words


def test_a_volume_that_is_too_large_is_reduced_and_the_page_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    made = view(shape=(40, 48, 36), spacing_mm=(0.5, 0.5, 1.0))
    head = head_of(made.images)
    voxels = int(head.sum())
    monkeypatch.setattr(module, "MAX_VOXELS", voxels)
    one = viewer_of(made.images, made.mask, head, made.spacing_mm, ["T2w", "T1w"])
    assert one.sequences == ("T2w",) and one.block == (1, 1, 1) and one.note.endswith("only T2w is embedded.")
    monkeypatch.setattr(module, "MAX_VOXELS", voxels // 4)
    small = viewer_of(made.images, made.mask, head, made.spacing_mm, ["T2w"])
    assert small.block == (2, 2, 1) and small.note == "Voxels are averaged to 1 x 1 x 1 mm here."
    data = json.loads(small.data)
    assert data["spacing"] == [1.0, 1.0, 1.0]
    mask = unpacked(data["mask"], data["shape"])
    for row in pvs_rows(made.burden, clusters(made.mask), small):
        assert mask[tuple(map(int, row["place"].split()))] == 1


def test_without_the_volume_the_page_is_as_before() -> None:
    made = view()
    html = case_report(replace(made, embed_volume=False))
    assert "viewer" not in between(html, "<main>", "</main>") and 'id="volume"' not in html
    assert len(html) < len(case_report(made))
    check_policy(html)


def test_without_a_burden_there_is_no_list() -> None:
    html = case_report(view(burden=None))
    assert places(html) == [] and embedded(html)["sequences"] == ["T2w", "T1w"]


def test_a_mask_outside_the_images_is_in_the_volume() -> None:
    made = view(marked=[(0, 0, 0)])
    assert isinstance(made, CaseView)
    html = case_report(made)
    data = embedded(html)
    assert data["corner"] == [0, 0, 0] and unpacked(data["mask"], data["shape"])[0, 0, 0] == 1
    assert places(html) == [(0, 0, 0)]

"""The index of a cohort: every case, outliers by name, harmless with any input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import (
    HOSTILE,
    METADATA,
    Seen,
    between,
    check_accessible,
    check_policy,
    check_scores_are_estimated,
    view,
)

from pvs_model.errors import PVSError
from pvs_model.reports.cohort_index import CaseSummary, index_page, relative_link, summary_of, write_index


def case_json(case: str = "sub-01", factor: float = 1.0, **given: Any) -> dict[str, Any]:
    """As it lies beside the page of a case."""
    burden = view().burden
    assert burden is not None
    content = burden.as_json()
    for row in content["regions"]:
        row["pvs_volume_mm3"] *= factor
    return json.loads(
        json.dumps(
            {"case": case, "metadata": METADATA, "burden": content, "page": f"{case}.html", "problem": None} | given
        )
    )


def test_an_entry_holds_what_the_json_says() -> None:
    entry = summary_of(case_json())
    assert entry.counts == {"CSO": 2, "BG": 1, "all": 3}
    assert entry.volumes_mm3 == {"CSO": 2.0, "BG": 4.0, "all": 6.0}
    assert entry.scores["Potter", "BG"] == 1
    assert (entry.network, entry.sequences, entry.page) == ("3D", ("T1w", "T2w"), "sub-01.html")
    assert entry.warnings == tuple(METADATA["warnings"])  # type: ignore[arg-type]
    failed = summary_of({"case": "b", "metadata": None, "burden": None, "page": None, "problem": "no such file"})
    assert failed == CaseSummary("b", problem="no such file")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"case": "a", "metadata": 3},
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
        summary_of(wrong)


def test_the_index_tells_of_every_case() -> None:
    entries = [summary_of(case_json(f"sub-{n}", 1 + n / 10)) for n in (10, 2, 1)]
    html = index_page([*entries, CaseSummary("gone", problem="expected an image, got none")])
    words = Seen(html).words
    assert re.findall(r'<th scope="row">.*?<bdi>([^<]+)</bdi>', html) == ["gone", "sub-1", "sub-2", "sub-10"]
    assert "Perivascular spaces of 4 cases" in words and "1 failed" in words and "3 with warnings" in words
    assert words.count("expected an image, got none") == 2
    assert '<a href="./sub-10.html"><bdi>sub-10</bdi></a>' in html
    assert "Estimated Potter score, BG" in words
    assert "sub-1 T1w, T2w 3D 2 2.2 1 4.4 3 6.6" in words


def test_outliers_are_named_and_linked() -> None:
    entries = [summary_of(case_json(f"sub-{n:02d}", 1 + n / 50)) for n in range(20)]
    html = index_page([*entries, summary_of(case_json("wild", 40))])
    figure = between(html, "<figure>", "</figure>")
    assert 'Outside the whiskers:\n<a href="./wild.html"><bdi>wild</bdi></a> (80.0 mm³)' in figure
    assert figure.count('fill="var(--paper)"') == 1
    assert "1 value beyond the axis, up to 80.0: drawn at its end." in figure
    assert "Outside the whiskers:" not in index_page(entries)


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_few_cases_have_no_box(count: int) -> None:
    html = index_page([summary_of(case_json(f"sub-{n}")) for n in range(count)])
    assert ('class="box"' in html) == (count >= 5)
    assert Seen(html).open == []


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_entries_add_no_element_and_no_attribute(name: str) -> None:
    def made_of(text: str) -> Seen:
        metadata = {"sequences": [text], "network": text, "warnings": [text]}
        content = case_json(text, metadata=metadata, page=text)
        content["burden"]["regions"].append({**content["burden"]["regions"][0], "region": f"r{text}"})
        content["burden"]["estimated_scores"].append({"scale": text, "region": text, "estimated_score": 1})
        return Seen(index_page([summary_of(content), CaseSummary(f"{text} failed", page=text, problem=text)]))

    plain, hostile = made_of("x"), made_of(name)
    assert hostile.elements == plain.elements
    assert hostile.comments == [] and hostile.open == []
    for attribute, value in hostile.attributes:
        assert not attribute.startswith("on") and attribute not in ("src", "style")
        if attribute == "href":
            assert value is not None and re.fullmatch(r"#[\w-]+|\./[\w.~/%-]*", value)


@pytest.mark.parametrize(
    "path", ["/etc/x.html", "//host/x.html", "https://host/x", "\\\\host\\x", "javascript:x", "\ud800"]
)
def test_links_lead_to_files_below(path: str) -> None:
    assert re.fullmatch(r"\./[^/:\\][^:\\]*", relative_link(path))


def test_the_index_fetches_nothing() -> None:
    html = index_page([summary_of(case_json())])
    assert "://" not in html and "@import" not in html and "<image" not in html
    check_policy(html)
    check_accessible(html)
    check_scores_are_estimated(html)


def test_five_thousand_cases_stay_light(tmp_path: Path) -> None:
    content = case_json()
    entries = []
    factors = np.random.default_rng(3).lognormal(0, 0.6, 5000)
    one = summary_of(content)
    for n, factor in enumerate(factors):
        volumes = {region: value * factor for region, value in one.volumes_mm3.items()}
        entries.append(replace(one, case=f"sub-{n:04d}", page=f"pages/sub-{n:04d}.html", volumes_mm3=volumes))
    write_index(tmp_path / "index.html", entries)
    html = (tmp_path / "index.html").read_text()
    assert len(html) < 4_000_000
    assert between(html, '<table class="all', "</table>").count("<tr") == 5001
    assert html.count("<use ") < 3000
    write_index(tmp_path / "index.html", reversed(entries))
    assert (tmp_path / "index.html").read_text() == html, "the order of entries does not matter"
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]

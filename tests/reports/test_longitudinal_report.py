"""The page of several visits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pages import HOSTILE, Seen, check_accessible, check_policy

from pvs_model.burden.change import Visit, change_between
from pvs_model.burden.measure import measure
from pvs_model.reports.longitudinal_report import warnings_of, write_longitudinal_report


def visit(name: str, x: int, spacing_mm: float = 1.0) -> Visit:
    mask = np.zeros((20, 10, 10), bool)
    mask[x, 3:7, 5] = True
    affine = np.diag([spacing_mm, 1.0, 1.0, 1.0])
    return Visit(name, mask, affine, measure(mask, {"WM": ~mask | mask}, affine), np.eye(4))


def test_the_page_shows_the_change(tmp_path: Path) -> None:
    first, second = visit("ses-1", 5), visit("ses-2", 15)
    write_longitudinal_report(tmp_path / "page.html", [first, second], [change_between(first, second)], {"ses-2": 0.4})
    html = (tmp_path / "page.html").read_text()
    check_policy(html)
    check_accessible(html)
    words = Seen(html).words
    assert "cerebral white matter (WM) 1 1 0 1 1 4.0 4.0 0.0 0.0" in words
    assert "gone ses-1 1 WM" in words and "new ses-2 1 WM" in words
    assert "Warnings" not in words and "./reports/cases/ses-1.html" in html


def test_names_are_untrusted(tmp_path: Path) -> None:
    first, second = visit(HOSTILE[0], 5), visit(HOSTILE[3], 5)
    write_longitudinal_report(tmp_path / "page.html", [first, second], [change_between(first, second)], {})
    html = (tmp_path / "page.html").read_text()
    check_policy(html)
    assert HOSTILE[0] not in html and HOSTILE[3] not in html and "No PVS is new or gone." in html


def test_what_makes_visits_hard_to_compare_is_said() -> None:
    assert warnings_of([visit("a", 5), visit("b", 5)], {"b": 1.9}) == []
    voxels, registration = warnings_of([visit("a", 5), visit("b", 5, 1.2)], {"b": 2.5})
    assert "The voxels of a and b differ (1 x 1 x 1 and 1.2 x 1 x 1 mm)" in voxels
    assert "uncertain by 2.5 mm" in registration
    (thick,) = warnings_of([visit("a", 5, 3.0), visit("b", 5, 3.0)], {})
    assert thick.startswith("Slices of 3 mm: counts vary")

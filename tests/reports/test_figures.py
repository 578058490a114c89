"""Plots as SVG: the style sheet's colours, untrusted text as it is, values at their places."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.reports.figures import BoxRow, Dot, Scale, box_plots, distribution, scatter


def drawn(values: list[float], scale: Scale, title: str = "case") -> str:
    dots = [Dot(value, title, hollow=k == 0) for k, value in enumerate(values)]
    return str(distribution("f0", title, scale, BoxRow("", 0, values, dots), 3.0))


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e9))
def test_scales_reach_their_top_in_a_few_round_steps(top: float) -> None:
    scale = Scale.up_to(top)
    assert scale.ticks[0] == 0 and scale.top >= top * (1 - 1e-9) and 2 <= len(scale.ticks) <= 7
    assert scale.beyond([top, 2 * scale.top]) == 1


def test_a_scale_of_nothing_has_ticks() -> None:
    assert Scale.up_to(0.0).top == 1.0


def test_colours_are_the_style_sheets_and_nothing_needs_a_style_attribute() -> None:
    svg = drawn([1, 2, 3, 4, 5], Scale.up_to(5))
    assert {"var(--ink)", "var(--soft)", "var(--line)", "var(--paper)", "var(--c0)"} <= set(
        re.findall(r'"(var[^"]*)"', svg)
    )
    assert "#0" not in svg and "style=" not in svg and "xmlns" not in svg and "font" not in svg


@pytest.mark.parametrize("text", ["$x^2$ <b> & \"'", "right\u202eleft\x00"])
def test_untrusted_text_is_no_mathematics_and_no_markup(text: str) -> None:
    svg = drawn([1.0], Scale.up_to(1), text)
    assert "<b>" not in svg and "\x00" not in svg and "\u202e" not in svg
    rows = [BoxRow(text.replace("\x00", "").replace("\u202e", ""), 0, [0.5], [Dot(0.5, text)])]
    assert "<b>" not in box_plots("b", text, Scale.up_to(1), rows)


def test_values_beyond_the_scale_are_drawn_at_its_end() -> None:
    at = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)" y=', drawn([0.0, 5.0, 500.0], Scale.up_to(5)))]
    assert sorted(at) == [14.0, 446.0, 446.0]


def test_a_scatter_plot_has_equal_axes() -> None:
    svg = scatter("s", "two cases", 1, [Dot(0.0, "a", y=10.0), Dot(10.0, "b", y=0.0)], ("x", "y"))
    assert sorted(re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)) == [("326", "276"), ("62", "12")]
    assert str(svg) == str(scatter("s", "two cases", 1, [Dot(0.0, "a", y=10.0), Dot(10.0, "b", y=0.0)], ("x", "y")))

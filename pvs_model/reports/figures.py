"""Plots of the reports: drawn by matplotlib, embedded as SVG in the colours of the page's style sheet.

Figures are drawn in placeholder colours, which become ``var(--...)`` in the page, so that they follow its light, dark
and print schemes. matplotlib's style attributes become presentation attributes, which the page's content security
policy allows. The same data give the same text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pvs_model.errors import escape_control_characters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Placeholder colours and the style sheet's; those of regions follow their styles.
INK, SOFT, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"
REGION_COLOURS = tuple(f"#01020{style}" for style in range(6))
_CSS: Mapping[str, str] = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    LINE: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{style})" for style, colour in enumerate(REGION_COLOURS)},
}
#: Signs of the styles: colour alone does not distinguish regions.
_MARKERS = ("o", "^", "s", "D", "v", "P")
#: With fewer values there is no box and there are no outliers.
BOX_FROM = 5
#: Largest number of intervals along an axis.
_INTERVALS = 5
_TEXT_PX = 11.0


@dataclass(frozen=True)
class Dot:
    """A case in a figure: its value, its words on hovering, whether it is hollow, and its value along y, if any."""

    value: float
    title: str
    hollow: bool = False
    y: float = 0.0


@dataclass(frozen=True)
class BoxRow:
    """A row of a box plot.

    Attributes:
        label: Words beside the row, one or two lines.
        style: Number of the region's colour.
        values: All values; the box shows them.
        dots: Cases drawn, at most as many as there are values.
        part: Whether the row is a part (a site) of the one above.
    """

    label: str
    style: int
    values: Sequence[float]
    dots: Sequence[Dot]
    part: bool = False


@dataclass(frozen=True)
class Scale:
    """Round ticks from 0; values beyond the last one are drawn at it."""

    ticks: tuple[float, ...]

    @classmethod
    def up_to(cls, top: float) -> Scale:
        """Returns a scale of a few round steps that reaches ``top``."""
        from matplotlib.ticker import MaxNLocator

        ticks = MaxNLocator(_INTERVALS, steps=[1, 2, 2.5, 5, 10]).tick_values(0, top if top > 0 else 1.0)
        return cls(tuple(float(tick) for tick in ticks if tick >= 0))

    @property
    def top(self) -> float:
        """The last tick."""
        return self.ticks[-1]

    @property
    def labels(self) -> list[str]:
        """The ticks as text."""
        return [f"{tick:.6g}" for tick in self.ticks]

    def beyond(self, values: Sequence[float]) -> int:
        """Returns the number of values beyond the last tick."""
        return sum(value > self.top * (1 + 1e-9) for value in values)


def distribution(name: str, description: str, scale: Scale, row: BoxRow, whisker: float) -> Markup:
    """Returns the values of one region along one axis: every case a dot, with a box over them.

    Args:
        name: Prefix of the identifiers within the page.
        description: Text for screen readers.
        scale: Axis of the values.
        row: Values and dots.
        whisker: Length of the whiskers at most, in box lengths.
    """
    with _drawing(460, 88, left=14, right=446, bottom=20, top=86) as (figure, axes):
        titles = _box_row(axes, row, 0.0, 20.0, 16.0, scale, whisker, size=4.6)
        _value_axis(axes, scale)
        axes.set_ylim(-34, 34)
    return _inline(figure, name, description, titles)


def box_plots(name: str, description: str, scale: Scale, rows: Sequence[BoxRow]) -> Markup:
    """Returns box plots below each other on one axis, with a dashed line at 1; as ``distribution``."""
    heights = [24.0 if row.part else 40.0 for row in rows]
    total = round(sum(heights)) + 8
    titles: dict[str, list[str]] = {}
    with _drawing(420, total + 22, left=132, right=406, bottom=22, top=total + 22) as (figure, axes):
        _value_axis(axes, scale)
        axes.set_ylim(total, 0)
        if scale.top > 1 + 1e-9:
            axes.axvline(1, color=SOFT, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
        y = 4.0
        for row, height in zip(rows, heights, strict=True):
            half = 6.5 if row.part else 9.0
            y += height / 2
            titles |= _box_row(axes, row, y, half - 2, half, scale, 1.5, size=4.6 if row.part else 5.6)
            _row_label(axes, row, y)
            y += height / 2
    return _inline(figure, name, description, titles)


def scatter(name: str, description: str, style: int, dots: Sequence[Dot], labels: tuple[str, str]) -> Markup:
    """Returns two values of each case against each other on equal axes, with the line of equality."""
    scale = Scale.up_to(max(max(dot.value, dot.y) for dot in dots))
    with _drawing(340, 320, left=62, right=326, bottom=44, top=308) as (figure, axes):
        _value_axis(axes, scale)
        axes.set_yticks(scale.ticks, scale.labels)
        axes.grid(color=LINE, linewidth=1)
        axes.set_ylim(0, scale.top)
        axes.spines["left"].set_visible(True)
        axes.plot([0, scale.top], [0, scale.top], color=SOFT, linestyle=(0, (5, 4)), linewidth=1, zorder=1)
        titles = _dots(axes, style, dots, [dot.value for dot in dots], [dot.y for dot in dots], 6.4)
        axes.set_xlabel(labels[0], color=INK, fontsize=_TEXT_PX + 1)
        axes.set_ylabel(labels[1], color=INK, fontsize=_TEXT_PX + 1)
    return _inline(figure, name, description, titles)


def _box_row(
    axes: Axes,
    row: BoxRow,
    y: float,
    spread: float,
    half: float,
    scale: Scale,
    whisker: float,
    size: float,
) -> dict[str, list[str]]:
    """Draws the dots and the box of a row around ``y``; returns the titles of the dots."""
    from matplotlib.cbook import boxplot_stats

    # Steps of the golden ratio separate neighbouring values, deterministically.
    aside = ((np.arange(len(row.dots)) * 0.618034 + 0.5) % 1 - 0.5) * 2 * spread
    x = np.minimum([dot.value for dot in row.dots], scale.top)
    titles = _dots(axes, row.style, row.dots, x, y + aside, size)
    if len(row.values) > 1:
        stats = boxplot_stats(row.values, whis=whisker)[0]
        stats = {key: min(float(stats[key]), scale.top) for key in ("med", "q1", "q3", "whislo", "whishi")}
        axes.plot([stats["med"]] * 2, [y - half, y + half], color=INK, linewidth=2.6, solid_capstyle="butt", zorder=4)
        if len(row.values) >= BOX_FROM:
            line = {"color": INK, "linewidth": 1.0}
            axes.bxp(
                [{**stats, "fliers": []}], positions=[y], widths=2 * half, orientation="horizontal", manage_ticks=False,
                showfliers=False, showcaps=False, boxprops={**line, "gid": "box"}, whiskerprops=line,
                medianprops={**line, "linewidth": 0}, zorder=4,
            )  # fmt: skip
    return titles


def _dots(
    axes: Axes, style: int, dots: Sequence[Dot], x: npt.ArrayLike, y: npt.ArrayLike, size: float
) -> dict[str, list[str]]:
    """Draws filled and hollow dots; returns their titles by the identifiers of the groups they are in."""
    colour, titles = REGION_COLOURS[style], {}
    for hollow in (False, True):
        chosen = [k for k, dot in enumerate(dots) if dot.hollow == hollow]
        if not chosen:
            continue
        gid = f"dots-{len(axes.lines)}"
        axes.plot(
            np.asarray(x)[chosen], np.asarray(y)[chosen], linestyle="none", marker=_MARKERS[style], markersize=size,
            markerfacecolor=PAPER if hollow else colour, markeredgecolor=colour, alpha=None if hollow else 0.55,
            markeredgewidth=1.3 if hollow else 0.6, gid=gid, zorder=3,
        )  # fmt: skip
        titles[gid] = [dots[k].title for k in chosen]
    return titles


def _row_label(axes: Axes, row: BoxRow, y: float) -> None:
    """Writes a row's label at the left of its axes, and a note where it has no values."""
    place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "fontsize": _TEXT_PX, "va": "center"}
    label, *detail = row.label.split("\n")
    lines = [
        (label, SOFT if row.part else INK, y - (6.5 if detail else 0)),
        *((text, SOFT, y + 6.5) for text in detail),
    ]
    for text, colour, at in lines:
        axes.text(-10 / 274, at, text, ha="right", color=colour, **place)
    if not row.values:
        axes.text(8 / 274, y, "no case has a value", ha="left", color=SOFT, **place)


def _value_axis(axes: Axes, scale: Scale) -> None:
    axes.set_xticks(scale.ticks, scale.labels)
    axes.set_yticks([])
    axes.set_xlim(0, scale.top)
    axes.grid(axis="x", color=LINE, linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[:].set(visible=False, color=SOFT, linewidth=1)
    axes.spines["bottom"].set_visible(True)
    axes.tick_params(length=0, labelcolor=SOFT, labelsize=_TEXT_PX)


@contextmanager
def _drawing(width: int, height: int, *, left: int, right: int, bottom: int, top: int) -> Iterator[tuple[Figure, Axes]]:
    """Yields a figure of a size in px and its axes, with untrusted text never read as mathematics."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
        box = (left / width, bottom / height, (right - left) / width, (top - bottom) / height)
        yield figure, figure.add_axes(box, frameon=True, facecolor="none")


def _inline(figure: Figure, name: str, description: str, titles: Mapping[str, Sequence[str]]) -> Markup:
    """Returns a figure as an SVG element of a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": "pvs_model", "svg.fonttype": "none"}):
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag.endswith(("metadata", "style", "clipPath")):
                parent.remove(child)
    for gid, words in titles.items():
        group = next(element for element in root.iter() if element.get("id") == gid)
        for mark, title in zip((e for e in group.iter() if e.tag.endswith("use")), words, strict=True):
            ElementTree.SubElement(mark, "title").text = escape_control_characters(title)
    for element in root.iter():
        _to_presentation(element, name)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": escape_control_characters(description),
    }
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _to_presentation(element: ElementTree.Element, name: str) -> None:
    """Replaces namespaces, style attributes, placeholder colours and identifiers of an element of matplotlib's SVG."""
    attributes: dict[str, Any] = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    style = dict(part.split(": ", 1) for part in attributes.pop("style", "").split("; ") if part)
    attributes |= {key: value for key, value in style.items() if not key.startswith("font") and key != "white-space"}
    for key, value in attributes.items():
        attributes[key] = _CSS.get(value, _rounded(value) if key in ("d", "x", "y", "transform") else value)
    attributes.pop("clip-path", None)
    element.tag = element.tag.rpartition("}")[2]
    if element.tag in ("g", "text"):
        identifier = attributes.pop("id", "")
        if identifier.startswith("dots-"):
            attributes["class"] = "dots"
        elif identifier == "box":
            attributes["class"] = "box"
    elif "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if "href" in attributes:
        attributes["href"] = f"#{name}-{attributes['href'].removeprefix('#')}"
    # A group carries what its marks have in common.
    if element.tag == "g" and len({mark.get("style") for mark in element if mark.tag.endswith("use")}) == 1:
        for part in next(iter(element)).get("style", "").split("; "):
            key, _, value = part.partition(": ")
            attributes[key] = _CSS.get(value, value)
        for mark in element:
            mark.attrib.pop("style", None)
    element.attrib = attributes
    element.text, element.tail = element.text if element.tag in ("text", "title") else None, None


def _rounded(text: str) -> str:
    """Returns lengths with two decimals at most, on one line."""
    shorter = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)
    return " ".join(shorter.split())

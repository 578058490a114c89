"""Self-contained HTML pages: one base template, one style sheet and one script, nothing fetched.

Names of cases, paths and messages are untrusted. They reach a page through jinja2's own escaping and
``escape_control_characters``; the content security policy admits the page's own style and script alone.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from markupsafe import Markup

from pvs_model.errors import escape_control_characters

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
STYLE, SCRIPT, VIEWER_SCRIPT = "report.css", "report.js", "viewer.js"

#: Sign of a missing value, and the unit of volumes.
NO_VALUE = "\N{EN DASH}"
MM3 = "mm\N{SUPERSCRIPT THREE}"

T = TypeVar("T")


def render(template: str, parts: Mapping[str, object], scripts: Sequence[str] = (SCRIPT,)) -> str:
    """Returns the text of a page.

    Args:
        template: Name of a template that extends ``base.html``.
        parts: Its variables.
        scripts: Files of its script, in order.
    """
    environment = _environment()
    assert environment.loader is not None
    style, *parts_of_script = (environment.loader.get_source(environment, name)[0] for name in (STYLE, *scripts))
    script = "".join(parts_of_script)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment.get_template(template).render({**parts, **own})


def finished(value: object) -> object:
    """Returns a value for a template, with control characters escaped.

    Raises:
        TypeError: neither text nor a count: a number that is not formatted yet, or None.
    """
    if isinstance(value, Markup) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected text or a count to put on the page, got {value!r}")
    return escape_control_characters(value)


def number(value: float | None, digits: int = 1) -> str:
    """Returns a number with a fixed number of decimals and a true minus sign; a dash without a value."""
    if value is None or not math.isfinite(value):
        return NO_VALUE
    text = f"{abs(value):.{digits}f}"
    return f"\N{MINUS SIGN}{text}" if value < 0 and text.strip("0.") else text


def plural(count: int, noun: str) -> str:
    """Returns a count and its noun.

    Example:
        >>> plural(2, "case")
        '2 cases'
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def evenly_spaced(values: Sequence[T], most: int) -> Sequence[T]:
    """Returns at most ``most`` of the values, first and last included."""
    if len(values) <= most:
        return values
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


@cache
def _environment() -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(text: str) -> str:
    """Returns a source expression of a content security policy that admits ``text`` only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

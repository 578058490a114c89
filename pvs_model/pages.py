"""Self-contained HTML pages: templates that admit finished text only, one style and one script, nothing fetched.

Names of cases, paths and messages are a stranger's. They reach a page through jinja2's own escaping and ``finished``,
which writes out what a browser would hide; the content security policy admits the page's own style and script alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from jinja2 import Environment

STYLE, SCRIPT = "page.css", "page.js"


def render(folder: Path, template: str, parts: Mapping[str, object], more_policy: str = "") -> str:
    """The text of a page.

    Args:
        folder: of the template and of its ``page.css`` and ``page.js``, which are the package's own.
        template: its name; it puts out ``style``, ``script`` and ``policy`` besides the parts.
        parts: what it shows.
        more_policy: further directives of the content security policy, each with its semicolon and a space.
    """
    environment = _environment(folder)
    assert environment.loader is not None
    style, script = (environment.loader.get_source(environment, name)[0] for name in (STYLE, SCRIPT))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; {more_policy}"
        "base-uri 'none'; form-action 'none'"
    )
    own = {"style": Markup(style), "script": Markup(script), "policy": policy}
    return environment.get_template(template).render({**parts, **own})


def finished(value: object) -> object:
    """What a template may put out: text, with unprintable and direction-changing characters spelt, and counts.

    Raises:
        TypeError: for anything else: a number that is not yet formatted, or None.
    """
    if isinstance(value, Markup) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise TypeError(f"expected text or a count to put on the page, found {value!r}")
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts site 2 before site 10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"(\d+)", text) if part
    )


@cache
def _environment(folder: Path) -> Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finished,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(text: str) -> str:
    """A source expression of a content security policy that admits ``text`` only."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

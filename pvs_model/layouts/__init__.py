"""Layouts of input and output folders, one module per layout."""

from __future__ import annotations

import stat
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, Options, entries, listed
from pvs_model.layouts.bids import Bids
from pvs_model.layouts.epvs import Epvs
from pvs_model.layouts.flat import Flat
from pvs_model.layouts.grand_challenge import GrandChallenge
from pvs_model.layouts.valdo import Valdo

__all__ = ["LAYOUTS", "Layout", "Options", "choose"]

#: Layouts by name, in the order in which they are tried: the more specific ones first.
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (GrandChallenge, Valdo, Bids, Epvs, Flat)}


def choose(root: Path, name: str | None = None, options: Options | None = None) -> Layout:
    """Chooses the layout of an input folder.

    Args:
        root: Input folder.
        name: One of ``LAYOUTS``, or None to recognise the layout.
        options: Options of the layout; None for defaults.

    Raises:
        LayoutError: The folder or the layout does not exist, or no layout is recognised.
    """
    options = options if options is not None else Options()
    if name is not None and name not in LAYOUTS:
        raise LayoutError(f"layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    try:
        problem = None if stat.S_ISDIR(root.stat().st_mode) else "got a file"
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        problem = "but it does not exist" if missing else f"got one that cannot be read: {error.strerror}"
    if problem is not None:
        raise LayoutError(f"{root}: expected an input folder, {problem}")
    if name is not None:
        return LAYOUTS[name](options)
    for layout_class in LAYOUTS.values():
        layout = layout_class(options)
        if layout.recognises(root):
            return layout
    content = listed(entries(root)) or "an empty folder"
    known = "; ".join(f"{layout.name}: {layout.description}" for layout in LAYOUTS.values())
    raise LayoutError(f"{root}: expected one of the layouts ({known}), got {content}")

"""Forms of input, each with the form of output that belongs to it: one file per form."""

from __future__ import annotations

import stat
from pathlib import Path

from pvs_model.errors import LayoutError
from pvs_model.layouts.base import Layout, Options, entries, listed
from pvs_model.layouts.bids import Bids
from pvs_model.layouts.epvs import Epvs
from pvs_model.layouts.flat import Flat
from pvs_model.layouts.grand_challenge import GrandChallenge

__all__ = ["LAYOUTS", "Layout", "Options", "choose"]

#: By name, in the order in which an input folder is looked at: the more particular form first.
LAYOUTS: dict[str, type[Layout]] = {layout.name: layout for layout in (GrandChallenge, Bids, Epvs, Flat)}


def choose(root: Path, name: str | None = None, options: Options | None = None) -> Layout:
    """The layout of an input folder.

    Args:
        root: the input folder.
        name: one of ``LAYOUTS``, or None to look at the folder.
        options: the user's options; defaults where None.

    Raises:
        LayoutError: no such folder, no such layout, or a folder in none of the forms.
    """
    options = options if options is not None else Options()
    if name is not None and name not in LAYOUTS:
        raise LayoutError(f"layout {name!r}: expected one of {', '.join(LAYOUTS)}")
    try:
        found = None if stat.S_ISDIR(root.stat().st_mode) else "a file"
    except OSError as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        found = "nothing there" if missing else f"one that may not be read: {error.strerror}"
    if found is not None:
        raise LayoutError(f"{root}: expected an input folder, found {found}")
    if name is not None:
        return LAYOUTS[name](options)
    for kind in LAYOUTS.values():
        layout = kind(options)
        if layout.recognises(root):
            return layout
    found = listed(entries(root)) or "an empty folder"
    looked = "; ".join(f"{kind.name}: {kind.looks_for}" for kind in LAYOUTS.values())
    raise LayoutError(f"{root}: expected one of the forms ({looked}), found {found}")

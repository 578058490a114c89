"""Names and colours of the regions in reports."""

from __future__ import annotations

from collections.abc import Mapping

from pvs_model.burden.records import ALL, OTHER
from pvs_model.burden.subregions import DEEP_WM
from pvs_model.types import Region

#: White matter on slices and projections, where the centrum semiovale is shown as a region of its own.
OTHER_WM = "WM outside the CSO"

NAMES: Mapping[str, str] = {
    **{region.value: region.display_name for region in Region},
    "WM": "cerebral white matter (WM)",
    DEEP_WM: "deep white matter, part of WM",
    OTHER_WM: "white matter outside the centrum semiovale",
    ALL: "whole image",
    OTHER: "outside the regions",
}
SHORT_NAMES: Mapping[str, str] = {
    **{region.value: region.table_name for region in Region},
    ALL: "all",
    OTHER: "outside",
}
#: Order of the regions, and the numbers of their colours in the style sheet.
STYLES: Mapping[str, int] = {
    **{region.value: number for number, region in enumerate(Region)},
    **{region.table_name: number for number, region in enumerate(Region)},
    "WM": 0,
    DEEP_WM: 0,
    OTHER_WM: 4,
    OTHER: 5,
    ALL: 5,
}
#: Style of any other region.
ANOTHER_STYLE = 4


def name_of(region: str) -> str:
    """Returns the name of a region as a heading shows it."""
    return NAMES.get(region, region)


def short_name_of(region: str) -> str:
    """Returns the name of a region as a column shows it."""
    return SHORT_NAMES.get(region, region)


def style_of(region: str) -> int:
    """Returns the number of a region's colour in the style sheet."""
    return STYLES.get(region, ANOTHER_STYLE)

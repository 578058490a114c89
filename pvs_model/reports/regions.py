"""Names and colours of the regions in reports."""

from __future__ import annotations

from collections.abc import Mapping

from pvs_model.burden.records import ALL, OTHER

NAMES: Mapping[str, str] = {
    "CSO": "centrum semiovale (CSO)",
    "BG": "basal ganglia (BG)",
    "MID": "midbrain",
    "HIP": "hippocampus",
    ALL: "whole image",
    OTHER: "outside the regions",
}
SHORT_NAMES: Mapping[str, str] = {"MID": "midbrain", "HIP": "hippocampus", ALL: "all", OTHER: "outside"}
#: Order of the regions, and the numbers of their colours in the style sheet.
STYLES: Mapping[str, int] = {"CSO": 0, "BG": 1, "MID": 2, "midbrain": 2, "HIP": 3, "hippocampus": 3, OTHER: 5, ALL: 5}
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

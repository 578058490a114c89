"""From a file name to the mask that it is of: the one reading that training and evaluation share."""

from __future__ import annotations

import re

_BIDS = re.compile(
    r"(?P<subject>sub-[^_]+)(?P<entities>(?:_[^_]+-[^_]+)*)_label-(?P<label>[^_-]+)(?:_[^_]+-[^_]+)*_mask",
    re.IGNORECASE,
)
#: Entities that say how a mask is stored, not of which scan it is.
_STORED = re.compile(r"_(?:space|res|den|desc|atlas|hemi)-[^_]+", re.IGNORECASE)


def bids_mask(stem: str) -> tuple[str, str] | None:
    """The scan and the label of BIDS's ``sub-01_run-1_space-orig_label-PVS_mask``: ("sub-01_run-1", "PVS")."""
    match = _BIDS.fullmatch(stem)
    return None if match is None else (match["subject"] + _STORED.sub("", match["entities"]), match["label"])


def subject_of(scan: str) -> str:
    """Subject and session of a scan in BIDS, without its run and other entities."""
    return "_".join(part for part in scan.split("_") if part.lower().startswith(("sub-", "ses-")))


def front_of(stem: str, label: str) -> str | None:
    """What a name says before a label: "a" for a_PVS and "PVS", "" for PVS; None where it is not of that label."""
    if (mask := bids_mask(stem)) is not None:
        return mask[0] if mask[1].lower() == label.lower() else None
    match = re.fullmatch(rf"(?:(.+)_)?{re.escape(label)}", stem, re.IGNORECASE)
    return None if match is None else match[1] or ""

"""Parses names of mask files, for training and evaluation."""

from __future__ import annotations

import re

_BIDS = re.compile(
    r"(?P<subject>sub-[^_]+)(?P<entities>(?:_[^_]+-[^_]+)*)_label-(?P<label>[^_-]+)(?:_[^_]+-[^_]+)*_mask",
    re.IGNORECASE,
)
#: Entities that describe the storage of a mask and not its scan.
_STORAGE = re.compile(r"_(?:space|res|den|desc|atlas|hemi)-[^_]+", re.IGNORECASE)


def bids_mask(stem: str) -> tuple[str, str] | None:
    """Parses scan and label of BIDS's ``sub-01_run-1_space-orig_label-PVS_mask``: ("sub-01_run-1", "PVS")."""
    match = _BIDS.fullmatch(stem)
    return None if match is None else (match["subject"] + _STORAGE.sub("", match["entities"]), match["label"])


def subject_of(scan: str) -> str:
    """Returns subject and session of a BIDS scan, without its run and other entities."""
    return "_".join(part for part in scan.split("_") if part.lower().startswith(("sub-", "ses-")))


def front_of(stem: str, label: str) -> str | None:
    """Returns the part of a name before a label: "a" for a_PVS and "PVS", "" for PVS; None for another label."""
    if (mask := bids_mask(stem)) is not None:
        return mask[0] if mask[1].lower() == label.lower() else None
    match = re.fullmatch(rf"(?:(.+)_)?{re.escape(label)}", stem, re.IGNORECASE)
    return None if match is None else match[1] or ""

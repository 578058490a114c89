"""Selects images of FreeSurfer subject folders, where ``<subject>/mri`` holds a scan at many processing stages.

The images of ``mri`` share a grid of 1 mm. The least processed ones after bias field correction are selected.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: File names by sequence, in order of preference.
STAGES = {
    "T1w": ("nu.mgz", "orig.mgz", "T1.mgz", "norm.mgz", "brain.mgz"),
    "T2w": ("T2.prenorm.mgz", "T2.norm.mgz", "T2.mgz"),
    "FLAIR": ("FLAIR.prenorm.mgz", "FLAIR.norm.mgz", "FLAIR.mgz"),
}


def is_mri(folder: Path, files: Iterable[Path]) -> bool:
    """Whether a folder is the ``mri`` folder of a subject."""
    names = {path.name for path in files}
    return folder.name == "mri" and len(names & {"orig.mgz", "nu.mgz", "T1.mgz", "brain.mgz", "aseg.mgz"}) > 1


def choose(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Selects one image of each available sequence."""
    by_name = {path.name: path for path in files}
    chosen = {}
    for sequence, names in STAGES.items():
        if available := [by_name[name] for name in names if name in by_name]:
            chosen[sequence] = available[:1]
    return chosen

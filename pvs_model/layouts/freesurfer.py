"""FreeSurfer's subject folders: ``<subject>/mri`` holds the same scan at many stages, of which one is taken.

The images of ``mri`` lie on one grid of 1 mm. Those are taken that were changed least but for the bias field.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

#: Names by sequence, the one that is taken first.
STAGES = {
    "T1w": ("nu.mgz", "orig.mgz", "T1.mgz", "norm.mgz", "brain.mgz"),
    "T2w": ("T2.prenorm.mgz", "T2.norm.mgz", "T2.mgz"),
    "FLAIR": ("FLAIR.prenorm.mgz", "FLAIR.norm.mgz", "FLAIR.mgz"),
}


def is_mri(folder: Path, files: Iterable[Path]) -> bool:
    """Whether a folder is the ``mri`` of a subject."""
    names = {path.name for path in files}
    return folder.name == "mri" and len(names & {"orig.mgz", "nu.mgz", "T1.mgz", "brain.mgz", "aseg.mgz"}) > 1


def choose(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The image of each sequence that is there."""
    by_name = {path.name: path for path in files}
    chosen = {}
    for sequence, names in STAGES.items():
        if there := [by_name[name] for name in names if name in by_name]:
            chosen[sequence] = there[:1]
    return chosen

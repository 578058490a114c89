"""What every form of input has in common: options, base class, and how problems are told."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from pvs_model.errors import LayoutError
from pvs_model.layouts.names import image_stem, sequence_of
from pvs_model.types import Case

#: The most file names that a message lists.
_LISTED = 8


@dataclass(frozen=True)
class Options:
    """What a user may say about the form of input and output.

    Attributes:
        suffix: what the mask's name ends in (``<case>_<suffix>.nii.gz``) in ``epvs`` and ``flat``.
        sockets: JSON file that maps sockets to sequences, for ``grand_challenge``.
        bids_filter: JSON file that says which files of a BIDS data set to take, as that of other BIDS apps.
        ignore: patterns of names that are passed over: of files, or of paths below the input folder.
        outputs: folders that this run writes to: what lies in them is no input.

    Raises:
        LayoutError: the suffix could not stand in a file name.
    """

    suffix: str = "pred"
    sockets: Path | None = None
    bids_filter: Path | None = None
    ignore: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.suffix):
            raise LayoutError(f"suffix {self.suffix!r}: expected letters, digits, '-' and '_' only")

    def ignores(self, path: Path, root: Path) -> bool:
        """Whether a file below an input folder is to be passed over."""
        names = (path.name, path.relative_to(root).as_posix())
        return any(fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in self.ignore)

    def kept(self, paths: Iterable[Path], root: Path) -> list[Path]:
        """Those that are not to be passed over."""
        return [path for path in paths if not self.ignores(path, root)]


class Layout(ABC):
    """One form of input and of the output that belongs to it. Input files are only ever read."""

    name: ClassVar[str]
    #: What the form looks like, for the message that no form was recognised.
    looks_for: ClassVar[str]

    def __init__(self, options: Options | None = None) -> None:
        self.options = options if options is not None else Options()

    @abstractmethod
    def recognises(self, root: Path) -> bool:
        """Whether the input folder ``root`` has this form."""

    @abstractmethod
    def find_cases(self, root: Path) -> list[Case]:
        """The cases below ``root``, sorted; one that cannot be run carries its ``problem``.

        Raises:
            LayoutError: no case at all, or a folder that cannot be listed.
        """

    def prepare_output(self, output_root: Path) -> None:
        """Make the output folder and what belongs in its root.

        Raises:
            LayoutError: the folder cannot be made.
        """
        try:
            output_root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LayoutError(
                f"{output_root}: expected an output folder that can be written, found: {error.strerror}"
            ) from error

    def is_complete(self, case: Case, output_root: Path) -> bool:
        """Whether all that belongs to a case lies in the output folder."""
        return (output_root / case.output).is_file()

    def finish(  # noqa: B027 - an optional step, empty for most forms
        self, case: Case, mask_path: Path, output_root: Path, facts: Mapping[str, Any]
    ) -> None:
        """Write what goes with a mask that has been written; most forms have nothing to add.

        Args:
            case: the case that was run.
            mask_path: where its mask lies now.
            output_root: the output folder.
            facts: what the run knows about the mask (network, threshold and the like), as JSON
                values.
        """


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        LayoutError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LayoutError(f"{path}: expected a JSON file that can be read, found: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: expected JSON, found: {error}") from error


def listed(paths: Iterable[Path | str]) -> str:
    """Names for a message, the first few of them."""
    names = [path.name if isinstance(path, Path) else path for path in paths]
    text = ", ".join(names[:_LISTED])
    return f"{text} and {len(names) - _LISTED} more" if len(names) > _LISTED else text


def doubled(where: object, found: Mapping[str, list[Path]]) -> str | None:
    """The sentence that names the files of each doubled sequence, or None where none is."""
    doubles = [f"{listed(files)} for {sequence}" for sequence, files in found.items() if len(files) > 1]
    if not doubles:
        return None
    hint = "--ignore PATTERN passes over those that are not meant"
    return f"{where}: expected one file per sequence, found {' and '.join(doubles)}: {hint}"


def distinct(cases: Iterable[Case]) -> list[Case]:
    """Cases sorted by name; those whose masks would have one name are problems, since one would replace the other."""
    by_output: dict[Path, list[Case]] = {}
    for case in cases:
        by_output.setdefault(case.output, []).append(case)
    out = []
    for output, group in by_output.items():
        told = f"{output}: expected one case with this mask, found {len(group)}: rename their folders or files"
        out += group if len(group) == 1 else [replace(case, images={}, problem=case.problem or told) for case in group]
    return sorted(out, key=lambda case: case.name)


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name, hidden entries left out.

    Raises:
        LayoutError: the folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LayoutError(f"{folder}: expected a folder that can be listed, found: {error.strerror}") from error


#: Files that lie beside images. A link of such a name that leads nowhere is not a subject that has gone missing.
_NO_FOLDER = re.compile(
    r".*\.(?:json|txt|tsv|csv|md|bvals?|bvecs?|pdf|html?|log|gz|xml|ya?ml|xlsx?|docx?|zip|py|sh|m|mat)", re.IGNORECASE
)


def leads_nowhere(path: Path) -> str | None:
    """The sentence on a link to a subject or a folder of it that leads nowhere; None for anything else."""
    if not path.is_symlink() or os.path.exists(path) or _NO_FOLDER.fullmatch(path.name) or image_stem(path.name):
        return None
    return (
        f"{path}: expected a folder of images, found a link that leads nowhere ({os.readlink(path)}): "
        "its target may lie outside of what is mounted"
    )


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path lies in one of some folders, or is one, when links are followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def folders_below(
    root: Path, skip: Callable[[Path], bool] = lambda folder: False
) -> Iterator[tuple[Path, list[Path], bool]]:
    """Every folder below ``root``, itself left out: (folder, its files, whether it has subfolders).

    Linked folders are followed, each real folder once, so that a link to a parent does not loop.

    Args:
        root: where to begin.
        skip: whether a folder and all below it are left out.

    Raises:
        LayoutError: a folder cannot be listed.
    """
    seen = {os.path.realpath(root)}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            inside = entries(folder)
        except LayoutError:
            if folder == root:
                raise
            inside = []  # one that may not be listed is a case that fails, not the end of the run
        below = [path for path in inside if path.is_dir() and path.name != "lost+found" and not skip(path)]
        if folder != root:
            # A dangling link, a pipe or a folder with the name of a sequence is told when it is read.
            files = [path for path in inside if not path.is_dir() or sequence_of(path.name, folder.name)]
            yield folder, files, bool(below)
        for path in reversed(below):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                waiting.append(path)

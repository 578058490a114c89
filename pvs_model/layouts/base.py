"""Base class and options of the input layouts, and helpers for listing folders and describing problems."""

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

#: Largest number of file names in a message.
_MAX_LISTED = 8


@dataclass(frozen=True)
class Options:
    """Options of input and output layouts.

    Attributes:
        suffix: Suffix of mask files (``<case>_<suffix>.nii.gz``) in ``epvs`` and ``flat``.
        sockets: JSON file that maps sockets to sequences, for ``grand_challenge``.
        bids_filter: JSON file that selects files of a BIDS data set, as in other BIDS apps.
        participants: Labels of the subjects of a BIDS data set to use, with or without "sub-"; all by default.
        sessions: Labels of their sessions to use, with or without "ses-"; all by default.
        derivative_of: BIDS data set of which the output is a derivative with region maps and links to sources.
        ignore: Patterns of excluded names: of files, or of paths below the input folder.
        outputs: Output folders of this run, which are not searched for images.

    Raises:
        LayoutError: The suffix is not valid in a file name.
    """

    suffix: str = "pred"
    sockets: Path | None = None
    bids_filter: Path | None = None
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    derivative_of: Path | None = None
    ignore: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.suffix):
            raise LayoutError(f"suffix {self.suffix!r}: expected letters, digits, '-' and '_' only")

    def ignores(self, path: Path, root: Path) -> bool:
        """Whether a file below an input folder is excluded."""
        names = (path.name, path.relative_to(root).as_posix())
        return any(fnmatchcase(name.lower(), pattern.lower()) for name in names for pattern in self.ignore)

    def kept(self, paths: Iterable[Path], root: Path) -> list[Path]:
        """Returns the paths that are not excluded."""
        return [path for path in paths if not self.ignores(path, root)]


class Layout(ABC):
    """A layout of the input folder and the matching output folder. Input files are only read."""

    name: ClassVar[str]
    #: Description of the layout, for the message that none was recognised.
    description: ClassVar[str]

    def __init__(self, options: Options | None = None) -> None:
        self.options = options if options is not None else Options()

    @abstractmethod
    def recognises(self, root: Path) -> bool:
        """Whether the input folder ``root`` has this layout."""

    @abstractmethod
    def find_cases(self, root: Path) -> list[Case]:
        """Returns the cases below ``root``, sorted; those that cannot be segmented have a ``problem``.

        Raises:
            LayoutError: There is no case, or a folder that cannot be listed.
        """

    def prepare_output(self, output_root: Path) -> None:
        """Creates the output folder and the files in its root.

        Raises:
            LayoutError: The folder cannot be created.
        """
        try:
            output_root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LayoutError(f"{output_root}: expected a writable output folder, got: {error.strerror}") from error

    def excludes(self, folder: Path) -> bool:
        """Whether a folder belongs to a subject or session that the options exclude."""
        del folder
        return False

    def region_maps(self, case: Case) -> Mapping[str, Path]:
        """Returns the paths of region maps to be written, relative to the output folder: "regions" and "brain"."""
        del case
        return {}

    def is_complete(self, case: Case, output_root: Path) -> bool:
        """Whether all output files of a case exist."""
        return (output_root / case.output).is_file()

    def finish(  # noqa: B027 - optional, empty for most layouts
        self, case: Case, mask_path: Path, output_root: Path, metadata: Mapping[str, Any]
    ) -> None:
        """Writes the files that accompany a mask; none in most layouts.

        Args:
            case: Segmented case.
            mask_path: Path of its mask.
            output_root: Output folder.
            metadata: Provenance of the mask (networks, threshold, ...), as JSON values.
        """


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        LayoutError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise LayoutError(f"{path}: expected a readable JSON file, got: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{path}: expected JSON, got: {error}") from error


def listed(paths: Iterable[Path | str]) -> str:
    """Formats file names for a message, the first few of them."""
    names = [path.name if isinstance(path, Path) else path for path in paths]
    text = ", ".join(names[:_MAX_LISTED])
    return f"{text} and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else text


def duplicates_problem(
    source: object, images: Mapping[str, list[Path]], hint: str = "exclude the others with --ignore PATTERN"
) -> str | None:
    """Describes the sequences that have several files, with a hint at what to do; None if there are none."""
    duplicates = [f"{listed(files)} for {sequence}" for sequence, files in images.items() if len(files) > 1]
    if not duplicates:
        return None
    return f"{source}: expected one file per sequence, got {' and '.join(duplicates)}: {hint}"


def distinct(cases: Iterable[Case]) -> list[Case]:
    """Sorts cases by name; those whose masks would have the same path get a problem."""
    by_output: dict[Path, list[Case]] = {}
    for case in cases:
        by_output.setdefault(case.output, []).append(case)
    out = []
    for output, group in by_output.items():
        message = f"{output}: expected one case with this mask, got {len(group)}: rename their folders or files"
        if len(group) > 1:
            group = [replace(case, images={}, problem=case.problem or message) for case in group]
        out += group
    return sorted(out, key=lambda case: case.name)


def entries(folder: Path) -> list[Path]:
    """Lists a folder, sorted by name, without hidden entries.

    Raises:
        LayoutError: The folder cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise LayoutError(f"{folder}: expected a readable folder, got: {error.strerror}") from error


#: Files beside images. A broken link with such a name is not a missing subject.
_NOT_A_FOLDER = re.compile(
    r".*\.(?:json|txt|tsv|csv|md|bvals?|bvecs?|pdf|html?|log|gz|xml|ya?ml|xlsx?|docx?|zip|py|sh|m|mat)", re.IGNORECASE
)


def broken_link_problem(path: Path) -> str | None:
    """Describes a broken link to a folder of a subject; None for anything else."""
    if not path.is_symlink() or os.path.exists(path) or _NOT_A_FOLDER.fullmatch(path.name) or image_stem(path.name):
        return None
    return (
        f"{path}: expected a folder of images, got a broken link to {os.readlink(path)}: its target may not be mounted"
    )


def is_within(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path is one of some folders or lies within one, following links."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def folders_below(
    root: Path, skip: Callable[[Path], bool] = lambda folder: False
) -> Iterator[tuple[Path, list[Path], bool]]:
    """Yields every folder below ``root``: (folder, its files, whether it has subfolders).

    Links to folders are followed, each real folder once, so that a link to a parent does not loop.

    Args:
        root: Folder to search, itself excluded.
        skip: Whether to exclude a folder and all below it.

    Raises:
        LayoutError: The root cannot be listed.
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
            inside = []  # an unreadable folder is a failed case and does not end the run
        below = [path for path in inside if path.is_dir() and path.name != "lost+found" and not skip(path)]
        if folder != root:
            # A broken link, a pipe or a folder named like an image is reported when it is read.
            files = [path for path in inside if not path.is_dir() or sequence_of(path.name, folder.name)]
            yield folder, files, bool(below)
        for path in reversed(below):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                waiting.append(path)

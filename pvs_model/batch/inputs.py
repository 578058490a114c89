"""Selects the cases of an input folder, and lists which files are used and why."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

from pvs_model.batch.outputs import ReportOptions, is_complete, name_conflict
from pvs_model.config import BatchConfig, InferenceConfig, default_sockets
from pvs_model.errors import escape_control_characters
from pvs_model.inference.weights import missing_parts
from pvs_model.layouts import LAYOUTS, Layout, Options, choose
from pvs_model.layouts.base import is_within, listed
from pvs_model.layouts.freesurfer import STAGES
from pvs_model.layouts.names import explain, image_stem
from pvs_model.types import Case

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Folders that no layout searches; they are listed as a whole.
_NOT_SEARCHED = frozenset({"derivatives", "sourcedata", "fsaverage", "lost+found"})
#: Largest number of unused files of one folder and reason that are listed individually.
_MAX_LISTED = 8


@dataclass(frozen=True)
class Part:
    """One of several disjoint parts of the cases of a folder, for job arrays.

    Attributes:
        index: Number of the part, from 1.
        count: Number of parts.

    >>> Part.parse("2/3").select("abcdefg")
    ['b', 'e']
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads ``K/N``.

        Raises:
            ValueError: K is not between 1 and N.
        """
        index, count = map(int, text.split("/"))
        if not 1 <= index <= count:
            raise ValueError(text)
        return cls(index, count)

    def select(self, cases: Sequence[T]) -> list[T]:
        """Returns every ``count``-th case, from case number ``index``."""
        return list(cases[self.index - 1 :: self.count])


def add_arguments(parser: argparse.ArgumentParser, weights: Path) -> None:
    """Adds the arguments of every command that segments a folder of any layout.

    Args:
        parser: Parser of the command.
        weights: Default weights folder.
    """
    add = parser.add_argument
    add("--suffix", default="pred", help="masks are named CASE_SUFFIX.nii.gz (default: pred)")
    add("--layout", choices=tuple(LAYOUTS), help="form of the input (default: detected)")
    add("--sockets", type=Path, default=default_sockets(), help="JSON file naming grand-challenge sockets")
    add("--report", type=Path, metavar="DIR", help="burden tables and HTML reports (not within --output)")
    add("--no-viewer", dest="viewer", action="store_false", help="with --report: small pages without the volume")
    add("--probability", action="store_true", help="with --report: keep probability maps there")
    add_common_arguments(parser, weights)


def add_common_arguments(parser: argparse.ArgumentParser, weights: Path) -> None:
    """Adds the arguments that do not depend on the layout; arguments as of ``add_arguments``."""
    add_inference_arguments(parser, weights)
    add = parser.add_argument
    add("--bids-filter-file", type=Path, metavar="FILE", help="JSON: which of several images to take")
    add("--ignore", action="append", default=[], metavar="PATTERN", help="ignore files of such names (repeatable)")
    add("--part", type=_part, metavar="K/N", help="run only part K of N of the cases, for job arrays")
    add("--dry-run", action="store_true", help="list cases, their files and unused files; run nothing")
    add("--resume", action="store_true", help="skip cases that an earlier run completed")


def add_inference_arguments(parser: argparse.ArgumentParser, weights: Path) -> None:
    """Adds the arguments of ``InferenceConfig``.

    Args:
        parser: Parser of the command.
        weights: Default weights folder.
    """
    add = parser.add_argument
    add("--weights", type=Path, default=weights, help="folder with MANIFEST.json")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto")
    add("--backend", choices=("auto", "torch", "openvino"), default="auto", help="inference engine on a CPU")
    add("--prompt", help="a prompt of your own (needs a BERT encoder)")
    add("--no-anatomy", dest="anatomy", action="store_false", help="no brain mask, no regions")
    add("--register", action="store_true", help="register sequences to the reference where that improves the fit")
    add("--n4", action="store_true", help="correct the bias field first")
    add("--fast", action="store_true", help="for a quick look: one network, and windows without overlap")
    add("--mirror", action="store_true", help="average over mirror images (8 or 4 times slower)")


def batch_config(args: argparse.Namespace, workers: int | None = None) -> BatchConfig:
    """Returns the options of the run; the number of workers is given, as ``--workers`` may mean others."""
    names = {field.name for field in fields(BatchConfig)} - {"workers"}
    return BatchConfig(**{name: getattr(args, name) for name in names}, workers=workers)


def options_from(args: argparse.Namespace) -> Options:
    """Returns the layout options given by ``add_arguments``."""
    return Options(args.suffix, args.sockets, args.bids_filter_file, ignore=tuple(args.ignore))


def _part(text: str) -> Part:
    try:
        return Part.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected K/N with K from 1 to N, got {text}") from error


def with_output_folders(options: Options | None, output: Path, reports: ReportOptions | None) -> Options:
    """Returns the options with the folders that the run writes to, which are not searched for cases."""
    folders = (output, *([reports.folder] if reports is not None else []))
    return replace(options or Options(), outputs=folders)


def find_cases(
    source: Path,
    output: Path,
    layout_name: str | None = None,
    options: Options | None = None,
    reports: ReportOptions | None = None,
    part: Part | None = None,
) -> tuple[Layout, list[Case]]:
    """Finds the cases of a folder and logs their number and the unused files.

    Args:
        source: Input folder.
        output: Output folder.
        layout_name: One of ``layouts.LAYOUTS``, or None to detect it.
        options: Suffix, sockets and filters.
        reports: Destination of reports, if requested.
        part: Subset of the cases to return; None for all.

    Returns:
        The layout, and the cases in order of their names.

    Raises:
        PVSError: The folder holds no case.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be text
    layout = choose(source, layout_name, with_output_folders(options, output, reports))
    cases = layout.find_cases(source)
    log.info("%s: %d case%s (%s)", source, len(cases), "s"[: len(cases) != 1], layout.name)
    log_unused_files(source, cases, layout)
    if part is not None:
        cases = part.select(cases)
        log.info("part %d of %d: %d case%s", part.index, part.count, len(cases), "s"[: len(cases) != 1])
    return layout, cases


def unused_files(root: Path, cases: Sequence[Case], layout: Layout) -> Iterator[tuple[Path, str]]:
    """Yields every file or folder below an input folder that belongs to no case, with the reason.

    Folders of other data are listed as a whole. Of many files in one folder with one reason, only the first is listed.
    Files beside the images of a case that cannot be run are covered by the message of that case.
    """
    used = {os.path.abspath(path) for case in cases for path in case.images.values()}
    above = {parent for path in used for parent in map(str, Path(path).parents)}
    failed = [case.problem for case in cases if case.problem is not None]
    seen = {os.path.realpath(root)}
    for folder, below, files in os.walk(root, followlinks=True):
        kept = []
        for name in sorted(below):
            path = Path(folder, name)
            if is_within(path, layout.options.outputs):
                yield path, "this run writes there"
            elif name.startswith("."):
                yield path, "hidden"
            elif layout.excludes(path):
                continue
            elif name in _NOT_SEARCHED:
                yield path, "other data"
            elif (real := os.path.realpath(path)) not in seen:  # a link may lead to a parent folder
                seen.add(real)
                kept.append(name)
        if not below and not files and not _named(Path(folder), failed):
            yield Path(folder), "empty"
        below[:] = kept
        taken = os.path.abspath(folder) in above
        reasons: dict[str, list[str]] = {}
        for name in sorted(files):
            path = Path(folder, name)
            mentioned = _named(path, failed) or (not taken and _named(Path(folder), failed))
            if os.path.abspath(path) not in used and not mentioned:
                why = "ignored" if layout.options.ignores(path, root) else _reason(path, taken)
                reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            shown = names if len(names) <= _MAX_LISTED else [f"{names[0]} and {len(names) - 1} more"]
            yield from ((Path(folder, name), why) for name in shown)


def _named(path: Path, problems: Sequence[str]) -> bool:
    """Whether the message of a case that cannot be run is about a file or folder."""
    return any(problem.startswith(f"{place}:") for problem in problems for place in (path, *path.parents))


def _reason(path: Path, taken: bool) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.name in _NOT_SEARCHED:
        return "other data"
    stem = image_stem(path.name)
    if stem is None:
        return "no image" if path.suffix or path.exists() else "a link that leads nowhere"
    sequence, why = explain(stem, path.parent.name)
    if sequence is None:
        return why
    return f"{sequence}, another file is taken" if taken else f"{sequence}, but not where cases are searched for"


def log_unused_files(root: Path, cases: Sequence[Case], layout: Layout) -> None:
    """Logs unused images and folders in one line; masks and other files beside images are left out."""
    quiet = ("no image", "hidden", "this run writes there", "a mask")
    left = [path for path, why in unused_files(root, cases, layout) if not why.startswith(quiet)]
    if left:
        shown = listed(path.relative_to(root).as_posix() for path in left)
        log.info("unused: %s (--dry-run lists the reasons)", escape_control_characters(shown))


def log_missing_weights(config: InferenceConfig) -> None:
    """Logs what a weights folder lacks; the anatomy network only where it is used."""
    for line in missing_parts(config.weights):
        if config.anatomy or "anatomy network" not in line:
            log.warning("%s", line)


def dry_run(
    source: Path,
    output: Path,
    layout_name: str | None,
    options: Options,
    reports: ReportOptions | None,
    resume: bool,
    part: Part | None = None,
) -> int:
    """Prints what a run would do: cases, which file is which sequence and why, and unused files.

    Returns:
        Exit status: 0 when every case can be run, else 1.

    Raises:
        PVSError: No case can be run at all.
    """
    layout = choose(source, layout_name, with_output_folders(options, output, reports))
    cases = layout.find_cases(source)
    lines = [f"{source}: {len(cases)} case{'s'[: len(cases) != 1]} ({layout.name})"]
    failed = 0
    for case in cases if part is None else part.select(cases):
        problem = case.problem or name_conflict(case, output)
        failed += problem is not None
        if problem is not None:
            lines.append(f"{case.name}: cannot be run: {problem}")
            continue
        complete = resume and is_complete(case, layout, output, None)
        lines.append(f"{case.name}: {'is there already: ' if complete else ''}{output / case.output}")
        for sequence, path in case.images.items():
            stem = image_stem(path.name) or path.name
            explained, why = explain(stem, path.parent.name)
            if explained != sequence:
                why = "FreeSurfer's" if path.name in STAGES[sequence] else "by the name of its folder"
            lines.append(f"  {sequence:5} {path.relative_to(source)}  ({why})")
    left = [f"  {path.relative_to(source)}  ({why})" for path, why in unused_files(source, cases, layout)]
    lines += [f"unused: {len(left)}", *left] if left else ["unused: nothing"]
    sys.stdout.writelines(f"{escape_control_characters(line)}\n" for line in lines)
    return 1 if failed else 0

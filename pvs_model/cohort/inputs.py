"""What a run takes from its input folder: cases, their files and why, and what is passed over."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pvs_model.cohort.case import Reports, is_done, printable, refusal
from pvs_model.config import InferenceConfig
from pvs_model.inference.weights import missing_parts
from pvs_model.layouts import Layout, Options, choose
from pvs_model.layouts.base import is_within, listed
from pvs_model.layouts.freesurfer import STAGES
from pvs_model.layouts.names import explain, image_stem
from pvs_model.types import Case

log = logging.getLogger(__name__)

#: Folders that no layout looks into; they are named as a whole.
_AS_A_WHOLE = frozenset({"derivatives", "sourcedata", "fsaverage", "lost+found"})
#: The most files of one folder and one reason that are named one by one.
_ONE_BY_ONE = 8


def with_outputs(options: Options | None, output: Path, reports: Reports | None) -> Options:
    """The options, with the folders that the run writes to."""
    folders = (output, *([reports.folder] if reports is not None else []))
    return replace(options or Options(), outputs=folders)


def passed_over(root: Path, cases: Sequence[Case], layout: Layout) -> Iterator[tuple[Path, str]]:
    """Everything below an input folder that belongs to no case, with the reason.

    Folders of other data are named as a whole; of many files that lie in one folder for one reason, the first is named.
    What lies beside the images of a case that cannot be run is left to the sentence on that case.
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
            elif name in _AS_A_WHOLE:
                yield path, "other data"
            elif (real := os.path.realpath(path)) not in seen:  # a link may lead to where it lies
                seen.add(real)
                kept.append(name)
        if not below and not files and not _named(Path(folder), failed):
            yield Path(folder), "empty"
        below[:] = kept
        taken = os.path.abspath(folder) in above
        reasons: dict[str, list[str]] = {}
        for name in sorted(files):
            path = Path(folder, name)
            told = _named(path, failed) or (not taken and _named(Path(folder), failed))
            if os.path.abspath(path) not in used and not told:
                why = "ignored" if layout.options.ignores(path, root) else _reason(path, taken)
                reasons.setdefault(why, []).append(name)
        for why, names in reasons.items():
            shown = names if len(names) <= _ONE_BY_ONE else [f"{names[0]} and {len(names) - 1} more"]
            yield from ((Path(folder, name), why) for name in shown)


def _named(path: Path, problems: Sequence[str]) -> bool:
    """Whether the sentence on a case that cannot be run is about a file or folder."""
    return any(problem.startswith(f"{place}:") for problem in problems for place in (path, *path.parents))


def _reason(path: Path, taken: bool) -> str:
    if path.name.startswith("."):
        return "hidden"
    if path.name in _AS_A_WHOLE:
        return "other data"
    stem = image_stem(path.name)
    if stem is None:
        return "no image" if path.suffix or path.exists() else "a link that leads nowhere"
    sequence, why = explain(stem, path.parent.name)
    if sequence is None:
        return why
    return f"{sequence}, another file is taken" if taken else f"{sequence}, but not where cases are looked for"


def tell_passed_over(root: Path, cases: Sequence[Case], layout: Layout) -> None:
    """Log in one line what images and folders are passed over; masks and other files beside images are not worth it."""
    quiet = ("no image", "hidden", "this run writes there", "a mask")
    left = [path for path, why in passed_over(root, cases, layout) if not why.startswith(quiet)]
    if left:
        shown = listed(path.relative_to(root).as_posix() for path in left)
        log.info("passed over: %s (--dry-run says why)", printable(shown))


def tell_lacking(settings: InferenceConfig) -> None:
    """Log what the weights folder of a run lacks; the anatomy network only where it is wanted."""
    for line in missing_parts(settings.weights):
        if settings.anatomy or "anatomy network" not in line:
            log.warning("%s", line)


def dry_run(
    source: Path, output: Path, layout_name: str | None, options: Options, reports: Reports | None, resume: bool
) -> int:
    """Print what a run would do: cases, which file is which sequence and why, and what is passed over.

    Returns:
        0 when every case can be run; 1 when one cannot.

    Raises:
        PVSError: no case can be run at all.
    """
    layout = choose(source, layout_name, with_outputs(options, output, reports))
    cases = layout.find_cases(source)
    lines = [f"{source}: {len(cases)} case{'s'[: len(cases) != 1]} ({layout.name})"]
    wrong = 0
    for case in cases:
        problem = case.problem or refusal(case, output)
        wrong += problem is not None
        if problem is not None:
            lines.append(f"{case.name}: cannot be run: {problem}")
            continue
        done = resume and is_done(case, layout, output, None)
        lines.append(f"{case.name}: {'is there already: ' if done else ''}{output / case.output}")
        for sequence, path in case.images.items():
            stem = image_stem(path.name) or path.name
            found, why = explain(stem, path.parent.name)
            if found != sequence:
                why = "FreeSurfer's" if path.name in STAGES[sequence] else "by the name of its folder"
            lines.append(f"  {sequence:5} {path.relative_to(source)}  ({why})")
    left = [f"  {path.relative_to(source)}  ({why})" for path, why in passed_over(source, cases, layout)]
    lines += [f"passed over: {len(left)}", *left] if left else ["passed over: nothing"]
    sys.stdout.writelines(f"{printable(line)}\n" for line in lines)
    return 1 if wrong else 0

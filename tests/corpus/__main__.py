"""Run the corpus and write the table of docs/robustness.md, or only write the inputs.

    python -m tests.corpus --output docs/robustness.md
    python -m tests.corpus --make FOLDER
    python -m tests.corpus --only "gzip|name:"
    python -m tests.corpus --command "docker run --rm --network none -v {input}:/input:ro -v {output}:/output pvs-model"

Without ``--command`` the shipped networks run in windows of 48 voxels in place of 64 in 3D and 192 in 2D, on the CPU,
so that it takes a minute or two. With it, kinds about the output folder and reports are left out. The exit status is 0
when every kind came out as stated, known problems apart.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

from tests.corpus.base import ORIENTATIONS, dice, quick_weights
from tests.corpus.kinds import KINDS, MASK, REFUSED, WHOLE, FolderKind, Kind
from tests.corpus.runs import (
    Command,
    Loaded,
    Run,
    base_mask,
    judge,
    judge_shared,
    judge_whole,
    lightly,
    load,
    orientation_dice,
    possible,
    run_whole,
    runs_of,
    write_orientations,
    write_run,
)

BEGIN, END = "<!-- the table: written by python -m tests.corpus -->", "<!-- the table ends here -->"
ORIENTED = f"stored in {len(ORIENTATIONS)} orientations"
SHORT = 150
ROOT = "not run: the user is root"

Row = tuple[str, str, str, float | None]


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def short(text: str) -> str:
    """A sentence for a cell of the table."""
    text = text if len(text) <= SHORT else text[: SHORT - 3] + "..."
    return text.replace("|", "\\|").replace("<", "&lt;")


def shown(kind: Kind, run: Run, first: Loaded | None) -> str:
    """What a run said of a kind, in short."""
    sentence = run.sentence(kind.shown)
    if kind.outcome == REFUSED and sentence is not None:
        name = re.sub(rf"(?<![\w.-]){re.escape(kind.shown)}(?=[_/:]|$)", "CASE", sentence)
        return re.sub(r"(\S*/)+(?=CASE)", "", name.replace("CASE/CASE", "CASE"))
    warnings = run.warnings(kind.shown)
    if warnings:
        return warnings[0]
    if kind.same is not None and first is not None and os.path.isfile(run.mask(kind.folder)):
        return f"Dice {dice(first, load(run.mask(kind.folder)), kind.moved):.3f} with the base's mask"
    return ""


def row_of(kind: Kind | FolderKind, said: str, complaints: list[str], seconds: float | None) -> Row:
    if kind.known_problem is not None and complaints:
        said = f"known problem: {kind.known_problem}"
    return kind.name, kind.outcome, short(said), seconds


def report(name: str, complaints: list[str], known: bool = False) -> int:
    """Say complaints; how many of them count."""
    for complaint in complaints:
        say(f"{'known problem' if known else 'NOT AS STATED'}: {name}: {complaint:.600}")
    return 0 if known else len(complaints)


def run_all(folder: Path, command: Command, kinds: list[Kind], everything: bool) -> tuple[list[Row], int]:
    """Rows of the table, and how many complaints there were."""
    rows: dict[str, Row] = {}
    wrong = 0
    first: Loaded | None = None
    for number, group in enumerate(runs_of(kinds).values()):
        run = command(write_run(folder / str(number), group))
        first = first or base_mask(run)
        whole = judge_shared(run)
        if len(run.kinds) > 1:
            wrong += report(group[0].run, whole)
        for kind in group:
            complaints = judge(kind, run, first) if possible(kind) else []
            complaints += whole if len(run.kinds) == 1 else []
            wrong += report(kind.name, complaints, kind.known_problem is not None)
            said = shown(kind, run, first) if possible(kind) else ROOT
            rows[kind.name] = row_of(kind, said, complaints, run.seconds(kind.shown))
        say(f"{group[0].run}: {len(run.kinds)} kinds, {run.lines[-1][0] if run.lines else 0:.0f} s")
    out = [rows[kind.name] for kind in kinds]
    if not everything:
        return out, wrong
    run = command(write_orientations(folder / "orientations"))
    lowest = min(orientation_dice(run))
    wrong += report(ORIENTED, [] if lowest >= 0.999 else [f"lowest Dice {lowest:.4f}"])
    seconds = run.lines[-1][0] / len(ORIENTATIONS)
    out.append((ORIENTED, MASK, f"lowest Dice {lowest:.4f} with the mask of the first", seconds))
    say(f"{ORIENTED}: lowest Dice {lowest:.4f}")
    for number, about in enumerate(WHOLE):
        if not possible(about) or (about.output and command.foreign):
            out.append(row_of(about, "not run with --command" if about.output and command.foreign else ROOT, [], None))
            continue
        run = run_whole(about, folder / f"whole{number}", command)
        named = folder / f"whole{number}" / about.named if not command.foreign else "/input"
        complaints = judge_whole(about, run, named)
        wrong += report(about.name, complaints, about.known_problem is not None)
        out.append(row_of(about, re.sub(r"(?<=[\s(])/\S*/", "", run.last).removeprefix("error: "), complaints, None))
    return out, wrong


def table(rows: list[Row]) -> str:
    lines = ["| kind | outcome | sentence | s |", "| --- | --- | --- | --- |"]
    for name, outcome, said, seconds in rows:
        cell = "" if seconds is None else f"{seconds:.1f}"
        lines.append(f"| {short(name)} | {outcome} | {said} | {cell} |")
    return "\n".join(lines)


def stated() -> list[tuple[str, str]]:
    """Name and outcome of every row, as the docs must have them."""
    rows = [(kind.name, kind.outcome) for kind in KINDS] + [(ORIENTED, MASK)]
    return [(short(name), outcome) for name, outcome in [*rows, *((kind.name, kind.outcome) for kind in WHOLE)]]


def put(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a page; a new page holds them alone."""
    page = path.read_text(encoding="utf-8") if path.is_file() else f"{BEGIN}\n{END}\n"
    before, rest = page.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="PAGE", help="the page whose table is written anew")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="write the inputs, run nothing")
    parser.add_argument("--command", help="another program, with {input} and {output}")
    parser.add_argument("--only", help="regular expression of the names of kinds")
    args = parser.parse_args()
    kinds = KINDS if args.only is None else lightly(KINDS, args.only)
    if args.make is not None:
        for name, group in runs_of(kinds).items():
            write_run(args.make / name.replace(" ", "-"), group)
        write_orientations(args.make / "orientations")
        return 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        os.chmod(scratch, 0o755)  # a container reads as a user of its own
        folder = Path(scratch)
        command = Command(args.command, None if args.command else quick_weights(folder / "weights"))
        rows, wrong = run_all(folder, command, kinds, args.only is None)
    if args.output is None:
        say(table(rows))
    else:
        put(args.output, table(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

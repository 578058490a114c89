"""Writing the corpus, running the program over it, and judging what came out."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pvs_model.types import SEQUENCES
from pvs_model.volume.io import read_grid
from tests.corpus.base import ORIENTATIONS, ROOT, Affine, base, dice, nib, turn, turned
from tests.corpus.kinds import KINDS, REFUSED, WARNED, FolderKind, Kind, is_root
from tests.corpus.place import Place
from tests.processes import PROCESS, Python

ALL = "cases"
NAMES = "names"
#: A good case that comes last in the runs of one kind: it shows that the others go on.
GOOD = "~good"
#: Below this number of cases OpenVINO takes longer to start than it saves.
FEW_CASES = 10
#: All orientations are tilted, so that their affines are no mere permutations.
TILT = turn(7.0, -5.0, 11.0)


@dataclass
class Run:
    """One process over one input folder.

    Attributes:
        source, output, report: its folders.
        lines: what it wrote to stdout, each line with the second at which it came.
        stderr: all of it.
        status: the exit status.
    """

    source: Path
    output: Path
    report: Path | None
    kinds: tuple[Kind, ...]
    lines: list[tuple[float, str]] = field(default_factory=list)
    stderr: str = ""
    status: int = 0

    @property
    def stdout(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def last(self) -> str:
        return (self.stderr.strip().splitlines() or [""])[-1]

    def sentence(self, case: str) -> str | None:
        """What stderr says of a case that failed."""
        for line in self.stderr.splitlines():
            message = re.sub(r"^error: (\d+ cases failed, the last: )?", "", line)
            if message != line and message.startswith(f"{case}: "):
                return message.removeprefix(f"{case}: ")
        return None

    def messages(self, case: str) -> list[str]:
        """What stdout says of a case, stages and warnings, without the time of day."""
        return [line[9:].removeprefix(f"{case}: ") for _, line in self.lines if line[9:].startswith(f"{case}: ")]

    def warnings(self, case: str) -> list[str]:
        stage = r"[a-z]+( \(.*\))? [\d.]+ s|wrote .*"
        return [line for line in self.messages(case) if not re.fullmatch(stage, line) and line != self.sentence(case)]

    def seconds(self, case: str) -> float | None:
        """From the end of the case before to its own last line."""
        own = [at for at, line in self.lines if line[9:].startswith(f"{case}: ")]
        before = [at for at, _ in self.lines if own and at < own[0]]
        return own[-1] - before[-1] if own and before else None

    def mask(self, case: str) -> Path:
        return self.output / case / f"{case}_pred.nii.gz"


class Command:
    """How the program is started.

    Args:
        text: a command with the placeholders {input} and {output}; None for ``process.py`` of this repository.
        weights: the weights folder of the latter.
    """

    def __init__(self, text: str | None = None, weights: Path | None = None) -> None:
        self.foreign = text is not None
        own = ["--input", "{input}", "--output", "{output}", "--no-anatomy", "--device", "cpu"]
        own += ["--weights", str(weights)] if weights else []
        self.words = shlex.split(text) if text is not None else own

    def __call__(self, run: Run) -> Run:
        """Run it to its end, and take down what it says."""
        words = [w.replace("{input}", str(run.source)).replace("{output}", str(run.output)) for w in self.words]
        if self.foreign:  # a container writes as a user of its own
            run.output.mkdir(parents=True)
            run.output.chmod(0o777)
            run.report = None
        if run.report is not None:
            words += ["--report", str(run.report)]
        if not self.foreign and len(list(run.source.glob("*"))) < FEW_CASES:
            words += ["--backend", "torch"]
        with _started(words, self.foreign) as child:
            assert child.stdout is not None and child.stderr is not None
            began = time.perf_counter()
            for line in child.stdout:
                run.lines.append((time.perf_counter() - began, line.rstrip("\n")))
            run.stderr = child.stderr.read()
            run.status = child.wait()
        return run


def _started(words: list[str], foreign: bool) -> subprocess.Popen[str] | Python:
    if not foreign:
        return Python(PROCESS, words)
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        errors="surrogateescape", pipesize=2**20,
    )  # fmt: skip


# ---- writing -------------------------------------------------------------------------------------------------------


def possible(kind: Kind | FolderKind) -> bool:
    """Whether this user can be shown it."""
    return not (kind.not_as_root and is_root())


def write_kind(kind: Kind, source: Path) -> None:
    at = Place(source / kind.folder, base())
    kind.make(at)
    for sequence in kind.others:
        at(f"_{sequence}.nii.gz").write_bytes(at.base.packed[sequence])


def write_run(folder: Path, kinds: Iterable[Kind]) -> Run:
    """The input of one process, ``folder/in``."""
    kinds = tuple(kind for kind in kinds if possible(kind))
    source = folder / "in"
    source.mkdir(parents=True)
    for kind in kinds:
        write_kind(kind, source)
    if kinds[0].run not in (ALL, NAMES, "large"):
        write_kind(Kind("", "", lambda at: None, case=GOOD, others=("T2w",)), source)
    reported = any(kind.name.startswith("name: ") for kind in kinds)
    return Run(source, folder / "out", folder / "report" if reported else None, kinds)


def write_orientations(folder: Path) -> Run:
    """48 cases; T2w in each orientation, T1w in the orientation 17 further on, FLAIR in the first."""
    affine = TILT @ base().affine
    for number in range(len(ORIENTATIONS)):
        at = Place(folder / "in" / f"{number:02}", base())
        for sequence, further in zip(SEQUENCES, (number + 17, number, 0), strict=True):
            way = ORIENTATIONS[further % len(ORIENTATIONS)]
            at.nifti(*turned(base().images[sequence], affine, *way), sequence=sequence)
    return Run(folder / "in", folder / "out", None, ())


def runs_of(kinds: Iterable[Kind] = KINDS) -> dict[str, list[Kind]]:
    """Kinds by the process that they share."""
    out: dict[str, list[Kind]] = {}
    for kind in kinds:
        out.setdefault(kind.run, []).append(kind)
    return out


# ---- judging -------------------------------------------------------------------------------------------------------

Loaded = tuple[Any, Affine]


def load(path: Path) -> Loaded:
    image = nib.load(path)
    return np.asarray(image.dataobj), np.array(image.affine, np.float64)


def base_mask(run: Run) -> Loaded:
    """The mask of the base as it is."""
    return load(run.mask("00-plain"))


def reference(kind: Kind, source: Path) -> Path:
    """The file that the case's ``file`` names."""
    folder = source / kind.folder
    return folder / kind.file[1:] if kind.file.startswith("/") else folder / f"{kind.folder}{kind.file}"


def judge_run(run: Run, cases: Iterable[str], fails: bool) -> list[str]:
    """Complaints about a run as a whole.

    Args:
        run: it has ended.
        cases: that may have a mask.
        fails: whether a case of it is to be refused.
    """
    complaints = []
    for word in ("Traceback", "unexpected"):
        if word in run.stdout + run.stderr:
            complaints.append(f"{word!r} in what it said: {run.stderr[-2000:]}")
    if run.status != int(fails):
        complaints.append(f"exit status {run.status}, expected {int(fails)}; last: {run.last}")
    if fails and not run.last.startswith("error: "):
        complaints.append(f"the last line on stderr is {run.last!r}")
    if not fails and run.stderr.strip():
        complaints.append(f"stderr is not empty: {run.stderr[-2000:]}")
    allowed = {run.mask(case) for case in cases}
    odd = [path for path in run.output.rglob("*") if not path.is_dir() and path not in allowed]
    odd += list(run.output.rglob(".*"))
    complaints += [f"{path} lies in the output" for path in odd]
    if run.report is not None:
        complaints += judge_report(run.report)
    return complaints


def judge_report(folder: Path) -> list[str]:
    """Complaints about a report: names of cases must be no markup, and no formula to a spreadsheet."""
    complaints = []
    for page in folder.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        complaints += [f"{page.name}: {bad} stands in it" for bad in ("<script>alert", "<img src=x") if bad in text]
    for path in folder.glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        complaints += [f"{path.name}: a cell is {cell!r}" for cell in cells if re.match(r"[=+@]|-(?![\d.])", cell)]
    return complaints


def judge_shared(run: Run) -> list[str]:
    """Complaints about a process that several kinds share, or a kind and the good case."""
    cases = [kind.folder for kind in run.kinds]
    lonely = (run.source / GOOD).is_dir()
    complaints = judge_run(run, [*cases, GOOD], any(kind.outcome == REFUSED for kind in run.kinds))
    if lonely and not run.mask(GOOD).is_file():
        complaints.append("the good case beside it has no mask")
    return complaints


def judge(kind: Kind, run: Run, first: Loaded | None) -> list[str]:
    """Complaints about one kind.

    Args:
        kind: one of the run's.
        run: it has ended.
        first: the base's mask; None where the kind's needs no comparison.
    """
    sentence, made = run.sentence(kind.shown), run.mask(kind.folder)
    there = os.path.isfile(made)  # which is False, and no error, where the name is too long for a file
    if kind.outcome == REFUSED:
        if sentence is None:
            return ["not refused" + (", a mask was written" if there else ", and no mask was written")]
        wanted = f".*{re.escape(kind.shown + kind.file)}: (?:{kind.says})"
        complaints = [] if re.match(wanted, sentence) else [f"it says {sentence!r}"]
        return complaints + (["a mask was written"] if there else [])
    if sentence is not None or not there:
        return [f"no mask: {sentence or run.last}"]
    mask, affine = load(made)
    stored = read_grid(reference(kind, run.source))
    complaints = []
    if mask.dtype != np.uint8 or not set(np.unique(mask)) <= {0, 1}:
        complaints.append(f"the mask is {mask.dtype} with {np.unique(mask)[:9]}")
    if mask.shape != stored.shape or not np.allclose(affine, stored.affine, rtol=1e-5, atol=1e-4):
        complaints.append(f"the mask lies on {mask.shape}, {affine}, its reference on {stored}")
    warnings = run.warnings(kind.shown)
    if kind.outcome == WARNED and not any(re.search(kind.says, warning) for warning in warnings):
        complaints.append(f"it warns of {warnings}")
    if kind.same is not None:
        assert first is not None
        overlap = dice(first, (mask, affine), kind.moved)
        if overlap < kind.same:
            complaints.append(f"Dice {overlap:.4f} with the mask of the base, expected {kind.same}")
        complaints += [f"it warns: {warning}" for warning in warnings]
    return complaints


def orientation_dice(run: Run) -> list[float]:
    """Dice of the mask in each orientation with that in the first."""
    masks = [load(run.mask(f"{number:02}")) for number in range(len(ORIENTATIONS))]
    return [dice(masks[0], mask) for mask in masks]


def run_whole(kind: FolderKind, folder: Path, command: Command) -> Run:
    folder.mkdir(parents=True)
    source, output = kind.make(folder)
    try:
        return command(Run(source, output, None, ()))
    finally:
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


def judge_whole(kind: FolderKind, run: Run, named: Path | str) -> list[str]:
    """Complaints about a run that ends before its first case. ``named`` is the path that it must name."""
    complaints = []
    if "Traceback" in run.stderr or "unexpected" in run.stderr:
        complaints.append(run.stderr[-2000:])
    if run.status != kind.status:
        complaints.append(f"exit status {run.status}, expected {kind.status}")
    if not re.match(kind.says.format(re.escape(str(named))), run.last):
        complaints.append(f"it says {run.last!r}")
    return complaints


def lightly(kinds: Iterable[Kind], only: str) -> list[Kind]:
    """Those whose name matches, with the plain one that others are compared with."""
    return [kind for kind in kinds if kind.name == "plain" or re.search(only, kind.name)]

"""Cases per minute and memory of ``process.py`` over many cases, with and without workers.

    python -m benchmarks.many [--cases 50] [--workers 0 1 2] [--repeats 3] [--json FILE] [-- OPTION ...]

A few small phantoms are simulated and linked under many names; with ``--source DIR`` those of a folder in the ``epvs``
layout. Runs with each number of workers take turns, so that what else the machine does falls on all of them alike;
ratios are to the first number, within each round. Memory is what is resident when a case is written: its slope over the
second half of the cases, and its maximum. What stands after ``--`` goes to ``process.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One run of ``process.py``.

    Attributes:
        seconds: from start to end, imports included.
        cpu_seconds: user and system, all threads.
        resident_mib: when each case was written.
        peak_mib: the highest at any time.
    """

    workers: int
    cases: int
    seconds: float
    cpu_seconds: float
    resident_mib: tuple[float, ...]
    peak_mib: float

    @property
    def cases_per_minute(self) -> float:
        return 60 * self.cases / self.seconds

    @property
    def slope_mib(self) -> float:
        """MiB per 100 cases, a straight line through the second half: the first fills pools that are used again."""
        half = self.resident_mib[len(self.resident_mib) // 2 :]
        return 100 * float(np.polyfit(np.arange(len(half)), half, 1)[0]) if len(half) > 1 else 0.0


def measure(source: Path, workers: int, more: Sequence[str] = ()) -> Run:
    """Segment a folder.

    Raises:
        SystemExit: when it fails.
    """
    page_mib = os.sysconf("SC_PAGE_SIZE") / 2**20
    resident = []
    with tempfile.TemporaryDirectory() as output:
        given = ["--input", str(source), "--output", output, "--workers", str(workers)]
        began = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, str(ROOT / "process.py"), *given, *more],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if ": wrote " in line:
                resident.append(int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * page_mib)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"process.py failed on {source} (status {status})")
    cpu = usage.ru_utime + usage.ru_stime
    return Run(workers, len(resident), seconds, cpu, tuple(resident), usage.ru_maxrss / 1024)


def linked(phantoms: Path, folder: Path, cases: int) -> None:
    """A folder of so many cases: links to those of another, in turn."""
    found = sorted(path for path in phantoms.iterdir() if path.is_dir() and not path.name.startswith("."))
    for number in range(cases):
        one, name = found[number % len(found)], f"case{number:04d}"
        (folder / name).mkdir(parents=True)
        for sequence in ("T1w", "T2w", "FLAIR"):
            image = one / f"{one.name}_{sequence}.nii.gz"
            if image.is_file():
                (folder / name / f"{name}_{sequence}.nii.gz").symlink_to(image.resolve())


def simulated(folder: Path, count: int, voxel_mm: float) -> None:
    """Phantoms, by a process of their own: a child starts out with the peak memory of its parent."""
    voxel = [str(voxel_mm)] * 3
    command = [sys.executable, "-m", "pvs_model", "simulate", "--output", str(folder), "--count", str(count)]
    subprocess.run([*command, "--voxel-mm", *voxel], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def summary(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Medians for each number of workers; ratios to the first of them in the same round."""
    order = list(dict.fromkeys(run.workers for run in runs))
    by = {workers: [run for run in runs if run.workers == workers] for workers in order}
    out = []
    for workers, mine in by.items():
        pairs = list(zip(mine, by[order[0]], strict=True))
        values = {
            "cases_per_minute": [run.cases_per_minute for run in mine],
            "times_as_fast": [first.seconds / run.seconds for run, first in pairs],
            "cpu_ratio": [run.cpu_seconds / first.cpu_seconds for run, first in pairs],
            "peak_mib": [run.peak_mib for run in mine],
            "slope_mib_per_100": [run.slope_mib for run in mine],
        }
        medians = {name: round(statistics.median(found), 3) for name, found in values.items()}
        out.append({"workers": workers, **medians, "max_resident_mib": max(max(run.resident_mib) for run in mine)})
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--source", type=Path, metavar="DIR", help="cases to link (default: simulated phantoms)")
    parser.add_argument("--distinct", type=int, default=3, help="phantoms to simulate")
    parser.add_argument("--voxel-mm", type=float, default=3.0, help="of the phantoms; from 2.5 on the 2D network runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("more", nargs="*", metavar="OPTION", help="after --: options of process.py")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        phantoms = args.source or Path(scratch) / "phantoms"
        if args.source is None:
            simulated(phantoms, args.distinct, args.voxel_mm)
        linked(phantoms, Path(scratch) / "in", args.cases)
        runs = []
        for number in range(args.repeats):
            for workers in args.workers:
                runs.append(run := measure(Path(scratch) / "in", workers, args.more))
                print(
                    f"round {number + 1}, workers {workers}: {run.seconds:.1f} s, {run.cpu_seconds:.1f} s of CPU, "
                    f"{run.peak_mib:.0f} MiB",
                    flush=True,
                )
    print(f"\n{args.cases} cases, medians of {args.repeats}")
    print("| workers | cases per minute | times as fast | CPU | peak MiB | most at a case's end | MiB per 100 cases |")
    print("|" + " --- |" * 7)
    rows = summary(runs)
    for row in rows:
        print(
            f"| {row['workers']} | {row['cases_per_minute']:.1f} | {row['times_as_fast']:.2f} | {row['cpu_ratio']:.2f} "
            f"| {row['peak_mib']:.0f} | {row['max_resident_mib']:.0f} | {row['slope_mib_per_100']:+.1f} |"
        )
    if args.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        content = {"machine": machine, "cases": args.cases, "results": rows, "runs": [asdict(run) for run in runs]}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

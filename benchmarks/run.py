"""Seconds per stage and peak memory of ``process.py``, as medians over whole runs.

    python -m benchmarks.run [--repeats 3] [--json FILE] [--case NAME=FOLDER ...]

Without ``--case`` two simulated phantoms are measured: 1 mm isotropic (3D network) and 0.72 x 0.72 x 6 mm
(2D network). ``start`` is everything before the first image is read: interpreter, imports, finding the
cases. Ratios are of the stage to the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = re.compile(r": (read|prepare|load|predict)(?: \(([^)]*)\))? ([0-9.]+) s")


def measure(source: Path) -> dict[str, float | str]:
    """One run of ``process.py`` over a folder: seconds per stage, peak memory in MiB."""
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "process.py"), "--input", str(source), "--output", output]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert child.stdout is not None
        out: dict[str, float | str] = {}
        for line in child.stdout:
            if "start" not in out:  # the first line is logged once the cases are found
                out["start"] = time.perf_counter() - began
            found = STAGE.search(line)
            if found:
                out[found[1]] = float(found[3])
                if found[2]:
                    out["how"] = found[2]
        _, status, usage = os.wait4(child.pid, 0)
        out["total"] = time.perf_counter() - began
        out["peak_mib"] = usage.ru_maxrss / 1024
    if status:
        raise SystemExit(f"process.py failed on {source} (status {status})")
    stages = [float(out[name]) for name in ("start", "read", "prepare", "load", "predict")]
    out["write"] = float(out["total"]) - sum(stages)
    return out


def simulated(folder: Path) -> dict[str, Path]:
    """Two phantoms, written as cases.

    By a process of their own: a child starts out with the peak memory of its parent, so this one stays small.
    """
    cases = {"phantom 1 mm": ("1", "1", "1"), "phantom 0.72 x 0.72 x 6 mm": ("0.72", "0.72", "6")}
    out = {}
    for number, (name, voxel) in enumerate(cases.items()):
        out[name] = folder / str(number)
        command = [sys.executable, "-m", "pvs_model", "simulate", "--output", str(out[name]), "--voxel-mm", *voxel]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return out


def main() -> None:
    """Measure and print a table; JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", action="append", default=[], metavar="NAME=FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = dict(item.split("=", 1) for item in args.case)
        cases = {name: Path(folder) for name, folder in given.items()} or simulated(Path(scratch))
        results = {}
        for name, folder in cases.items():
            runs = [measure(folder) for _ in range(args.repeats)]
            keys = ("start", "read", "prepare", "load", "predict", "write", "total", "peak_mib")
            median = {key: round(statistics.median(float(run[key]) for run in runs), 2) for key in keys}
            results[name] = {"how": runs[0]["how"], "repeats": args.repeats, **median}
            share = median["predict"] / median["total"]
            print(f"{name} ({runs[0]['how']}; median of {args.repeats})")
            print("  " + "  ".join(f"{key} {median[key]:.1f} s" for key in keys[:-1]))
            print(f"  peak memory {median['peak_mib']:.0f} MiB; prediction is {share:.0%} of the run", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Seconds per stage and peak memory of ``process.py``: medians over whole runs, variants in turn.

    python -m benchmarks.run [--repeats 3] [--variants openvino torch] [--members 1 5] [--json FILE] [--picture FILE]
                             [--case NAME=FOLDER ...]

Without ``--case`` three simulated phantoms (132 x 170 x 137 mm of brain) are measured: 1 mm and 0.5 mm isotropic (3D
network), and 0.45 x 0.45 x 6 mm (2D network). Members: networks per ensemble, made of the shipped one so many times,
which costs what so many folds would. ``start`` is everything before the first image is read: interpreter, imports,
finding the cases; ``write`` is what is left after the last stage. Runs of all variants are interleaved, so that a
machine that slows down slows all of them; ratios are to the first variant, round by round, then their median.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGE = re.compile(r": (read|align|anatomy|prepare|load|predict)(?: \(([^)]*)\))? ([0-9.]+) s$")
STAGES = ("start", "read", "align", "anatomy", "prepare", "load", "predict", "write")
#: What ``--variants`` may name: how ``process.py`` is called.
VARIANTS = {
    "auto": [],
    "openvino": ["--backend", "openvino"],
    "torch": ["--backend", "torch"],
    "cpu": ["--device", "cpu"],
    "no-anatomy": ["--no-anatomy"],
}
PHANTOMS = {
    "1 mm": ("1", "1", "1"),
    "0.5 mm": ("0.5", "0.5", "0.5"),
    "0.45 x 0.45 x 6 mm": ("0.45", "0.45", "6"),
}


def measure(source: Path, options: list[str]) -> dict[str, float | str]:
    """One run of ``process.py`` over a folder: seconds per stage, peak memory in MiB."""
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "process.py"), "--input", str(source), "--output", output, *options]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert child.stdout is not None
        out: dict[str, float | str] = dict.fromkeys(STAGES, 0.0)
        started = False
        for line in child.stdout:
            if not started:  # the first line is logged once the cases are found
                out["start"], started = time.perf_counter() - began, True
            found = STAGE.search(line.rstrip())
            if found:
                out[found[1]] = float(out[found[1]]) + float(found[3])
                if found[1] == "predict":
                    out["how"] = found[2]
        _, status, usage = os.wait4(child.pid, 0)
        out["total"] = time.perf_counter() - began
        out["peak_mib"] = usage.ru_maxrss / 1024
    if status:
        raise SystemExit(f"process.py failed on {source} (status {status})")
    out["write"] = float(out["total"]) - sum(float(out[name]) for name in STAGES[:-1])
    return out


def simulated(folder: Path, names: list[str]) -> dict[str, Path]:
    """Phantoms, written as cases.

    By a process of their own: a child starts out with the peak memory of its parent, so this one stays small.
    """
    out = {}
    for number, name in enumerate(names):
        out[name] = folder / str(number)
        command = [sys.executable, "-m", "pvs_model", "simulate", "--output", str(out[name]), "--voxel-mm"]
        subprocess.run([*command, *PHANTOMS[name]], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return out


def weights_with(folder: Path, members: int) -> Path:
    """The shipped weights, each ensemble's first network ``members`` times."""
    out = folder / f"weights_{members}"
    shutil.copytree(ROOT / "weights", out)
    manifest = json.loads((out / "MANIFEST.json").read_text())
    for ensemble in manifest["ensembles"].values():
        ensemble["members"] = ensemble["members"][:1] * members
    (out / "MANIFEST.json").write_text(json.dumps(manifest))
    return out


def summary(runs: list[dict[str, float | str]], base: list[dict[str, float | str]]) -> dict[str, Any]:
    """Medians of runs, and the median of the ratios to another variant's runs of the same rounds."""
    keys = (*STAGES, "total", "peak_mib")
    medians = {key: round(statistics.median(float(run[key]) for run in runs), 2) for key in keys}
    ratios = [float(run["total"]) / float(other["total"]) for run, other in zip(runs, base, strict=True)]
    totals = [round(float(run["total"]), 1) for run in runs]
    return {"how": runs[0]["how"], **medians, "totals": totals, "ratio": round(statistics.median(ratios), 3)}


def picture(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Where the time goes: one bar per case and variant, its stages side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.42 * len(results)), layout="constrained")
    names = list(results)
    left = [0.0] * len(names)
    for number, stage in enumerate(STAGES):
        seconds = [float(results[name][stage]) for name in names]
        axes.barh(names, seconds, left=left, label=stage, color=pyplot.get_cmap("tab10")(number), height=0.7)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.0f} s", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("seconds (medians of whole runs)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(ncols=len(STAGES), fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and print a table; JSON and a picture on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["auto"])
    parser.add_argument("--members", nargs="+", type=int, default=[1])
    parser.add_argument("--phantoms", nargs="+", choices=PHANTOMS, default=list(PHANTOMS))
    parser.add_argument("--case", action="append", default=[], metavar="NAME=FOLDER", help="in place of phantoms")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = {name: Path(folder) for name, folder in (item.split("=", 1) for item in args.case)}
        cases = given or simulated(Path(scratch), args.phantoms)
        weights = {n: weights_with(Path(scratch), n) for n in args.members}
        results = {}
        for name, folder in cases.items():
            ways = list(itertools.product(args.members, args.variants))
            runs: dict[tuple[int, str], list[dict[str, float | str]]] = {way: [] for way in ways}
            for _ in range(args.repeats):
                for members, variant in ways:
                    options = [*VARIANTS[variant], "--weights", str(weights[members])]
                    runs[members, variant].append(measure(folder, options))
            for members, variant in ways:
                label = f"{name}, {members} network{'s' if members > 1 else ''}, {variant}"
                results[label] = row = summary(runs[members, variant], runs[members, ways[0][1]])
                print(f"{label} ({row['how']}; median of {args.repeats}: {row['totals']})")
                print("  " + "  ".join(f"{key} {row[key]:.1f} s" for key in (*STAGES, "total")))
                told = f"{row['ratio']:.2f} times as long as {ways[0][1]}"
                print(f"  peak memory {row['peak_mib']:.0f} MiB; {told}", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        content = {"machine": machine, "repeats": args.repeats, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.picture:
        picture(results, args.picture)


if __name__ == "__main__":
    main()

"""Seconds per stage, CPU seconds and peak memory of ``process.py``: medians over whole runs, variants interleaved.

    python -m benchmarks.speed [--repeats 3] [--variants openvino torch] [--members 1 5] [--json FILE] [--picture FILE]
                               [--case NAME=FOLDER ...] [--weights DIR]

Without ``--case`` simulated phantoms (132 x 170 x 137 mm of brain) are measured: 1, 0.8 and 0.5 mm isotropic (3D
network), and 0.45 x 0.45 x 6 mm (2D network). ``--members`` is the number of networks per ensemble: copies of the
first one, which cost as much as folds would. ``cpu`` is the CPU time of the process, which does not depend on what
else the machine does. ``start`` is the time before the first image is read (interpreter,
imports, search for cases), ``write`` the time after the last stage. Runs of all variants are interleaved, so that a
machine that becomes slower affects all of them; ratios are to the first variant in each round, then their median.
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
#: Options of ``process.py`` by variant.
VARIANTS = {
    "auto": [],
    "openvino": ["--backend", "openvino"],
    "torch": ["--backend", "torch"],
    "cpu": ["--device", "cpu"],
    "no-anatomy": ["--no-anatomy"],
    "fast": ["--fast"],
    "report": ["--report", "{output}_report"],
}
PHANTOMS = {
    "1 mm": ("1", "1", "1"),
    "0.8 mm": ("0.8", "0.8", "0.8"),
    "0.5 mm": ("0.5", "0.5", "0.5"),
    "0.45 x 0.45 x 6 mm": ("0.45", "0.45", "6"),
}


def measure(source: Path, options: list[str]) -> dict[str, float | str]:
    """Runs ``process.py`` over a folder and measures seconds per stage and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as output:
        began = time.perf_counter()
        command = [sys.executable, str(ROOT / "process.py"), "--input", str(source), "--output", f"{output}/masks"]
        command += [option.format(output=f"{output}/masks") for option in options]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
        assert child.stdout is not None
        out: dict[str, float | str] = dict.fromkeys(STAGES, 0.0)
        started = False
        for line in child.stdout:
            if not started:  # the first line is logged once the cases are found
                out["start"], started = time.perf_counter() - began, True
            match = STAGE.search(line.rstrip())
            if match:
                stage, backend, seconds = match.groups()
                out[stage] = float(out[stage]) + float(seconds)
                if stage == "predict":
                    out["backend"] = backend
        _, status, usage = os.wait4(child.pid, 0)
        out["total"] = time.perf_counter() - began
        out["cpu"] = usage.ru_utime + usage.ru_stime
        out["peak_mib"] = usage.ru_maxrss / 1024
    if status:
        raise SystemExit(f"process.py failed on {source} (status {status})")
    out["write"] = float(out["total"]) - sum(float(out[name]) for name in STAGES[:-1])
    return out


def simulated(folder: Path, names: list[str]) -> dict[str, Path]:
    """Writes phantoms as cases, in a separate process.

    A child process inherits the peak memory of its parent, so this one has to stay small.
    """
    out = {}
    for number, name in enumerate(names):
        out[name] = folder / str(number)
        command = [sys.executable, "-m", "pvs_model", "simulate", "--output", str(out[name]), "--voxel-mm"]
        subprocess.run([*command, *PHANTOMS[name]], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return out


def weights_with(source: Path, folder: Path, members: int) -> Path:
    """Writes a weights folder with ``members`` copies of the first network of each ensemble of ``source``."""
    out = folder / f"weights_{members}"
    shutil.copytree(source, out)
    manifest = json.loads((out / "MANIFEST.json").read_text())
    for ensemble in manifest["ensembles"].values():
        ensemble["members"] = ensemble["members"][:1] * members
    (out / "MANIFEST.json").write_text(json.dumps(manifest))
    return out


def summary(runs: list[dict[str, float | str]], base: list[dict[str, float | str]]) -> dict[str, Any]:
    """Computes medians of runs, and the median of the ratios to the runs of another variant in the same rounds."""
    keys = (*STAGES, "total", "cpu", "peak_mib")
    medians = {key: round(statistics.median(float(run[key]) for run in runs), 2) for key in keys}
    ratios = [float(run["total"]) / float(other["total"]) for run, other in zip(runs, base, strict=True)]
    totals = [round(float(run["total"]), 1) for run in runs]
    return {"backend": runs[0]["backend"], **medians, "totals": totals, "ratio": round(statistics.median(ratios), 3)}


def picture(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws a stacked bar of the stages per case and variant."""
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
    """Measures and prints; writes JSON and a picture on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["auto"])
    parser.add_argument("--members", nargs="+", type=int, default=[1])
    parser.add_argument("--phantoms", nargs="+", choices=PHANTOMS, default=list(PHANTOMS))
    parser.add_argument("--case", action="append", default=[], metavar="NAME=FOLDER", help="instead of phantoms")
    parser.add_argument("--weights", type=Path, default=ROOT / "weights")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        given = {name: Path(folder) for name, folder in (item.split("=", 1) for item in args.case)}
        cases = given or simulated(Path(scratch), args.phantoms)
        weights = {n: weights_with(args.weights, Path(scratch), n) for n in args.members}
        results = {}
        for name, folder in cases.items():
            settings = list(itertools.product(args.members, args.variants))
            runs: dict[tuple[int, str], list[dict[str, float | str]]] = {setting: [] for setting in settings}
            for _ in range(args.repeats):
                for members, variant in settings:
                    options = [*VARIANTS[variant], "--weights", str(weights[members])]
                    runs[members, variant].append(measure(folder, options))
            for members, variant in settings:
                label = f"{name}, {members} network{'s' if members > 1 else ''}, {variant}"
                results[label] = row = summary(runs[members, variant], runs[members, settings[0][1]])
                print(f"{label} ({row['backend']}; median of {args.repeats}: {row['totals']})")
                print("  " + "  ".join(f"{key} {row[key]:.1f} s" for key in (*STAGES, "total", "cpu")))
                ratio = f"{row['ratio']:.2f} times as long as {settings[0][1]}"
                print(f"  peak memory {row['peak_mib']:.0f} MiB; {ratio}", flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        content = {"machine": machine, "repeats": args.repeats, "results": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if args.picture:
        picture(results, args.picture)


if __name__ == "__main__":
    main()

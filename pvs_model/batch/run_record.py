"""Records a run in ``run.json`` in the folder of reports: versions, weights, options, machine, cases, time and memory.

``run.json`` is that of the latest run; ``runs/`` keeps one of every run, such as the parts of a job array.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pvs_model import files
from pvs_model.batch.inputs import Part
from pvs_model.batch.outputs import ResultWriter
from pvs_model.config import BatchConfig
from pvs_model.layouts import Layout

#: What the record of a case takes from its report.
_METADATA = (
    "network", "members", "backend", "threshold", "low_threshold", "prompt", "reference", "spacing_mm", "warnings",
)  # fmt: skip


def write_run_record(
    writer: ResultWriter, layout: Layout, source: Path, output: Path, config: BatchConfig, part: Part | None
) -> None:
    """Writes the record of a run that has ended or was stopped, where reports were requested.

    Args:
        writer: Results of the run, after ``close``.
        layout: Layout of the input.
        source: Input folder.
        output: Folder of the masks.
        config: Configuration of the inference.
        part: Part of the cases that was run; None for all.

    Raises:
        PVSError: The weights' manifest cannot be read, or the record cannot be written.
    """
    if writer.report is None:
        return
    from pvs_model.inference.provenance import versions, weights_summary

    record = {
        "command": sys.argv,
        "started": writer.started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - writer.started).total_seconds(), 1),
        "state": "complete" if writer.finished == len(writer.cases) else "stopped",
        "input": str(source.absolute()),
        "output": str(output.absolute()),
        "options": {
            **dataclasses.asdict(config),
            "layout": layout.name,
            **dataclasses.asdict(layout.options),
            "part": None if part is None else f"{part.index}/{part.count}",
        },
        "versions": versions(),
        "weights": weights_summary(config.weights),
        "machine": {"host": socket.gethostname(), "cpus": os.cpu_count(), **_device()},
        "peak_memory_mib": _peak_memory(),
        "cases": _case_records(writer, output),
    }
    text = json.dumps(record, indent=1, allow_nan=False, default=str) + "\n"
    stem = f"{writer.started:%Y%m%dT%H%M%S.%fZ}_{socket.gethostname()}_{os.getpid()}"
    for name in (f"runs/{stem}.json", "run.json"):
        files.write_text(writer.report.folder / name, text)


def _case_records(writer: ResultWriter, output: Path) -> list[dict[str, Any]]:
    """What happened to each case: "written", "failed", "complete" (by an earlier run), or "not run"."""
    pending = {case.name for case in writer.pending}
    records = []
    for case in writer.cases:
        state = "not run" if case.name in pending else "complete"
        state = "failed" if case.name in writer.failures else "written" if case.name in writer.results else state
        record: dict[str, Any] = {"case": case.name, "state": state}
        record["images"] = {sequence: str(path) for sequence, path in case.images.items()}
        if state == "failed":
            record["problem"] = writer.failures[case.name]
        if state in ("written", "complete") and writer.report is not None:
            metadata = writer.report.metadata(case.name)
            record["mask"] = str(output / case.output)
            record |= {name: metadata[name] for name in _METADATA if name in metadata}
        if state == "written":
            record |= dataclasses.asdict(writer.results[case.name])
        records.append(record)
    return records


def _device() -> dict[str, Any]:
    """Threads and CUDA device of PyTorch in this process; nothing if no case has needed PyTorch here."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    used = torch.cuda.is_initialized()
    return {"threads": torch.get_num_threads(), "cuda": torch.cuda.get_device_name() if used else None}


def _peak_memory() -> dict[str, float]:
    """Largest memory of this process, of its largest ended child, and on the GPU, in MiB."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    kib = 2**20 if sys.platform == "darwin" else 2**10
    peak = {
        name: round(resource.getrusage(who).ru_maxrss / kib, 1)
        for name, who in (("process", resource.RUSAGE_SELF), ("children", resource.RUSAGE_CHILDREN))
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["cuda"] = round(torch.cuda.max_memory_reserved() / 2**20, 1)
    return peak

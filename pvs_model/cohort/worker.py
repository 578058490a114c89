"""What a worker process of a cluster does with one case. It writes files of that case alone, never a shared one.

Dask carries ``Order`` and ``Outcome`` between the processes of a run by pickle. No file is pickled or unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import io
import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.cohort.case import Reports, report_case, write
from pvs_model.config import InferenceConfig
from pvs_model.errors import DeviceError, PVSError, WeightsError
from pvs_model.layouts import Layout
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case

#: Errors of a network file system or a busy machine that may be gone at the next try; a full disk is none.
PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EINTR", "EBUSY", "ENOLCK", "EREMOTEIO", "ENOTCONN", "ECONNRESET"),
        *("ECONNABORTED", "ENETDOWN", "ENETUNREACH", "ENETRESET", "EHOSTDOWN", "EHOSTUNREACH", "ESHUTDOWN"),
    )
    if hasattr(errno, name)
)


@dataclass(frozen=True)
class Study:
    """What all cases of a run share. Paths are absolute and lead to the same folders on every machine.

    Attributes:
        source: input folder.
        output: folder of the masks.
        settings: how to run.
        layout: form of input and output.
        reports: where to write reports, if anywhere.
        version: of the package that began the run.
        manifest: SHA-256 of the manifest of the weights there, and with it of all weights.
    """

    source: Path
    output: Path
    settings: InferenceConfig
    layout: Layout
    reports: Reports | None
    version: str
    manifest: str


@dataclass(frozen=True)
class Order:
    """One case to be run."""

    study: Study
    case: Case


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        path: of the mask; None where none was written.
        voxels: of PVS.
        problem: one sentence where the case failed.
        again: another try may help.
        refusal: one sentence where this worker cannot run any case.
        seconds: that it took.
        host: name of the machine.
        told: (level, line) of what was logged.
        trace: traceback of an error that was not foreseen, for a log file.
    """

    path: Path | None = None
    voxels: int = 0
    problem: str | None = None
    again: bool = False
    refusal: str | None = None
    seconds: float = 0.0
    host: str = ""
    told: tuple[tuple[int, str], ...] = ()
    trace: str | None = None


def segment(order: Order) -> Outcome:
    """Segment a case and write its mask and its report. Every error comes back as a sentence; none is raised."""
    began, told = time.perf_counter(), _Told()
    with told.listening(), contextlib.redirect_stderr(io.StringIO()):  # bars of many processes would mix
        outcome = _segment(order)
    seconds = time.perf_counter() - began
    return replace(outcome, seconds=seconds, host=socket.gethostname(), told=tuple(told.lines))


def _segment(order: Order) -> Outcome:
    study, case = order.study, order.case
    try:
        _check(study)
        segmenter = _segmenter(study.settings, study.manifest)
    except PVSError as error:
        return Outcome(refusal=str(error))
    try:
        result = segmenter.segment(case)
        path = write(case, result, study.layout, study.output)
        if study.reports is not None:
            report_case(case, result, study.reports.open(study.output), study.reports.probability)
    except PVSError as error:
        if isinstance(error, DeviceError) and str(error).startswith("--device cuda"):
            return Outcome(refusal=str(error))  # its GPU is lost: it would fail all cases that are left
        return Outcome(problem=f"{case.name}: {error}", again=passing(error))
    except Exception as error:  # a bug of ours or of a library: the other cases still go on
        text = f"{case.name}: unexpected {type(error).__name__}: {' '.join(str(error).split())}"
        return Outcome(problem=text, again=passing(error), trace=traceback.format_exc())
    return Outcome(path, int(result.mask.sum()))


def passing(error: BaseException) -> bool:
    """Whether an error, or one that it came from, may be gone at the next try."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in PASSING:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def manifest_hash(weights: Path) -> str:
    """SHA-256 of the manifest of a weights folder, which holds those of its files.

    Raises:
        WeightsError: it cannot be read.
    """
    path = weights / "MANIFEST.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: expected the manifest of the weights, found: {error.strerror}") from error


def _check(study: Study) -> None:
    """Refuse to run where anything but the machine differs from where the run was begun.

    Raises:
        PVSError: another version, other weights, or a folder that is not there.
    """
    if study.version != __version__:
        raise PVSError(f"expected pvs_model {study.version}, as where the run was begun, found {__version__}")
    for folder in (study.source, study.output, *([study.reports.folder] if study.reports else [])):
        if not folder.is_dir():
            raise PVSError(f"{folder}: expected a folder that every machine shares, found none here")
    found = manifest_hash(study.settings.weights)
    if found != study.manifest:
        raise WeightsError(
            f"{study.settings.weights}: expected the weights that the run was begun with (manifest "
            f"{study.manifest[:12]}), found others ({found[:12]})"
        )


@lru_cache(maxsize=1)
def _segmenter(settings: InferenceConfig, manifest: str) -> Segmenter:
    """The networks of this process, loaded once; of other settings or weights: anew."""
    import torch
    from distributed import get_worker

    # Dask lets the processes of a worker compute with one thread. It runs one case at a time: torch takes all it has.
    with contextlib.suppress(ValueError):  # not in a worker
        torch.set_num_threads(get_worker().state.nthreads)
    return Segmenter(settings)


def dask_setup(worker: Any) -> None:
    """Called by Dask when a local worker starts: Ctrl-C is for the process that began the run, which then ends it."""
    del worker
    atexit.register(os._exit, 0)  # the interpreter takes seconds to take PyTorch apart, and would be killed over it
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Told(logging.Handler):
    """Keeps what the package logs, to be told where the run was begun."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        package = logging.getLogger("pvs_model")
        level, propagate = package.level, package.propagate
        package.addHandler(self)
        package.setLevel(logging.INFO)
        package.propagate = False
        try:
            yield
        finally:
            package.removeHandler(self)
            package.setLevel(level)
            package.propagate = propagate

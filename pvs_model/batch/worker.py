"""Segments one case in a worker process. It writes files of that case only, never one that cases share.

Dask pickles ``RunConfig``, ``Case`` and ``TaskResult`` between the processes of a run. No file is pickled or unpickled.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import logging
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, replace
from functools import lru_cache
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from pvs_model import __version__
from pvs_model.batch.outputs import ReportOptions, describe_failure, report_case, write_case
from pvs_model.config import MANIFEST, InferenceConfig
from pvs_model.errors import DeviceError, PVSError, WeightsError
from pvs_model.files import sha256_of
from pvs_model.layouts import Layout
from pvs_model.pipeline import Segmenter
from pvs_model.types import Case

log = logging.getLogger(__name__)

#: Errors of a network file system or a busy machine that may not recur. A full disk is not one of them.
TRANSIENT_ERRORS = frozenset({
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENOLCK, errno.EREMOTEIO,
    errno.ENOTCONN, errno.ECONNRESET, errno.ECONNABORTED, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESHUTDOWN,
})  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Configuration shared by all cases of a run. Paths are absolute and valid on every machine.

    Attributes:
        source: Input folder.
        output: Folder of the masks.
        inference: Configuration of the inference.
        layout: Layout of input and output.
        reports: Destination of reports, if requested.
        version: Version of the package that started the run.
        manifest: SHA-256 of the manifest of its weights, which holds those of the weights files.
    """

    source: Path
    output: Path
    inference: InferenceConfig
    layout: Layout
    reports: ReportOptions | None
    version: str
    manifest: str


@dataclass(frozen=True)
class TaskResult:
    """Result of one case.

    Attributes:
        path: Path of the mask; None where none was written.
        voxels: Number of PVS voxels.
        problem: One sentence where the case failed.
        transient: Whether the problem may not recur.
        worker_error: One sentence where this worker cannot run any case.
        seconds: Duration.
        host: Name of the machine.
        messages: Log records, as (level, message).
    """

    path: Path | None = None
    voxels: int = 0
    problem: str | None = None
    transient: bool = False
    worker_error: str | None = None
    seconds: float = 0.0
    host: str = ""
    messages: tuple[tuple[int, str], ...] = ()


def segment_case(config: RunConfig, case: Case) -> TaskResult:
    """Segments a case and writes its mask and its report. Errors are returned, never raised."""
    began = time.perf_counter()
    records, package = BufferingHandler(sys.maxsize), logging.getLogger("pvs_model")
    before = package.level, package.propagate
    package.addHandler(records)
    package.setLevel(logging.DEBUG)
    package.propagate = False
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars of several processes would mix
            result = _segment_case(config, case)
    finally:
        package.removeHandler(records)
        package.setLevel(before[0])
        package.propagate = before[1]
    messages = tuple((record.levelno, record.getMessage()) for record in records.buffer)
    return replace(result, seconds=time.perf_counter() - began, host=socket.gethostname(), messages=messages)


def _segment_case(config: RunConfig, case: Case) -> TaskResult:
    try:
        check_worker(config)
        segmenter = _segmenter(config.inference, config.manifest)
    except (PVSError, OSError) as error:
        if is_transient(error):
            return TaskResult(problem=describe_failure(case, error), transient=True)
        return TaskResult(worker_error=str(error))
    try:
        result = segmenter.segment(case)
        path = write_case(case, result, config.layout, config.output)
        if config.reports is not None:
            report_case(case, result, config.reports.open(config.output), config.reports)
    except Exception as error:  # also a bug of this package or of a library: the other cases continue
        if isinstance(error, DeviceError) and str(error).startswith("--device cuda"):
            return TaskResult(worker_error=str(error))  # its GPU is lost: all other cases would fail, too
        log.debug("%s", traceback.format_exc())
        return TaskResult(problem=describe_failure(case, error), transient=is_transient(error))
    return TaskResult(path, int(result.mask.sum()))


def check_worker(config: RunConfig) -> None:
    """Checks that this worker has the version, the weights and the folders of the run.

    Raises:
        PVSError: One of them differs or is missing.
    """
    if config.version != __version__:
        raise PVSError(f"expected pvs_model {config.version}, as where the run was started, got {__version__}")
    for folder in (config.source, config.output, *([config.reports.folder] if config.reports else [])):
        if not folder.is_dir():
            raise PVSError(f"{folder}: expected a folder shared by all machines, got none here")
    manifest = manifest_sha256(config.inference.weights)
    if manifest != config.manifest:
        raise WeightsError(
            f"{config.inference.weights}: expected the weights that the run was started with (manifest "
            f"{config.manifest[:12]}), got others ({manifest[:12]})"
        )


def manifest_sha256(weights: Path) -> str:
    """Returns the SHA-256 of the manifest of a weights folder, which holds those of its files.

    Raises:
        WeightsError: The manifest cannot be read.
    """
    path = weights / MANIFEST
    try:
        return sha256_of(path)
    except OSError as error:
        raise WeightsError(f"{path}: expected the manifest of the weights, got: {error.strerror}") from error


def is_transient(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, may not recur at the next attempt."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in TRANSIENT_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


@lru_cache(maxsize=1)
def _segmenter(config: InferenceConfig, manifest: str) -> Segmenter:
    """Returns the segmenter of this process, which is loaded once per configuration and weights."""
    import torch
    from distributed import get_worker

    # Dask limits the libraries of a worker to one thread. It runs one case at a time: torch uses all its threads.
    with contextlib.suppress(ValueError):  # outside a worker
        torch.set_num_threads(get_worker().state.nthreads)
    return Segmenter(config)


def dask_setup(worker: Any) -> None:
    """Prepares a local worker; called by Dask. Ctrl-C is handled by the process that started the run."""
    del worker
    atexit.register(os._exit, 0)  # unloading PyTorch takes seconds, and Dask would kill the worker over it
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Python processes that need not import PyTorch and MONAI again: a server that has imported them forks each.

Importing takes a process 6 s, a case of the tests a fraction of a second. The processes are real ones: they have their
own memory, limits, signals, stdout and stderr.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
#: What ``process.py`` does.
PROCESS = "import process\nprocess.exit_process(process.main())\n"
PRELOADED = ["torch", "monai.inferers", "pytest", "distributed", "pvs_model.cli", "pvs_model.commands.segment",
             "pvs_model.pipeline", "pvs_model.batch.worker", "pvs_model.reports.folder"]  # fmt: skip
#: (resource, size)
Limit = tuple[int, int]


def fork_server() -> Any:
    """The context of ``multiprocessing`` whose processes are forked. Networks have one thread each in them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(ROOT))  # for the modules that are preloaded
        forkserver.ensure_running()
    return context


def _execute(code: str, words: Sequence[str], streams: Sequence[Connection], limit: Limit | None) -> None:
    os.setsid()
    os.chdir(ROOT)
    for stream, number in zip(streams, (1, 2), strict=True):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdout = os.fdopen(1, "w", 1, encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    if limit is not None:
        resource.setrlimit(limit[0], (limit[1], limit[1]))
    sys.argv = ["-c", *words]
    exec(code, {"__name__": "__main__"})


class Python:
    """``python -c code words`` in a session of its own, with streams of text as of a ``subprocess.Popen``."""

    def __init__(self, code: str, words: Sequence[str], limit: Limit | None = None) -> None:
        context = fork_server()
        readers, writers = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
        self.process = context.Process(target=_execute, args=(code, list(words), writers, limit))
        self.process.start()
        for writer in writers:
            writer.close()
        for reader in readers:
            fcntl.fcntl(reader.fileno(), fcntl.F_SETPIPE_SZ, 2**20)  # none waits until the other has been read
        self.stdout, self.stderr = (
            os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="surrogateescape") for reader in readers
        )
        self.pid: int = self.process.pid

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Waits for the end. Returns the exit status, or minus the signal that ended it."""
        self.process.join()
        self.returncode: int = self.process.exitcode
        return self.returncode

    def __enter__(self) -> Python:
        return self

    def __exit__(self, error: type[BaseException] | None, value: Any, traceback: TracebackType | None) -> None:
        if error is not None:
            self.process.kill()
        self.wait()
        self.stdout.close()
        self.stderr.close()


@dataclass(frozen=True)
class Result:
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


def run(words: Sequence[str], code: str = PROCESS, limit: Limit | None = None) -> Result:
    """Runs ``process.py`` with words, or other code, to its end."""
    with Python(code, words, limit) as python:
        stdout, stderr = python.stdout.read(), python.stderr.read()
        return Result(python.wait(), stdout, stderr)

"""Scenes rendered ahead of time by background processes, so that the step does not wait for the simulator."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pvs_model.config import NetworkConfig
from pvs_model.errors import PVSError
from pvs_model.synth.engine import Scene
from pvs_model.training.data import PatchStream, keep_anatomy, kept_anatomy

#: Scenes under way or waiting, per process; visits looked ahead for them at the most.
DEPTH, HORIZON = 3, 2000
#: Seconds after which a scene that is waited for is taken for a sign to see whether all processes are alive.
CHECK_S = 5.0


class RenderAhead:
    """The ``source`` of a stream: every scene that its coming visits take, from ``workers`` processes.

    The stream of samples stays the same, bit for bit: a scene follows from its number, and the numbers
    from those of the visits.
    """

    def __init__(self, stream: PatchStream, workers: int) -> None:
        """
        Args:
            stream: its anatomies are on the CPU.
            workers: processes, one thread each.
        """
        self.stream = stream
        self.depth = DEPTH * workers
        self.looked = 0
        self.pending: dict[int, Future[dict[str, Any]]] = {}
        # Workers map the same files into memory: as arguments, anatomies would be copied to each.
        self.folder = tempfile.TemporaryDirectory(prefix="pvs_anatomies_")
        for number, anatomy in enumerate(stream.anatomies):
            keep_anatomy(Path(self.folder.name) / f"{number:04d}.safetensors", anatomy)
        self.pool = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),  # a fork of a process with threads, or CUDA, may hang
            _begin,
            (Path(self.folder.name), stream.config, stream.patch, stream.seed, stream.clear_scenes),
        )

    def __call__(self, number: int) -> Scene:
        """A scene by its number.

        Raises:
            PVSError: when a process was killed.
        """
        try:
            self._look_ahead()
            return _unpacked(self._waited(self.pending.pop(number)))
        except BrokenProcessPool as error:
            raise PVSError("--workers: a rendering process was killed (too little memory?); try fewer") from error

    def _waited(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """The result of a future, once it is there.

        A process that is killed while it hands over a scene leaves half a message, for whose rest the pool would
        wait for ever: its own end of the pipe keeps it open.
        """
        while True:
            try:
                return future.result(timeout=CHECK_S)
            except TimeoutError:
                processes = list((self.pool._processes or {}).values())
                if any(process.exitcode is not None for process in processes):
                    for process in processes:
                        process.kill()
                    results: Any = self.pool._result_queue
                    results._writer.close()  # the pool sees the end, and that it is broken

    def _look_ahead(self) -> None:
        visit = self.stream.visits
        self.looked = max(self.looked, visit)
        while len(self.pending) < self.depth and self.looked < visit + HORIZON:
            number, _ = self.stream.choose(self.looked)
            self.looked += 1
            if number not in self.stream.scenes and number not in self.pending:
                self.pending[number] = self.pool.submit(_render, number)

    def close(self) -> None:
        """Stop the processes; what they are rendering is thrown away."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.folder.cleanup()


# ---- in the background process ---------------------------------------------------------------------------------


#: The stream that this process renders for.
_STREAM: list[PatchStream] = []


def _begin(folder: Path, config: NetworkConfig, patch: int, seed: int, clear_scenes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the loop, which ends its processes
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    anatomies = [kept_anatomy(path) for path in sorted(folder.glob("*.safetensors"))]
    _STREAM[:] = [PatchStream(anatomies, config, patch, seed)]
    _STREAM[0].clear_scenes = clear_scenes


def _end_with_parent() -> None:
    """A run that is killed outright leaves no process behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render(number: int) -> dict[str, Any]:
    scene = _STREAM[0].render(number)
    values = {field.name: getattr(scene, field.name) for field in fields(scene)}
    # As arrays: tensors would travel through /dev/shm, which is small in containers, and keep files open.
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}


def _unpacked(values: dict[str, Any]) -> Scene:
    tensors: dict[str, Any] = {k: torch.from_numpy(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    return Scene(**values | tensors)

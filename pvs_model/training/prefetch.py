"""Prefetches simulated scenes in worker processes."""

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
from pvs_model.datasets.label_maps import load_cached, save_cached
from pvs_model.errors import PVSError
from pvs_model.simulation.render import Scene
from pvs_model.training.simulated_patches import SimulatedPatches

#: Scenes in flight or waiting, per process.
DEPTH = 3
#: Maximum number of samples ahead of the current one whose scenes are requested.
LOOKAHEAD = 2000
#: Seconds between checks that all processes are alive while a scene is awaited.
CHECK_S = 5.0


class ScenePrefetcher:
    """Renders the scenes of the next samples of a stream in worker processes; used as the stream's ``source``.

    Samples stay the same, bit for bit: a scene follows from its number, and the number from the index of the sample.
    """

    def __init__(self, stream: SimulatedPatches, workers: int) -> None:
        """
        Args:
            stream: Stream whose anatomies are on the CPU.
            workers: Number of processes, of one thread each.
        """
        self.stream = stream
        self.depth = DEPTH * workers
        self.next_index = 0
        self.pending: dict[int, Future[dict[str, Any]]] = {}
        # Workers map the same files into memory: as arguments, anatomies would be copied to each.
        self.folder = tempfile.TemporaryDirectory(prefix="pvs_anatomies_")
        for number, anatomy in enumerate(stream.anatomies):
            save_cached(Path(self.folder.name) / f"{number:04d}.safetensors", anatomy)
        self.pool = ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),  # a fork of a process with threads, or CUDA, may hang
            _begin,
            (Path(self.folder.name), stream.config, stream.patch, stream.seed, stream.clear_scenes),
        )

    def __call__(self, number: int) -> Scene:
        """Returns a scene by its number.

        Raises:
            PVSError: A process was killed.
        """
        try:
            self._request()
            return _unpack(self._wait(self.pending.pop(number)))
        except BrokenProcessPool as error:
            raise PVSError("--workers: a rendering process was killed (too little memory?); try fewer") from error

    def _wait(self, future: Future[dict[str, Any]]) -> dict[str, Any]:
        """Waits for the result of a future.

        A process that is killed while it sends a scene leaves half a message. The pool would wait for the rest
        indefinitely, since its own end of the pipe keeps it open.
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
                    results._writer.close()  # the pool sees that it is broken

    def _request(self) -> None:
        current = self.stream.sample_index
        self.next_index = max(self.next_index, current)
        while len(self.pending) < self.depth and self.next_index < current + LOOKAHEAD:
            number, _ = self.stream.choose(self.next_index)
            self.next_index += 1
            if number not in self.stream.scenes and number not in self.pending:
                self.pending[number] = self.pool.submit(_render, number)

    def close(self) -> None:
        """Stops the processes and discards what they are rendering."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.folder.cleanup()


# ---- in the worker process ------------------------------------------------------------------------------------


#: Stream that this process renders for.
_STREAM: list[SimulatedPatches] = []


def _begin(folder: Path, config: NetworkConfig, patch: int, seed: int, clear_scenes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training loop, which stops its workers
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    anatomies = [load_cached(path) for path in sorted(folder.glob("*.safetensors"))]
    _STREAM[:] = [SimulatedPatches(anatomies, config, patch, seed)]
    _STREAM[0].clear_scenes = clear_scenes


def _end_with_parent() -> None:
    """Exits with the parent, so that a killed run leaves no process behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _render(number: int) -> dict[str, Any]:
    scene = _STREAM[0].render(number)
    values = {field.name: getattr(scene, field.name) for field in fields(scene)}
    # As arrays: tensors would go through /dev/shm, which is small in containers, and keep files open.
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in values.items()}


def _unpack(values: dict[str, Any]) -> Scene:
    tensors: dict[str, Any] = {k: torch.from_numpy(v) for k, v in values.items() if isinstance(v, np.ndarray)}
    return Scene(**values | tensors)

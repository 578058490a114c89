"""Scenes from background processes: the same samples as without, in the same order, from anywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pvs_model.config import NetworkConfig
from pvs_model.errors import PVSError
from pvs_model.simulation.head import HeadModel
from pvs_model.training import prefetch
from pvs_model.training.batch import Batch
from pvs_model.training.config import TrainingConfig
from pvs_model.training.prefetch import DEPTH, ScenePrefetcher
from pvs_model.training.sampling import FoldData, open_sampler
from pvs_model.training.simulated_patches import SimulatedPatches

CPU = torch.device("cpu")


def stream_of(anatomy: HeadModel, config: NetworkConfig, **changes: Any) -> SimulatedPatches:
    settings: dict[str, Any] = {"patch": 8, "seed": 5, "scene_buffer": 4, "refresh_interval": 2}
    return SimulatedPatches([anatomy], config, **settings | changes)


def equal(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.target, b.target) and a.prompts == b.prompts


def test_workers_change_nothing_but_the_time(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    plain = stream_of(anatomy, tiny["2d"])
    expected = [plain.batch(1) for _ in range(14)]
    stream = stream_of(anatomy, tiny["2d"])
    prefetcher = stream.source = ScenePrefetcher(stream, workers=2)
    try:
        assert all(equal(stream.batch(1), batch) for batch in expected)
        # Also when it begins in the middle, as after a resume.
        resumed = stream_of(anatomy, tiny["2d"])
        resumed.sample_index, resumed.source, prefetcher.stream, prefetcher.next_index = 9, prefetcher, resumed, 0
        prefetcher.pending.clear()
        assert all(equal(resumed.batch(1), batch) for batch in expected[9:])
        # A process that the system kills is told in a sentence.
        for process in prefetcher.pool._processes.values():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(PVSError, match=r"--workers: a rendering process was killed \(too little memory\?\)"):
            resumed.batch(100)
    finally:
        prefetcher.close()
    assert not Path(prefetcher.folder.name).exists()


def test_a_process_killed_amid_handing_over_does_not_hang_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is stood in for: half a message has come, and its future would wait for the rest for ever."""
    future: Future[dict[str, Any]] = Future()
    killed: list[int] = []

    class Process:
        def __init__(self, number: int, exitcode: int | None) -> None:
            self.number, self.exitcode = number, exitcode

        def kill(self) -> None:
            killed.append(self.number)

    class Writer:
        def close(self) -> None:
            if not future.done():
                future.set_exception(BrokenProcessPool("the end of the pipe"))

    pool = SimpleNamespace(
        _processes={1: Process(1, -9), 2: Process(2, None)}, _result_queue=SimpleNamespace(_writer=Writer())
    )
    monkeypatch.setattr(prefetch, "CHECK_S", 0.01)
    rendering = ScenePrefetcher.__new__(ScenePrefetcher)
    rendering.pool = pool  # type: ignore[assignment]
    with pytest.raises(BrokenProcessPool):
        rendering._wait(future)
    assert killed == [1, 2]


class Immediate:
    """In place of the processes: notes what is asked for."""

    def __init__(self, *_: Any) -> None:
        self.asked: list[int] = []

    def submit(self, _: Any, number: int) -> Future[dict[str, Any]]:
        self.asked.append(number)
        future: Future[dict[str, Any]] = Future()
        future.set_result({})
        return future

    def shutdown(self, **_: Any) -> None:
        pass


@pytest.fixture
def immediate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(prefetch, "ProcessPoolExecutor", Immediate)
    monkeypatch.setattr(prefetch, "_unpack", lambda values: None)
    yield


@pytest.mark.usefixtures("immediate")
@pytest.mark.parametrize("start", [0, 37])
def test_each_scene_is_asked_for_once_in_the_order_in_which_it_is_taken(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    stream = stream_of(anatomy, tiny["2d"], scene_buffer=5)
    stream.sample_index = start
    monkeypatch.setattr(stream, "sample", lambda scene, seed, ask_region: Batch(torch.zeros(1), torch.zeros(1), [""]))
    taken: list[int] = []
    prefetcher = ScenePrefetcher(stream, workers=2)
    stream.source = lambda number: taken.append(number) or prefetcher(number)  # type: ignore[func-returns-value]
    stream.batch(300)
    asked = prefetcher.pool.asked  # type: ignore[attr-defined]
    assert asked[: len(taken)] == taken and len(set(asked)) == len(asked)
    assert len(asked) - len(taken) <= 2 * DEPTH, "no more than a few are held"
    prefetcher.close()


@pytest.mark.usefixtures("immediate")
def test_no_worker_none_started(anatomy: HeadModel, tiny: dict[str, NetworkConfig]) -> None:
    material = FoldData(anatomies=[anatomy])
    with open_sampler(material, tiny["2d"], TrainingConfig(patch=8), CPU) as samples:
        assert samples.stream is not None and samples.stream.source is None
    with open_sampler(material, tiny["2d"], TrainingConfig(patch=8, workers=1), CPU) as samples:
        assert samples.stream is not None and isinstance(samples.stream.source, ScenePrefetcher)
        folder = Path(samples.stream.source.folder.name)
        assert [path.name for path in folder.iterdir()] == ["0000.safetensors"]
    assert not folder.exists()


def test_anatomies_are_moved_to_where_they_are_to_be_simulated(
    anatomy: HeadModel, tiny: dict[str, NetworkConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[Any] = []
    real = HeadModel.to
    monkeypatch.setattr(HeadModel, "to", lambda self, device: moved.append(device) or real(self, "cpu"))
    for choice in ("cpu", "device"):
        training = TrainingConfig(patch=8, simulate_on=choice)
        with open_sampler(FoldData(anatomies=[anatomy]), tiny["2d"], training, torch.device("meta")):
            pass
    assert moved == [CPU, torch.device("meta")]

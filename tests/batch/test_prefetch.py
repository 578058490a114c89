"""Overlapped steps give the same results, errors and order as consecutive ones, and hold a bounded number of items."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvs_model.batch.prefetch import process_in_order
from pvs_model.errors import VolumeError


class Steps:
    """Substitutes for the three steps: they fail where requested, and record results, order and threads."""

    def __init__(self, bad: dict[int, str]) -> None:
        self.bad = bad
        self.order: list[int] = []
        self.results: list[tuple[int, str]] = []
        self.threads: dict[str, set[str]] = {"preprocess": set(), "predict": set(), "finish": set()}

    def preprocess(self, item: int) -> int:
        self.threads["preprocess"].add(threading.current_thread().name)
        if self.bad.get(item) == "preprocess":
            raise VolumeError(f"{item} preprocess")
        return item

    def predict(self, item: int) -> int:
        self.threads["predict"].add(threading.current_thread().name)
        if self.bad.get(item) == "predict":
            raise KeyError(f"{item} predict")
        self.order.append(item)
        return -item

    def finish(self, item: int, predicted: Callable[[], int]) -> None:
        self.threads["finish"].add(threading.current_thread().name)
        try:
            result = predicted()
            if self.bad.get(item) == "finish":
                raise OSError(f"{item} finish")
            self.results.append((item, str(result)))
        except Exception as error:
            self.results.append((item, repr(error)))

    def run(self, count: int, workers: int) -> None:
        process_in_order(range(count), self.preprocess, self.predict, self.finish, workers)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(0, 5),
    bad=st.dictionaries(st.integers(0, 11), st.sampled_from(["preprocess", "predict", "finish"])),
    count=st.integers(0, 12),
)
def test_any_number_of_workers_gives_the_same_in_the_same_order(workers: int, bad: dict[int, str], count: int) -> None:
    alone, together = Steps(bad), Steps(bad)
    alone.run(count, 0)
    together.run(count, workers)
    assert together.results == alone.results and together.order == alone.order
    assert [item for item, _ in together.results] == list(range(count))
    here = {threading.current_thread().name}
    assert together.threads["predict"] <= here
    if workers == 0:
        assert together.threads["preprocess"] | together.threads["finish"] <= here
    else:
        assert len(together.threads["finish"]) <= 1 and len(together.threads["preprocess"]) <= workers


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_items_held_is_bounded(workers: int) -> None:
    lock, held = threading.Lock(), {"ahead": 0, "behind": 0}
    most = dict(held)
    first = threading.Barrier(workers)

    def change(where: str, by: int) -> None:
        with lock:
            held[where] += by
            most[where] = max(most[where], held[where])

    def preprocess(item: int) -> int:
        change("ahead", 1)
        if item < workers:
            first.wait(60)  # broken unless as many are preprocessed at the same time
        return item

    def predict(item: int) -> int:
        change("ahead", -1)
        change("behind", 1)
        return item

    def finish(item: int, predicted: Callable[[], int]) -> None:
        predicted()
        change("behind", -1)

    process_in_order(range(25), preprocess, predict, finish, workers)
    assert held == {"ahead": 0, "behind": 0}
    # One more each: an item between two steps is counted on either side.
    assert workers <= most["ahead"] <= workers + 1 and most["behind"] <= workers + 1


def test_an_error_of_the_last_step_ends_the_run() -> None:
    started = []

    def finish(item: int, predicted: Callable[[], int]) -> None:
        predicted()
        if item == 2:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        process_in_order(range(100), lambda item: started.append(item) or item, lambda item: item, finish, 2)
    assert len(started) < 20


def test_an_interrupt_lets_the_last_step_complete_and_starts_nothing() -> None:
    finished: list[int] = []
    running, release = threading.Event(), threading.Event()

    def predict(item: int) -> int:
        if item == 3:
            assert running.wait(60)
            threading.Timer(0.1, release.set).start()
            raise KeyboardInterrupt
        return item

    def finish(item: int, predicted: Callable[[], int]) -> None:
        if item == 0:
            running.set()
            assert release.wait(60)
        finished.append(item)

    started: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        process_in_order(range(100), lambda item: started.append(item) or item, predict, finish, 4)
    assert finished[0] == 0 and finished == sorted(finished) and len(finished) < 4 and len(started) <= 8


def test_an_interrupt_does_not_wait_for_preprocessing() -> None:
    release = threading.Event()

    def preprocess(item: int) -> int:
        if item:
            release.wait()
        return item

    def predict(item: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process_in_order(range(5), preprocess, predict, lambda item, predicted: None, 2)
    release.set()


def test_without_threads_steps_run_consecutively(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    steps = Steps({3: "predict"})
    steps.run(6, 3)
    assert [item for item, _ in steps.results] == list(range(6)) and len(started) == 1
    assert steps.threads["preprocess"] == {threading.current_thread().name}
    assert "one after another" in caplog.text


@pytest.mark.parametrize("step", ["preprocess", "predict"])
def test_a_failed_item_is_released(step: str) -> None:
    """Its data go when its error is reported, not when the garbage collector runs."""

    class Data:
        pass

    kept: list[weakref.ref[Data]] = []
    alive: list[int] = []

    def preprocess(item: int) -> Data:
        data = Data()
        kept.append(weakref.ref(data))
        if step == "preprocess":
            raise VolumeError("no")
        return data

    def predict(data: Data) -> Data:
        raise VolumeError("no")

    def finish(item: int, predicted: Callable[[], Data]) -> None:
        with pytest.raises(VolumeError):
            predicted()
        alive.append(sum(reference() is not None for reference in kept))

    gc.disable()
    try:
        process_in_order(range(30), preprocess, predict, finish, 1)
    finally:
        gc.enable()
    assert max(alive) <= 4

"""Overlaps preprocessing, inference and writing of consecutive cases, preserving their order."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from threading import Barrier
from typing import NoReturn, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")

#: Exit status of a run that was stopped by Ctrl-C or SIGTERM.
INTERRUPTED = 130


def process_in_order(
    items: Iterable[T],
    preprocess: Callable[[T], A],
    predict: Callable[[A], B],
    finish: Callable[[T, Callable[[], B]], None],
    workers: int,
) -> None:
    """Takes every item through three steps that overlap between consecutive items.

    At most ``workers`` items are preprocessed or wait for ``predict``, one is in ``predict``, and at most ``workers``
    are in ``finish`` or wait for it. Memory is therefore bounded however many items there are.

    Args:
        items: Items, in the order in which ``predict`` and ``finish`` receive them.
        preprocess: First step, called in ``workers`` threads.
        predict: Second step, called in this thread, which receives signals.
        finish: Third step, called in one thread of its own. It receives the item and a function that returns the
            result of ``predict``, or raises the error of ``preprocess`` or ``predict``.
        workers: Number of items to preprocess ahead; with 0 all steps run consecutively in this thread.

    Raises:
        Exception: An error raised by ``finish``; no further item is started.
        KeyboardInterrupt: The run was stopped. No further item is started, a running ``finish`` completes, and a
            running ``preprocess`` is not waited for.
    """
    if not workers:
        _process_sequentially(items, preprocess, predict, finish)
        return
    ahead, behind = ThreadPoolExecutor(workers, "preprocess"), ThreadPoolExecutor(1, "finish")
    remaining = iter(items)
    preprocessing: deque[tuple[T, Future[A]]] = deque()
    finishing: deque[Future[None]] = deque()

    def prefetch() -> None:
        missing = workers - len(preprocessing)
        preprocessing.extend((item, ahead.submit(preprocess, item)) for item in islice(remaining, missing))

    try:
        try:
            _start_threads(ahead, workers)
            _start_threads(behind, 1)
        except RuntimeError as error:
            log.warning("no threads can be started (%s): processing cases one after another", error)
            _process_sequentially(remaining, preprocess, predict, finish)
            return
        prefetch()
        while preprocessing:
            wait([preprocessing[0][1]])
            item, preprocessed = preprocessing.popleft()
            prefetch()
            predicted = _run(predict, preprocessed)
            del preprocessed
            while finishing and (len(finishing) >= workers or finishing[0].done()):
                finishing.popleft().result()
            finishing.append(behind.submit(finish, item, predicted.result))
            del predicted  # from here on only ``finish`` holds it
        for future in finishing:
            future.result()
    finally:
        ahead.shutdown(wait=False, cancel_futures=True)
        behind.shutdown(wait=True, cancel_futures=True)


def _process_sequentially(
    items: Iterable[T],
    preprocess: Callable[[T], A],
    predict: Callable[[A], B],
    finish: Callable[[T, Callable[[], B]], None],
) -> None:
    for item in items:
        finish(item, lambda item=item: predict(preprocess(item)))  # type: ignore[misc]


def _run(predict: Callable[[A], B], preprocessed: Future[A]) -> Future[B]:
    """Returns the result or the error of ``predict`` as a future. KeyboardInterrupt is raised instead."""
    predicted: Future[B] = Future()
    try:
        predicted.set_result(predict(preprocessed.result()))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # its frames would keep the item's arrays in memory
        predicted.set_exception(error)
    finally:
        del preprocessed
    return predicted


def _start_threads(pool: ThreadPoolExecutor, threads: int) -> None:
    """Starts all threads of a pool. If one could not be started later, its item would be lost.

    Raises:
        RuntimeError: A thread cannot be started.
    """
    started = Barrier(threads)
    try:
        for _ in range(threads):
            pool.submit(started.wait)
    except RuntimeError:
        started.abort()
        raise


def exit_process(status: int) -> NoReturn:
    """Ends the process. With the status ``INTERRUPTED`` it does not wait for preprocessing threads."""
    if status == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

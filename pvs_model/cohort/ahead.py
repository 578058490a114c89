"""Three steps side by side in threads: the next items made ready, one at work, earlier ones finished; all in order."""

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
STOPPED = 130


def in_order(
    items: Iterable[T],
    before: Callable[[T], A],
    work: Callable[[A], B],
    after: Callable[[T, Callable[[], B]], None],
    workers: int,
) -> None:
    """Take every item through three steps.

    At most ``workers`` items are in ``before`` or wait behind it, one is in ``work``, and at most ``workers`` are in
    ``after`` or wait for it: so many are held in memory, however many there are.

    Args:
        items: in the order in which ``work`` and ``after`` take them.
        before: called in ``workers`` threads.
        work: called in this thread, where signals arrive.
        after: called in one thread of its own. It is given the item and a function that returns what ``work`` made of
            it, or raises what went wrong in ``before`` or ``work``.
        workers: 0 for one step after another in this thread; ``after`` then is what calls the other two.

    Raises:
        Exception: what ``after`` raises; no further item is begun.
        KeyboardInterrupt: no further item is begun, and what ``after`` was at is whole. What ``before`` was at is
            not waited for, and goes nowhere.
    """
    if not workers:
        _one_by_one(items, before, work, after)
        return
    front, back = ThreadPoolExecutor(workers, "before"), ThreadPoolExecutor(1, "after")
    coming = iter(items)
    waiting: deque[tuple[T, Future[A]]] = deque()
    leaving: deque[Future[None]] = deque()

    def look_ahead() -> None:
        waiting.extend((item, front.submit(before, item)) for item in islice(coming, workers - len(waiting)))

    try:
        try:
            _start(front, workers)
            _start(back, 1)
        except RuntimeError as error:
            log.warning("no threads can be started (%s): one case after another", error)
            _one_by_one(coming, before, work, after)
            return
        look_ahead()
        while waiting:
            wait([waiting[0][1]])
            item, ready = waiting.popleft()
            look_ahead()
            done = _done(work, ready)
            del ready
            while leaving and (len(leaving) >= workers or leaving[0].done()):
                leaving.popleft().result()
            leaving.append(back.submit(after, item, done.result))
            del done  # held by whoever finishes it, no longer
        for left in leaving:
            left.result()
    finally:
        front.shutdown(wait=False, cancel_futures=True)
        back.shutdown(wait=True, cancel_futures=True)


def _one_by_one(
    items: Iterable[T], before: Callable[[T], A], work: Callable[[A], B], after: Callable[[T, Callable[[], B]], None]
) -> None:
    for item in items:
        after(item, lambda item=item: work(before(item)))  # type: ignore[misc]


def _done(work: Callable[[A], B], ready: Future[A]) -> Future[B]:
    """What came of ``work``, or of what was to come before it; a KeyboardInterrupt is not kept but raised."""
    done: Future[B] = Future()
    try:
        done.set_result(work(ready.result()))
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # what they hold of the item would stay as long as the error
        done.set_exception(error)
    finally:
        del ready
    return done


def _start(pool: ThreadPoolExecutor, threads: int) -> None:
    """Start all threads of a pool now: later, a thread that cannot be started would cost an item.

    Raises:
        RuntimeError: there is no room for one.
    """
    together = Barrier(threads)
    try:
        for _ in range(threads):
            pool.submit(together.wait)
    except RuntimeError:
        together.abort()
        raise


def leave(status: int) -> NoReturn:
    """End the process. One that was ``STOPPED`` does not wait for threads whose work nobody will take."""
    if status == STOPPED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)

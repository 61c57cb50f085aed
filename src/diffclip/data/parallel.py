"""Work on many things by several processes, results in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from diffclip.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # results for each process that may wait to be taken

_work: Callable[[Any], Any]


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`work` of each item, in the items' order, by `workers` processes.

    This one does it if they are fewer than two or cannot start.
    Processes get `work`, and what it holds, once. Only a few results are made ahead of what is taken.
    Raises what `work` raises, and UserError where a process dies.
    """
    if workers < 2:
        yield from map(work, items)
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    try:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(work,))
    except OSError:  # no /dev/shm for the locks between processes, or no descriptors
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_run, item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for lack of memory: try again with fewer workers; with --workers 1 it "
            "is this process that would die"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    # Ctrl-C reaches every process of the terminal; the main one stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(item: Any) -> Any:
    return _work(item)

"""Work done ahead of the consumer: one background thread, in order, bounded."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


def prefetch(
    work: Callable[[Request], Result], requests: Iterable[Request], depth: int = 2
) -> Generator[Result, None, None]:
    """``work(request)`` for each of ``requests``, in order, by one background thread up to ``depth`` ahead.

    ``work`` is a ShardReader's ``read``, or what makes a whole micro batch with it. ``requests`` may be
    endless; it is consumed in that thread. An exception there is raised here in its place. The thread starts
    with the first result asked for and ends with the generator: closing it waits for the work under way.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}; allowed: 1 or more")
    return _prefetch(work, requests, depth)


def _prefetch(
    work: Callable[[Request], Result], requests: Iterable[Request], depth: int
) -> Generator[Result, None, None]:
    ready: queue.SimpleQueue[tuple[Result] | BaseException | None] = queue.SimpleQueue()
    slots = threading.Semaphore(depth)  # one for each result that is ready or being made
    stop = threading.Event()

    def run() -> None:
        try:
            for request in requests:
                slots.acquire()
                if stop.is_set():
                    return
                ready.put((work(request),))
        except BaseException as error:
            ready.put(error)
        else:
            ready.put(None)

    thread = threading.Thread(target=run, name="shards-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            slots.release()
            yield item[0]
    finally:
        stop.set()
        slots.release()
        thread.join()

"""Work spread over processes, its results in order. No process outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from typing import TypeVar

from diffbase.cli import InputError
from diffbase.system_error import is_passing

Item = TypeVar("Item")
Result = TypeVar("Result")
# What numpy's libraries read: a worker has one core, and their threads would only take the others' time.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

SHARED = "/dev/shm"
"""Where the system keeps the semaphores of processes, and NCCL what GPUs of a node hand each other."""

LONGEST = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a temporary folder's path in which a Unix socket finds room (unix(7))."""


def prepare_workers(module: str) -> None:
    """Start the process that workers are forked from and have it import ``module``; returns at once.

    Workers then start with it. Another call in the same process changes nothing.
    """
    given = {name: os.environ.get(name) for name in THREADS}
    forkserver.set_forkserver_preload([module])
    resource_tracker.ensure_running()  # on its own: it ends with SIGINT no longer blocked
    # Inherited, as the variables are: a Ctrl-C during the imports is the parent's to report, not theirs.
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        os.environ.update(dict.fromkeys(THREADS, "1"))
        with _room_for_a_socket():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)
        for name, value in given.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _room_for_a_socket() -> Iterator[None]:
    """Around what makes a socket in the temporary folder: in /tmp where its path would be too long for one.

    multiprocessing makes a folder of its own there, 0700, and keeps to it; since Python 3.14 it does this.
    """
    before = tempfile.tempdir
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = before


def map_in_order(
    work: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[Result, None, None]:
    """``work(item)`` for each item, in order, by ``jobs`` processes; in this one where ``jobs`` is 1.

    Items are taken only a few ahead of the results, so both may be endless. An exception of ``work`` is
    raised here in its place. Close the generator to end the processes.
    """
    if jobs == 1:
        yield from map(work, items)
        return
    prepare_workers(getattr(work, "func", work).__module__)  # of a partial, the function's
    # Not forked: the caller may have threads.
    context = multiprocessing.get_context("forkserver")
    with semaphores(", or work with one process (--jobs 1)"):
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * jobs:  # enough to keep every worker busy, few enough to bound memory
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    except BrokenProcessPool as error:
        raise InputError("a worker died (out of memory?); run the same command again") from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def semaphores(or_else: str = "") -> Iterator[None]:
    """Around what makes a pool of processes. InputError where there is no room for its locks, in SHARED.

    The system's own error names neither the folder nor a way out; ``or_else`` is another one.
    """
    try:
        yield
    except OSError as error:
        if is_passing(error):
            raise
        raise InputError(
            f"{SHARED}: {error.strerror}: the locks of several processes lie there, so it has to be there, "
            f"writable and with room; in a container give it --shm-size or --ipc=host{or_else}"
        ) from error


def worker_count(given: int | None) -> int:
    """The value of a --jobs flag; without one, the cores that this process may use."""
    jobs = len(os.sched_getaffinity(0)) if given is None else given
    if not 1 <= jobs <= 1024:
        raise InputError(f"--jobs {jobs}: allowed: 1 to 1024")
    return jobs


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker ends with its parent, even one killed outright."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

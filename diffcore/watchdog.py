"""A thread that watches the loop: the heartbeat on disk, and an end to a run that hangs.

A rank whose peer is stopped or lost waits in a collective for ever, and so do all the others: each one's
watchdog writes the stacks of its threads and ends its process with the code for "try again".
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from diffcore import ledger
from diffcore.exits import RETRYABLE
from diffcore.world import World

EVERY = 1.0
"""Seconds between two looks and two heartbeats."""


class Watchdog:
    """``beat`` after every step, ``section`` around what takes long; used as a context manager.

    ``limit`` is in seconds; 0: it only writes the heartbeat.
    """

    def __init__(self, run: Path, world: World, steps: int, limit: float) -> None:
        self.run, self.world, self.steps, self.limit = run, world, steps, limit
        self._step, self._section, self._last = 0, "start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """A sign of life: ``step`` steps are done."""
        self._step, self._last = step, time.monotonic()

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """What is being done, for the heartbeat and for the report of a hang. Its begin and end are beats."""
        before, self._section, self._last = self._section, name, time.monotonic()
        try:
            yield
        finally:
            self._section, self._last = before, time.monotonic()

    @property
    def doing(self) -> str:
        return f"{self._section}, after step {self._step}"

    def __enter__(self) -> Watchdog:
        self._section, self._last = "train", time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        shown = None
        while True:
            if self.world.main and shown != (now := (self._step, self._section, self._last)):
                ledger.beat(self.run, self._step, self.steps, self._section)
                shown = now
            if self._over.wait(EVERY):
                return
            silent = time.monotonic() - self._last
            if self.limit and silent > self.limit:
                self._end(silent)

    def _end(self, silent: float) -> None:
        path = self.run / "stacks" / f"attempt-{ledger.attempt()}-rank-{self.world.rank}.txt"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with path.open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            ledger.record(self.run, "hang", rank=self.world.rank, step=self._step, section=self._section)
        except OSError as error:  # a hung disk may be the very cause
            print(f"rank {self.world.rank}: no stacks written: {error}", file=sys.stderr)
        print(
            f"error: rank {self.world.rank}: no sign of life for {silent:.0f} s in {self.doing} "
            f"(guards.hang_seconds {self.limit:g}); stacks in {path}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(RETRYABLE)

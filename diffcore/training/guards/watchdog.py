"""A thread that watches the loop: the heartbeat on disk, and an end to a run that hangs.

A rank whose peer is stopped, lost or never came waits for it for ever, and so do all the others: each one's
watchdog writes the stacks of its threads and ends its process with the code for "try again".
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from diffbase import files, ledger
from diffbase.exits import RETRYABLE
from diffbase.line import say
from diffbase.trust import make_folder
from diffcore.config.tree import Guards
from diffcore.training.guards.launchers import gone, launchers

EVERY = 1.0
"""Seconds between two looks and two heartbeats."""


class Watchdog:
    """``beat`` after every step, ``section`` around what takes long; used as a context manager.

    InputError at once where DIFFCORE_ATTEMPT is no number, which its thread could tell nobody.

    The limits are in ``guards``; 0: it only writes the heartbeat. Before the first beat it writes only the
    stacks of a hang: the run folder may turn out to be another experiment's. ``alone`` is called once where
    a launcher above this process has ended (launchers.py).
    """

    def __init__(
        self, run: Path, rank: int, steps: int, guards: Guards, alone: Callable[[], None] = lambda: None
    ) -> None:
        self.run, self.rank, self.steps, self.guards = run, rank, steps, guards
        self._attempt, self._alone, self._launchers = ledger.attempt(), alone, launchers()
        self._step: int | None = None
        self._section, self._last = "start", time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """A sign of life: ``step`` steps are done."""
        if self._step is None:
            self._section = "train"
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
        """What the process is at, in words."""
        return self._section if self._step is None else f"{self._section}, after step {self._step}"

    def __enter__(self) -> Watchdog:
        self._last = time.monotonic()
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
            step, now = self._step, (self._step, self._section, self._last)
            if self.rank == 0 and step is not None and shown != now:
                with suppress(OSError):  # a full disk must not end the watch
                    ledger.beat(self.run, step, self.steps, self._section)
                shown = now
            if self._over.wait(EVERY):
                return
            if self._launchers and gone(self._launchers):
                self._launchers = []
                self._left_alone()
            name = "start_seconds" if step is None else "hang_seconds"
            limit, silent = getattr(self.guards, name), time.monotonic() - self._last
            if limit and silent > limit:
                self._end(silent, f"guards.{name} {limit:g}")

    def _left_alone(self) -> None:
        """Ask for the end; where there is no step yet that could hear it, nothing is lost: at once."""
        if self._step is None:
            os._exit(RETRYABLE)
        if self.rank == 0:
            say("the launcher of this run has ended: it saves and leaves", error=True)
        self._alone()

    def _end(self, silent: float, limit: str) -> None:
        path = self.run / "stacks" / f"attempt-{self._attempt}-rank-{self.rank}.txt"
        where = f"stacks in {path}"
        try:
            if not self.run.is_dir():  # nothing stays of a run that never began
                raise FileNotFoundError(f"{self.run} is not there yet")
            make_folder(path.parent)
            with open(path, "w", opener=files.plain_only) as file:
                faulthandler.dump_traceback(file, all_threads=True)
            ledger.record(self.run, "hang", rank=self.rank, step=self._step, section=self._section)
        except OSError as error:  # a hung disk may be the very cause, or there is no run folder yet
            where = f"no stacks written: {error}"
        say(
            f"error: rank {self.rank}: no sign of life for {silent:.0f} s in {self.doing} ({limit}); {where}",
            error=True,
        )
        os._exit(RETRYABLE)

"""A tracker's work in a thread: training neither waits for it nor ends with it."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffbase.cli import one_line
from diffbase.redaction import without_credentials
from diffcore.training.loggers import identity

WAITING = 1000
"""Figures and pictures that wait to be taken; with more, new ones are left out."""
CLOSING = 15.0
"""Seconds that the end of a run waits for a tracker to take what is left."""


class Logger(Protocol):
    """What keeps a run's figures elsewhere. One thread calls it; what it raises ends it, and nothing else."""

    name: str
    run: Path
    """The run folder."""

    def begin(self) -> int | None:
        """Open the run that this run folder has there, or a new one; the newest step that it has, if known.

        -1 of a new one.
        """

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Take a step's figures by tag; more than once where there are more."""

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        """Take a picture [H, W, C], uint8."""

    def close(self) -> None:
        """End: all that was taken is kept."""


class Tracker:
    """A ``Logger`` behind a queue. A step that it has from an earlier life of the run is not given again."""

    def __init__(self, logger: Logger) -> None:
        self.name = logger.name
        self._logger, self._queue = logger, queue.Queue[Callable[[], None] | None](WAITING)
        self._thread = threading.Thread(target=self._work, name=logger.name, daemon=True)
        self._had, self._newest = -1, -1
        self._problem: str | None = None

    def start(self, had: int) -> None:
        """Begin; ``had``: the newest step that the run's earlier lives have logged, where the logger does not
        know."""
        self._had = had
        self._thread.start()

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """As ``Logger.figures``."""
        self._put(self._given, step, self._logger.figures, step, dict(values))

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        """As ``Logger.image``."""
        self._put(self._given, step, self._logger.image, tag, step, image_HWC)

    def rewind(self) -> None:
        """The run has gone back: steps that it makes once more are not given again."""
        self._put(self._went_back)

    def close(self) -> None:
        """Wait until all is taken, but not for ever."""
        until = time.monotonic() + CLOSING
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSING)
            self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._problem = self._problem or f"not all was taken within {CLOSING:.0f} s"

    def trouble(self) -> str | None:
        """What went wrong, once; figures since then are missing there."""
        told, self._problem = self._problem, None
        return told

    def _put(self, work: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._queue.put_nowait(lambda: work(*arguments))
        except queue.Full:
            self._problem = f"it is behind by {WAITING} figures; new ones are left out"

    def _given(self, step: int, give: Callable[..., Any], *arguments: Any) -> None:
        if step > self._had:
            give(*arguments)
            self._newest = max(self._newest, step)

    def _went_back(self) -> None:
        self._keep(max(self._had, self._newest))

    def _keep(self, newest: int) -> None:
        self._had = newest
        identity.keep(self._logger.run, self.name, newest=newest)

    def _work(self) -> None:
        failed = False
        try:
            # The figures' own file has forgotten the steps that an earlier life went back by.
            self._keep(max(self._had, identity.kept(self._logger.run, self.name).newest))
            known = self._logger.begin()
            self._had = self._had if known is None else known
        except BaseException as error:  # some end a process that cannot log in
            failed = self._fail(error)
        while True:
            work = self._queue.get()
            try:
                if not failed:
                    (work or self._logger.close)()
            except BaseException as error:
                failed = self._fail(error)
            if work is None:
                return

    def _fail(self, error: BaseException) -> bool:
        said = without_credentials(str(error)) or type(error).__name__
        self._problem = one_line(f"{said[:500]}; training goes on without it")
        return True

"""Where the time of a step goes: waiting for data, forward, backward, communication, optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Span = tuple[str, torch.cuda.Event, torch.cuda.Event]


class StepClock:
    """``lap(name)`` ends the part that began at the last lap; ``read`` gives each part's seconds so far.

    On a GPU the parts are measured by events on its stream, and nothing waits for them until ``read``. The
    wait for data is the CPU's, on every device: it is what a slow reader costs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._laps: list[tuple[Span, list[Span]]] = []
        self._in_aside = False
        self.start()

    def start(self) -> None:
        """Forget the time since the last lap, which was no part of a step."""
        self._last = time.perf_counter()
        self._event = self._mark()
        self._aside: dict[str, float] = {}
        self._asides: list[Span] = []

    def lap(self, name: str, on_cpu: bool = False) -> None:
        """What was done since the last lap was ``name``; ``on_cpu``: on the CPU alone."""
        now, event = time.perf_counter(), self._mark()
        if self._event is None or event is None or on_cpu:
            self._add(name, now - self._last - sum(self._aside.values()))
            for inner, took in self._aside.items():
                self._add(inner, took)
            self._aside = {}
        else:
            self._laps.append(((name, self._event, event), self._asides))
            self._asides = []
        self._last, self._event = now, event

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """What runs inside counts as ``name``, not as the part that it interrupts.

        On a GPU that is what holds up the main stream: work that overlaps it on another one costs no time.
        """
        if self._in_aside or (self._cuda and torch.cuda.current_stream() != torch.cuda.default_stream()):
            yield
            return
        self._in_aside, before, begin = True, time.perf_counter(), self._mark()
        try:
            yield
        finally:
            self._in_aside, end = False, self._mark()
            if begin is not None and end is not None:
                self._asides.append((name, begin, end))
            else:
                self._aside[name] = self._aside.get(name, 0.0) + time.perf_counter() - before

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last read. Waits for the GPU."""
        if self._laps:
            self._laps[-1][0][2].synchronize()
        for (name, begin, end), asides in self._laps:
            self._add(name, begin.elapsed_time(end) / 1e3)
            for inner, inner_begin, inner_end in asides:
                took = inner_begin.elapsed_time(inner_end) / 1e3
                self._add(inner, took)
                self._add(name, -took)
        seconds, self._seconds, self._laps = self._seconds, {}, []
        return seconds

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def _mark(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

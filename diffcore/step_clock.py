"""Where the time of a step goes: waiting for data, forward, backward, optimizer."""

from __future__ import annotations

import time

import torch


class StepClock:
    """``lap(name)`` ends the part that began at the last lap; ``read`` gives each part's seconds so far.

    On a GPU the parts are measured by events on its stream, and nothing waits for them until ``read``. The
    wait for data is the CPU's, on every device: it is what a slow reader costs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.start()

    def start(self) -> None:
        """Forget the time since the last lap, which was no part of a step."""
        self._last = time.perf_counter()
        self._event = self._mark()

    def lap(self, name: str, on_cpu: bool = False) -> None:
        """What was done since the last lap was ``name``; ``on_cpu``: on the CPU alone."""
        now, event = time.perf_counter(), self._mark()
        if self._event is None or event is None or on_cpu:
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        else:
            self._events.append((name, self._event, event))
        self._last, self._event = now, event

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last read. Waits for the GPU."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] = self._seconds.get(name, 0.0) + begin.elapsed_time(end) / 1e3
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds

    def _mark(self) -> torch.cuda.Event | None:
        if not self._cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

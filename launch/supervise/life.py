"""One node's part in a life of the job: what supervisor.py and leader.py share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from diffbase import ledger
from diffbase.line import printable
from launch.job.folder import Place
from launch.supervise import limits
from launch.supervise.environment import Layout, scratch
from launch.supervise.meeting import Meeting

POLL = 0.2
"""Seconds between two looks at this node's processes."""


class SupersededError(Exception):
    """Another life of the run has begun; this one must not write any more."""


class Life:
    """Where this node stands, what signals asked of it, and how it waits."""

    def __init__(self, place: Place, where: Layout) -> None:
        self.place, self.where = place, where
        self.logs = Path(os.environ.get("SUBMITIT_FOLDER", place.folder))
        """Where the ranks' logs lie: the submission's folder, which a sweep's points share."""
        self.spec = place.spec()
        self.run_folder = place.run
        self.limits = limits.of(where.supervisors)
        self.meeting = Meeting(place.live, where.session)
        self.asked = 0
        """The newest signal that asked this node to stop, or 0."""
        self.asked_at = 0.0
        self.respond: Callable[[int], None] = lambda number: None
        """Called with each signal, by ``tick``: outside of the signal's handler."""
        self.claimed = False
        """Whether rank 0 has made this life the run's."""
        self.look_every = min(3.0, 0.5 + where.supervisors / 50)
        """Seconds between two looks at what the others left on the shared disk."""
        self.scratch = scratch(self.spec.cluster.scratch, os.environ, where)
        self._began = time.monotonic()
        self._fenced = 0.0
        self._came = self._handled = 0

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """The handler of signals: notes the signal, for ``tick`` to pass on."""
        if not self.asked:
            self.asked_at = time.monotonic()
        self.asked = number
        self._came += 1

    @property
    def used_up(self) -> bool:
        """Whether the job's time is nearly over. Slurm may warn a minute early."""
        left = self.spec.minutes * 60 - (time.monotonic() - self._began)
        return self.spec.requeue and left < self.spec.cluster.signal_seconds + 75

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        if (self.run_folder / ".saving").exists():
            return True
        beat = ledger.heartbeat(self.run_folder)
        return bool(beat and beat["section"] == "save" and abs(time.time() - float(beat["time"])) < 60)

    def tick(self) -> None:
        """Wait a little and act on signals. SupersededError once another life has claimed the run."""
        time.sleep(POLL)
        if self._came > self._handled:
            self._handled = self._came
            self.respond(self.asked)
        now = time.monotonic()
        if self.claimed and now - self._fenced >= self.look_every:
            self._fenced = now
            if self.meeting.superseded():
                raise SupersededError("another life of this run has begun; this one ends")

    def say(self, line: str) -> None:
        """One line for the log of this node's first rank."""
        print(f"launch: {printable(line)}", flush=True)

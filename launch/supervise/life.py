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
from launch.supervise.wire.hub import Hub
from launch.supervise.wire.line import Line

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
        self.asked = 0
        """The newest signal that asked this node to stop, or 0."""
        self.asked_at = 0.0
        self.respond: Callable[[int], None] = lambda number: None
        """Called with each signal, by ``tick``: outside of the signal's handler."""
        self.claimed = False
        """Whether rank 0 has made this life the run's."""
        self.look_every = min(3.0, 0.5 + where.supervisors / 50)
        """Seconds between two looks at the shared disk, for those who have to look."""
        self.meeting: Meeting | Line
        if where.leader:
            nodes, ranks = where.supervisors, where.local_world
            self.meeting = Hub(place.live, where.session, nodes, ranks, self.limits.node_lost)
        else:
            self.meeting = Line(place.live, where.session, self.limits.reconnect, self.look_every)
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
        """Wait a little, or until another node says something, and act on signals.

        SupersededError once another life has claimed the run.
        """
        self.meeting.wait(POLL)
        if self._came > self._handled:
            self._handled = self._came
            self.respond(self.asked)
        if self.meeting.overtaken or self._superseded():
            if isinstance(self.meeting, Meeting):
                self.meeting.tell_overtaken()
            raise SupersededError("another life of this run has begun; this one ends")

    def _superseded(self) -> bool:
        """Whether the disk says so: the leader looks, and who has no connection to it."""
        now = time.monotonic()
        if not self.claimed or not self.meeting.on_its_own or now - self._fenced < self.look_every:
            return False
        self._fenced = now
        return self.meeting.superseded()

    def say(self, line: str) -> None:
        """One line for the log of this node's first rank."""
        print(f"launch: {printable(line)}", flush=True)

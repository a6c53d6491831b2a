"""How often a run should be saved: Young's interval, of the stalls and failures in its own ledger."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from launch.follow import ends
from launch.follow.goodput import Attempt

CONFIG = "config.yaml"


@dataclass(frozen=True)
class Interval:
    """Steps between two checkpoints: as it is, and as it would cost least; and what that follows from."""

    now: int
    best: int
    seconds: float
    """The best one as time."""
    stall: float
    """Seconds that training waits for a checkpoint."""
    failures: int
    hours: float
    """Between two failures, of the time on the nodes."""

    def words(self, run: Path) -> str:
        """One line for a person; the time is left out where the run's config does not take one."""
        by_time = f"; by time: train.checkpoint_every: {self.setting}" if _takes(run, self.setting) else ""
        return (
            f"checkpoints: one every {self.now} steps; every {self.best} would cost least, by Young's "
            f"formula ({self.stall:.1f} s of stall, a failure every {self.hours:.1f} h: {self.failures} yet)"
            f"{by_time}"
        )

    @property
    def setting(self) -> str:
        """The best time, as ``train.checkpoint_every`` takes it."""
        minutes = round(self.seconds / 60)
        return f"{minutes}m" if minutes >= 5 else f"{max(1, round(self.seconds))}s"


def _takes(run: Path, checkpoint_every: str) -> bool:
    """Whether the run could be given it; also where its config cannot be read by who asks."""
    if not os.access(run / CONFIG, os.R_OK):
        return True
    from diffcore.config import configure  # a tenth of a second, for this line alone

    try:
        configure.load(run / CONFIG)
    except (InputError, OSError):  # another version's
        return True
    try:
        configure.load(run / CONFIG, {"train": {"checkpoint_every": checkpoint_every}})
    except InputError:  # guards.explosion wants steps, for one
        return False
    return True


def young(stall: float, mean: float) -> float:
    """Seconds of work between two checkpoints that cost least, to first order: sqrt(2 C M).

    ``stall``: C, seconds that a checkpoint costs. ``mean``: M, seconds between two failures.
    Young, A first order approximation to the optimum checkpoint interval, 1974.
    """
    return math.sqrt(2.0 * stall * mean)


def interval(attempts: Sequence[Attempt], events: Iterable[Mapping[str, Any]]) -> Interval | None:
    """The intervals of a run (``goodput.account`` of its ledger ``events``).

    None without a failure, or without two checkpoints that one attempt wrote while it trained.
    """
    saved: dict[int, list[Mapping[str, Any]]] = {}
    over: set[tuple[int, Any]] = set()
    for event in events:
        if event["event"] == "saved" and event.get("step") is not None:
            saved.setdefault(int(event["attempt"]), []).append(event)
        if event["event"] in ("done", "preempted"):  # the last one is waited for to its end
            over.add((int(event["attempt"]), event.get("step")))
    beside = [[e for e in own if (number, e["step"]) not in over] for number, own in saved.items()]
    gaps = [int(b["step"]) - int(a["step"]) for own in beside for a, b in pairwise(own)]
    gaps = [gap for gap in gaps if gap > 0]
    failures = sum(a.outcome in ends.FAULTS for a in attempts)
    taken = sum(max(0, a.last - (a.first or 0)) + a.rolled_back for a in attempts)
    trained = sum(a.seconds["train"] + a.seconds["replay"] for a in attempts)
    if not (gaps and failures and taken and trained):
        return None
    stall = statistics.fmean(float(e.get("waited", e.get("seconds", 0.0))) for own in beside for e in own)
    mean = sum(a.total - a.seconds["queue"] for a in attempts) / failures
    seconds = young(stall, mean)
    best = max(1, round(seconds * taken / trained))
    return Interval(int(statistics.median(gaps)), best, seconds, stall, failures, mean / 3600.0)

"""A run's job: its state, its logs, and its end, as the run folder and Slurm say."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.exits import DONE, PREEMPTED, RETRYABLE, may_retry
from diffbase.trust import check_folder
from launch.ask.profile import LOCAL
from launch.follow import ends
from launch.job import registry
from launch.job.folder import log_of
from launch.scheduler import client, query
from launch.scheduler.query import Job
from launch.supervise.decide import budget

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "STOPPED", "DEADLINE")
ASK_EVERY = 10.0
"""Seconds between two questions to Slurm: its controller answers everybody."""
FRESH = 60.0
"""Seconds within which a heartbeat says that training runs; a clock may be ahead by as much."""
BY_HAND = "by hand"
"""In the place of a cluster's name, of a run that no submission began: deepspeed, torchrun, python."""
UNKNOWN_TO_SLURM = "not known to Slurm here (squeue, sacct)"


@dataclass(frozen=True)
class Run:
    """A run folder's own account of itself."""

    folder: Path
    job: str
    """Of the newest submission; "" by hand."""
    name: str
    cluster: str
    logs: Path
    """Folder of the newest job's output."""
    events: list[dict[str, Any]]
    beat: dict[str, Any] | None
    left_out: int = 0
    """Lines of the ledger that cannot be read."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """InputError if nothing was submitted there, and nothing trained."""
        left_out: list[int] = []
        events = list(ledger.events(folder, left_out))
        submitted = [e for e in events if e["event"] == "submitted"]
        beat = ledger.heartbeat(folder)
        if not submitted and not any(e["event"] == "start" for e in events):
            damaged = f"; {len(left_out)} lines of events.jsonl cannot be read" if left_out else ""
            raise InputError(
                f"{folder}: nothing was submitted from there (no events.jsonl with a job), "
                f"and nothing trained{damaged}"
            )
        last = submitted[-1] if submitted else {"job": "", "cluster": BY_HAND, "folder": str(folder)}
        return cls(
            folder,
            str(last["job"]),
            str(last.get("name")),
            str(last["cluster"]),
            Path(str(last["folder"])),
            events,
            beat,
            len(left_out),
        )

    def log(self, rank: int) -> Path:
        """A rank's output. InputError by hand: it went to whoever started it."""
        if not self.job:
            raise InputError(f"{self.folder}: it was started by hand, so its output is not kept here")
        return log_of(self.logs, self.job, rank)

    @property
    def asks_slurm(self) -> bool:
        """Whether Slurm may know its job."""
        return bool(self.job) and self.cluster != LOCAL

    @cached_property
    def checkpoint(self) -> int:
        """Step of the newest complete checkpoint; 0 without one."""
        return budget.newest_complete(self.folder)

    @property
    def step(self) -> int | None:
        """How far it is; None before the first step.

        The heartbeat may be older than the newest checkpoint; what was before a return to an older one does
        not count.
        """
        back, taken = 0.0, -1
        for e in self.events:
            step = e.get("step") if isinstance(e.get("step"), int) else None
            if e["event"] in ("loaded", "rollback"):
                back, taken = float(e["time"]), step or 0
            elif step is not None and e["event"] != "ended":
                taken = max(taken, step)
        if self.beat and float(self.beat["time"]) >= back:
            taken = max(taken, int(self.beat["step"]))
        marker = self.folder / "checkpoints" / f"step-{self.checkpoint:08d}" / "COMPLETE"
        with suppress(OSError):
            if marker.stat().st_mtime >= back:
                taken = max(taken, self.checkpoint)
        return taken if taken >= 0 else None

    @property
    def total(self) -> int | None:
        """Steps that it is to take, as far as it has said so."""
        if self.beat:
            return int(self.beat["steps"])
        steps = [e["steps"] for e in self.events if e["event"] == "start" and _is_count(e.get("steps"))]
        return steps[-1] if steps else None

    @property
    def steps(self) -> str:
        """``step/steps``; - before the first step."""
        return "-" if self.step is None else f"{self.step}/{'?' if self.total is None else self.total}"

    @property
    def damage(self) -> str | None:
        """What of the folder's records cannot be read, in words; None where all can."""
        return f"{self.left_out} lines of events.jsonl cannot be read" if self.left_out else None

    @property
    def beats(self) -> bool:
        """Whether the newest heartbeat is of this minute."""
        return self.beat is not None and abs(time.time() - float(self.beat["time"])) < FRESH

    def state(self, job: Job | None, answered: bool = False) -> str:
        """In one word: Slurm's, or what the folder shows. ``answered``: it has, so None is unknown to it."""
        if not self.job:
            return self._by_hand()
        if self.cluster == LOCAL and local_process(self.job):
            return "RUNNING"
        if job is not None:
            return job.state
        since = [e for e in self.events if str(e.get("job")) == self.job]
        ended = [e for e in since if e["event"] == "ended"]
        running = not ended or since[-1]["event"] != "ended"  # another attempt began
        if self.beats and running:
            return "RUNNING"
        if running:
            waits = all(e["event"] == "submitted" for e in since) and not answered and self.cluster != LOCAL
            return "PENDING" if waits else "UNKNOWN"
        return _ENDED.get(int(ended[-1]["code"]), "FAILED")

    def _by_hand(self) -> str:
        _, own = ends.split(self.events)[-1]
        kind = ends.kind(own)
        if kind == ends.RUNNING:
            return "RUNNING" if self.beats or _trains(own[0]) else "UNKNOWN"
        words = {ends.DONE: "COMPLETED", ends.STOPPED: "STOPPED", ends.HANG: "STOPPED", ends.CRASH: "STOPPED"}
        return words.get(kind, "FAILED")


_ENDED = {DONE: "COMPLETED", PREEMPTED: "STOPPED", RETRYABLE: "STOPPED"}


def _is_count(value: Any) -> bool:
    """The ledger lets through what it does not know."""
    return isinstance(value, int) and 0 <= value < 2**53


def _trains(start: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a ``start`` still runs, on this machine."""
    if start.get("host") != socket.gethostname() or not isinstance(start.get("pid"), int):
        return False
    try:
        return b"train" in Path(f"/proc/{start['pid']}/cmdline").read_bytes()
    except OSError:
        return False


def newest() -> Path:
    """Run folder of this user's newest submission. InputError without one."""
    known = registry.submissions()
    if not known:
        raise InputError("no submissions are known; give a run folder")
    return Path(known[-1]["run"])


def are_over(runs: Sequence[Run]) -> bool:
    """Whether the newest jobs of all these runs are over: in Slurm, or as the run folders show."""
    open_ = [run for run in runs if not _ended_for_good(run)]  # the others without a question to Slurm
    known = query.ask({run.job: run.name for run in open_ if run.asks_slurm})
    states = [(run.state(known.get(run.job), known.answered and run.asks_slurm), run) for run in open_]
    # What Slurm no longer knows adds nothing to its log.
    return all(
        state in OVER or (state == "UNKNOWN" and known.answered and run.asks_slurm) for state, run in states
    )


def _ended_for_good(run: Run) -> bool:
    ends = [e for e in run.events if e["event"] == "ended" and str(e.get("job")) == run.job]
    return run.asks_slurm and bool(ends) and not may_retry(int(ends[-1]["code"]))


def cancel(run: Run) -> None:
    """SIGTERM, which has every rank save; Slurm kills what is left after its KillWait.

    InputError for a run folder that others could change: the number is what they wrote there.
    """
    check_folder(run.folder)
    if not run.job:
        raise InputError(f"{run.folder}: no job of ours: it was started by hand; end its processes there")
    if run.cluster == LOCAL:
        if not local_process(run.job):
            raise InputError(f"local job {run.job} does not run any more")
        os.kill(int(run.job), signal.SIGTERM)
    else:
        # By number and name: the number alone may be another cluster's, or another person's by now.
        known = query.ask({run.job: run.name}).get(run.job)
        if known is None or known.state in OVER:
            state = f"is {known.state}" if known else f"is {UNKNOWN_TO_SLURM}"
            raise InputError(f"job {run.job} {state}")
        if refusal := client.cancel(run.job):
            raise InputError(f"scancel: {refusal}")


def local_process(job: str) -> bool:
    """Whether a local job's controller runs; another process may have its number by now."""
    try:
        return b"submitit.local" in Path(f"/proc/{job}/cmdline").read_bytes()
    except OSError:
        return False

"""A run's job: its state, its logs, and its end, as the run folder and Slurm say."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.exits import DONE, PREEMPTED, RETRYABLE, may_retry
from diffbase.trust import check_folder
from launch.ask.profile import LOCAL
from launch.follow.tail import every, tail
from launch.job import registry
from launch.job.folder import log_of
from launch.scheduler import client, query
from launch.scheduler.query import Job

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "STOPPED", "DEADLINE")
ASK_EVERY = 10.0
"""Seconds between two questions to Slurm: its controller answers everybody."""
FRESH = 60.0
"""Seconds within which a heartbeat says that training runs; a clock may be ahead by as much."""


@dataclass(frozen=True)
class Run:
    """A run folder's own account of itself."""

    folder: Path
    job: str
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
        """InputError if nothing was submitted there."""
        left_out: list[int] = []
        events = list(ledger.events(folder, left_out))
        submitted = [e for e in events if e["event"] == "submitted"]
        if not submitted:
            damaged = f"; {len(left_out)} lines of events.jsonl cannot be read" if left_out else ""
            raise InputError(
                f"{folder}: nothing was submitted from there (no events.jsonl with a job){damaged}"
            )
        last = submitted[-1]
        return cls(
            folder,
            str(last["job"]),
            str(last.get("name")),
            str(last["cluster"]),
            Path(last["folder"]),
            events,
            ledger.heartbeat(folder),
            len(left_out),
        )

    def log(self, rank: int) -> Path:
        """A rank's output."""
        return log_of(self.logs, self.job, rank)

    @property
    def steps(self) -> str:
        """``step/steps`` as of the newest heartbeat; - without one."""
        return f"{self.beat['step']}/{self.beat['steps']}" if self.beat else "-"

    @property
    def damage(self) -> str | None:
        """What of the folder's records cannot be read, in words; None where all can."""
        return f"{self.left_out} lines of events.jsonl cannot be read" if self.left_out else None

    def state(self, job: Job | None) -> str:
        """In one word: Slurm's, or what the folder shows."""
        if self.cluster == LOCAL and local_process(self.job):
            return "RUNNING"
        if job is not None:
            return job.state
        since = [e for e in self.events if str(e.get("job")) == self.job]
        ended = [e for e in since if e["event"] == "ended"]
        if self.beat and abs(time.time() - float(self.beat["time"])) < FRESH and not ended:
            return "RUNNING"
        if not ended:
            return "PENDING" if all(e["event"] == "submitted" for e in since) else "UNKNOWN"
        names = {DONE: "COMPLETED", PREEMPTED: "STOPPED", RETRYABLE: "STOPPED"}
        return names.get(int(ended[-1]["code"]), "FAILED")


def newest() -> Path:
    """Run folder of this user's newest submission. InputError without one."""
    known = registry.submissions()
    if not known:
        raise InputError("no submissions are known; give a run folder")
    return Path(known[-1]["run"])


def follow_run(folder: Path, rank: int) -> None:
    """Show a rank's output until the run's job is over, and its successor's if it has one."""
    shown = None
    while (run := Run.read(folder)).job != shown:
        shown = run.job
        tail(run.log(rank), ended=every(ASK_EVERY, partial(over, folder, run.job)))


def over(folder: Path, job: str) -> bool:
    """Whether ``job`` is over: in Slurm, or as the run folder shows."""
    run = Run.read(folder)
    if run.job != job:
        return True
    if run.cluster != LOCAL:
        ends = [e for e in run.events if e["event"] == "ended" and str(e.get("job")) == job]
        if ends and not may_retry(int(ends[-1]["code"])):
            return True  # without a question to Slurm
    known = query.ask({job: run.name}).get(job) if run.cluster != LOCAL else None
    return run.state(known).split()[0] in OVER


def cancel(run: Run) -> None:
    """SIGTERM, which has every rank save; Slurm kills what is left after its KillWait.

    InputError for a run folder that others could change: the number is what they wrote there.
    """
    check_folder(run.folder)
    if run.cluster == LOCAL:
        if not local_process(run.job):
            raise InputError(f"local job {run.job} does not run any more")
        os.kill(int(run.job), signal.SIGTERM)
    else:
        # By number and name: the number alone may be another cluster's, or another person's by now.
        known = query.ask({run.job: run.name}).get(run.job)
        if known is None or known.state in OVER:
            state = f"is {known.state}" if known else "is not known to Slurm here (squeue, sacct)"
            raise InputError(f"job {run.job} {state}")
        if refusal := client.cancel(run.job):
            raise InputError(f"scancel: {refusal}")
    print(f"job {run.job} was asked to stop; the same submission goes on from the newest checkpoint")


def local_process(job: str) -> bool:
    """Whether a local job's controller runs; another process may have its number by now."""
    try:
        return b"submitit.local" in Path(f"/proc/{job}/cmdline").read_bytes()
    except OSError:
        return False

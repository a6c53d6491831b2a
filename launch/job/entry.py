"""What a submission leaves in the run's ledger and the user's list of jobs, and how its job ended."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from diffbase import ledger
from diffbase.line import say
from launch.ask.spec import JobSpec
from launch.job import registry
from launch.job.folder import Place


def record(own: Place, place: Place, spec: JobSpec, job: str, *, listed: bool = True, **more: Any) -> None:
    """Tell the run's ledger and, if it is to be ``listed``, the user's list of jobs."""
    ledger.record(
        own.run,
        "submitted",
        attempt=next_attempt(own.run),
        job=job,
        name=spec.job,
        folder=str(place.folder),
        cluster=spec.cluster.name,
        nodes=spec.nodes,
        ranks=spec.world,
        **more,
    )
    if listed and (why := registry.remember(own.run, job, spec.cluster.name)):
        say(f"warning: the list of jobs does not have this one: {why}", error=True)


def next_attempt(run: Path) -> int:
    """The number of the attempt after the last one that was started."""
    begun = [e["attempt"] for e in ledger.events(run) if e["event"] != "submitted" and "attempt" in e]
    return max((int(number) for number in begun), default=-1) + 1


def last_code(run: Path) -> int:
    """Exit code of the newest job's last attempt, as the ledger has it; 1 if it ended without a word."""
    for _ in range(20):  # a network disk shows the last line late
        events = list(ledger.events(run))
        job = next((e["job"] for e in reversed(events) if e["event"] == "submitted"), None)
        ends = [e for e in events if e["event"] == "ended" and e.get("job") == job]
        if ends:
            return int(ends[-1].get("code", 1))
        time.sleep(0.1)
    return 1

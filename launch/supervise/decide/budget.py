"""How often a run is started again, decided from its ledger alone: every life of the job reads the same.

An attempt that failed (a crash, a hang, a lost node) counts against ``restarts``. One that was asked to stop
and saved does not. Two attempts in a row that failed, or used up their time, without getting the run any
further end it, whatever is left: the third would do the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbase import ledger
from diffbase.exits import PREEMPTED, may_retry


@dataclass(frozen=True)
class Reached:
    """How far a run is: the step that training got to, and that of the newest complete checkpoint."""

    step: int
    kept: int


def newest_complete(run: Path) -> int:
    """Step of the newest checkpoint with COMPLETE; 0 without one. Its files are not read."""
    steps = [path.parent.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*/COMPLETE")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def reached(run: Path, attempt: int) -> Reached:
    """How far ``attempt`` got, from the ledger and the heartbeat."""
    steps = [
        int(e["step"])
        for e in ledger.events(run)
        if e.get("attempt") == attempt and isinstance(e.get("step"), int) and e["event"] != "ended"
    ]
    beat = ledger.heartbeat(run)
    if beat and beat.get("attempt") == attempt:
        steps.append(int(beat.get("step", 0)))
    return Reached(max(steps, default=0), newest_complete(run))


def progressed(events: Iterable[Mapping[str, Any]], now: Reached) -> bool:
    """Whether an attempt that got to ``now`` left the run further than every one that ended before it."""
    ended = [e for e in events if e["event"] == "ended"]
    return now.step > max((int(e.get("step") or 0) for e in ended), default=0) or now.kept > max(
        (int(e.get("kept", 0)) for e in ended), default=0
    )


def spent(events: Iterable[Mapping[str, Any]], restarts: int) -> str | None:
    """Why the run must not be started again, or None. ``events``: its whole ledger, oldest first.

    Counting begins at the newest submission by a person: who submits again has mended something.
    """
    failures, idle = 0, 0
    for event in events:
        if event["event"] == "submitted" and not event.get("takeover"):
            failures, idle = 0, 0
        if event["event"] != "ended":
            continue
        failed = may_retry(int(event.get("code", 1))) and event.get("code") != PREEMPTED
        failures += failed
        if failed or event.get("timeout"):
            idle = 0 if event.get("progress") else idle + 1
    if idle >= 2:
        return "two attempts in a row made no progress"
    if failures > restarts:
        return f"{failures} failures, and {restarts} restarts were allowed (--restarts)"
    return None

"""How often a run is started again, decided from its ledger alone: every life of the job reads the same.

An attempt that failed (a crash, a hang, a lost node) counts against ``restarts`` for a day: a thousand nodes
fail four times a day, month after month (docs/scale.md). One that was asked to stop and saved does not.

Two attempts in a row that failed, or used up their time, without getting the run any further end it, whatever
is left: the third would do the same. Unless they were not alike, because another node and another rank was to
blame, or nobody, and at other steps: then it may be the machines, and only more of them in a row end it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbase import ledger
from diffbase.exits import PREEMPTED, may_retry

DAY = 24 * 3600.0
"""Seconds for which a failure counts."""
NEAR = 10
"""Steps within which two attempts ended at the same place; a tenth of what they trained, if that is more."""
MOST_IDLE = 5
"""Attempts in a row without progress that end a run, whoever is to blame; twice as many if some of them ended
on nodes that were left out for it."""


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
    failures: list[float] = []
    idle: list[Mapping[str, Any]] = []
    left_out: set[str] = set()
    for event in events:
        if event["event"] == "submitted" and not event.get("takeover"):
            failures, idle, left_out = [], [], set()
        if event["event"] == "left_out":
            left_out.add(str(event.get("node")))
        if event["event"] != "ended":
            continue
        left_out.discard(event.get("node") or "")  # it is back
        failed = may_retry(int(event.get("code", 1))) and event.get("code") != PREEMPTED
        if failed:
            failures.append(float(event.get("time", 0.0)))
        if failed or event.get("timeout"):
            idle = [] if event.get("progress") else [*idle, event]
    if len(idle) >= 2 and _alike(idle[-2], idle[-1], left_out):
        return "two attempts in a row made no progress"
    unexplained = [e for e in idle if (e.get("node") or "") not in left_out]
    if len(unexplained) >= MOST_IDLE or len(idle) >= 2 * MOST_IDLE:
        return f"{len(idle)} attempts in a row made no progress"
    lately = sum(time > failures[-1] - DAY for time in failures)
    if lately > restarts:
        return f"{lately} failures within a day, and {restarts} restarts were allowed (--restarts)"
    return None


def _alike(one: Mapping[str, Any], other: Mapping[str, Any], left_out: Container[str]) -> bool:
    """Whether two failures may have the same cause. ``left_out``: nodes that the run goes on without since.

    A cause in the program comes back at the same place, or at the same rank wherever that runs; one in a
    node where the node is.
    """
    nodes = one.get("node") or "", other.get("node") or ""
    if nodes == ("", ""):
        both_timed_out = bool(one.get("timeout") and other.get("timeout"))
        return both_timed_out or _same_place(one, other)
    if nodes[0] == nodes[1]:
        return nodes[0] not in left_out
    return "" not in nodes and one.get("rank") is not None and one.get("rank") == other.get("rank")


def _same_place(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two attempts got about as far beyond what was kept: heartbeats are a second apart."""
    steps = [int(e.get("step") or 0) for e in (one, other)]
    beyond = max(steps) - int(one.get("kept") or 0)
    return abs(steps[0] - steps[1]) <= max(NEAR, beyond // 10)

"""What follows the end of an attempt: another one in the same allocation, or the end of this life of the job.

Pure: decided from the verdict and the run's ledger, so that ``benchmarks/thousand_nodes.py`` can ask it the
same questions on a simulated clock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffbase.exits import FATAL, PREEMPTED, RETRYABLE
from launch.supervise.decide import budget
from launch.supervise.decide.verdict import Verdict

FAULTS = 2
"""Failures of one node, before any other, after which it is left out."""
WINDOW = 7 * 24 * 3600.0
"""Seconds within which they, and the nodes left out, are counted."""
FEW, SHARE = 3, 20
"""So many nodes, or one in SHARE, may be left out within the window."""


REFUSALS = 3
"""Lives of a job that end at once because they have a node that was left out, before that is tried."""


@dataclass(frozen=True)
class Decision:
    """``again``: another attempt in this allocation; otherwise all leave with ``code``.

    ``avoid``: nodes (name -> why) that the job is to go on without.
    """

    again: bool
    code: int
    why: str
    avoid: Mapping[str, str]


def after_attempt(
    verdict: Verdict,
    events: Sequence[Mapping[str, Any]],
    *,
    restarts: int,
    nodes: int,
    asked: bool,
    whole: bool,
    idle: Callable[[], Collection[str]],
    others: Callable[[], Collection[str]],
) -> Decision:
    """What follows ``verdict``, whose end is the last in ``events`` (the whole ledger, oldest first).

    ``nodes``: of the job. ``asked``: the job was asked to stop. ``whole``: every rank's supervisor answers.
    ``idle``: names the nodes that the job could have at once in place of one, ``others``: those that it could
    wait for; only asked where one is to be left out.
    """
    if verdict.code not in (RETRYABLE, PREEMPTED):
        return Decision(False, verdict.code, verdict.why, {})
    avoid: dict[str, str] = {}
    node = suspect(events, nodes) if verdict.code == RETRYABLE and not asked else None
    if node:  # but the job must not wait for ever, nor at all where it may get on with that node
        without = [*events, {"event": "left_out", "node": node}]
        over = budget.spent(events, restarts) and not budget.spent(without, restarts)
        if set(idle()) - {node} or (over and set(others()) - {node}):
            avoid, events = {node: f"failed before all others {FAULTS} times"}, without
    if why := budget.spent(events, restarts):
        return Decision(False, FATAL, f"given up: {why}", {})
    if verdict.code == PREEMPTED or asked or not whole or avoid:
        return Decision(False, verdict.code, verdict.why, avoid)
    return Decision(True, verdict.code, verdict.why, {})


def suspect(events: Sequence[Mapping[str, Any]], nodes: int) -> str | None:
    """The node of the newest end, if it has failed before all others FAULTS times within WINDOW; else None.

    Counted since the newest submission by a person. None too where as many as may be are left out already.
    """
    faults: list[tuple[str, float]] = []
    for event in events:
        if event["event"] == "submitted" and not event.get("takeover"):
            faults = []
        if event["event"] == "ended":
            faults.append((event.get("node") or "", float(event.get("time", 0.0))))
    if not faults or not faults[-1][0]:
        return None
    node, now = faults[-1]
    often = sum(name == node and time > now - WINDOW for name, time in faults)
    return node if often >= FAULTS and may_leave_out(events, nodes, now) else None


def may_leave_out(events: Iterable[Mapping[str, Any]], nodes: int, now: float) -> bool:
    """Whether one more of ``nodes`` may be left out; those that failed a preflight do not count."""
    out = [e for e in events if e["event"] == "left_out" and not e.get("preflight")]
    return sum(float(e.get("time", 0.0)) > now - WINDOW for e in out) < max(FEW, nodes // SHARE)


def came_back(events: Iterable[Mapping[str, Any]], nodes: Container[str], since: float) -> dict[str, str]:
    """Of ``nodes`` those that the run was to go on without, and why. ``events``: the whole ledger.

    Left out after ``since`` (seconds since 1970) and the newest submission by a person, and not tried again
    nor refused REFUSALS times.
    """
    out: dict[str, str] = {}
    refused = 0
    for event in events:
        if event["event"] == "submitted" and not event.get("takeover"):
            out, refused = {}, 0
        elif event["event"] == "left_out" and float(event.get("time", 0.0)) > since:
            out[str(event.get("node"))] = str(event.get("why") or "it failed")
            refused = 0
        elif event["event"] == "refused":
            refused += 1
        elif event["event"] == "ended":
            out.pop(event.get("node") or "", None)
    return {} if refused >= REFUSALS else {node: why for node, why in out.items() if node in nodes}

"""What went wrong in a run, and when: its ledger without what is written all the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.follow import ends

BESIDE = ("save_failed", "log_lost", "damaged", "rollback", "left_out", "refused", "slow")
"""Events that end no attempt, and that somebody should know of."""
NOISE = ("saving", "saved", "pace")
"""Events of every few minutes."""


@dataclass(frozen=True)
class Fault:
    """``time``: seconds since 1970; ``kind``: of ends.py, or an event's name; ``step``: where, if known."""

    time: float
    attempt: int
    kind: str
    why: str
    step: int | None
    node: str
    """To blame; "" where that is not known."""


def faults(events: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """All of them, oldest first."""
    found = [_beside(e) for e in events if e["event"] in BESIDE]
    attempts = ends.split(events)
    for i, (number, own) in enumerate(attempts):
        kind = ends.kind(own, newest=i == len(attempts) - 1)
        if kind in ends.FAULTS:
            found.append(_end(number, own, kind))
    return sorted(found, key=lambda fault: fault.time)


def _end(number: int, own: Sequence[Mapping[str, Any]], kind: str) -> Fault:
    last = next((e for e in reversed(own) if e["event"] == "ended"), None)
    told = [e for e in own if e["event"] in ("failed", "hang")]
    # Of several ranks that speak, the one to blame; else the first, since the others lost it.
    blamed = [e for e in told if last and e.get("rank") is not None and e.get("rank") == last.get("rank")]
    cause = next(iter(blamed or told), None)
    words = [str(e["why"]) for e in (last, cause) if e and e.get("why")]
    if not words and cause is not None:
        words = [f"no sign of life in {cause.get('section', 'training')}"]
    end = last or cause or own[-1]
    steps = [e["step"] for e in (last, cause, *reversed(own)) if e and isinstance(e.get("step"), int)]
    return Fault(
        float(end["time"]), number, kind, "; ".join(dict.fromkeys(words)) or "no last word",
        steps[0] if steps else None, str((last or {}).get("node") or ""),
    )  # fmt: skip


def _beside(event: Mapping[str, Any]) -> Fault:
    why = str(event.get("why", ""))
    if event["event"] == "rollback":
        why = why or f"{event.get('lost', '?')} steps lost"
    if event["event"] == "refused" and not why:
        why = f"Slurm gave it nodes that were left out: {event.get('nodes')}"
    step, number = event.get("step"), int(event["attempt"])
    return Fault(float(event["time"]), number, event["event"], why, step, str(event.get("node") or ""))


def others(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """What else happened, without what is written all the time: attempt and event, oldest first."""
    told = {*NOISE, *BESIDE, "failed", "hang"}
    attempts = ends.split(events)
    found = []
    for i, (number, own) in enumerate(attempts):
        well = ends.kind(own, newest=i == len(attempts) - 1) not in ends.FAULTS
        found += [(number, e) for e in own if e["event"] not in told and (well or e["event"] != "ended")]
    found += [(int(e["attempt"]), e) for e in events if e["event"] == "submitted" and not _began(e, attempts)]
    return sorted(found, key=lambda one: float(one[1]["time"]))


def _began(event: Mapping[str, Any], attempts: ends.Attempts) -> bool:
    """Whether the line is among an attempt's."""
    return any(event is one for _, own in attempts for one in own)

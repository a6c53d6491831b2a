"""Where a run's time went, from its ledger: how much of it trained, and what was lost to what.

queue    waiting for Slurm; after a lost node from its last sign of life, until Slurm has noticed too
start    from the job's first process to the training process's begin, and restarts in place
load     taking up a checkpoint, up to the end of the first step
train    steps that counted
save     writing checkpoints, as far as training waited for it
replay   steps that were done again, by a later attempt or after a rollback
hang     from the last sign of life to the end of an attempt that failed
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffbase.exits import DONE, PREEMPTED, may_retry

KINDS = ("queue", "start", "load", "train", "save", "replay", "hang")
COLORS = dict(
    zip(KINDS, ("#b8c0cc", "#7f9cc9", "#5b7db1", "#4c9f70", "#e0b341", "#d98243", "#c94f4f"), strict=True)
)


@dataclass
class Attempt:
    """Seconds by kind, and when it began to be waited for (seconds since 1970)."""

    number: int
    begin: float
    outcome: str = "running"
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    first: int | None = None
    """Step that it began at; None if it did not come to that."""
    last: int = 0
    """Step that it got to."""
    rolled_back: int = 0
    """Steps that it took back itself."""

    @property
    def total(self) -> float:
        """Seconds of all kinds."""
        return sum(self.seconds.values())


def account(events: Iterable[Mapping[str, Any]], heartbeat: Mapping[str, Any] | None = None) -> list[Attempt]:
    """The attempts of a ledger, oldest first. ``heartbeat``: the newest, for one that still runs."""
    lines = sorted(events, key=lambda e: float(e["time"]))
    numbers = sorted({int(e["attempt"]) for e in lines if e["event"] in ("started", "start")})
    attempts: list[Attempt] = []
    before: Mapping[str, Any] | None = None  # the event that ended the attempt before
    for number in numbers:
        own = [e for e in lines if int(e["attempt"]) == number]
        attempt = _one(number, own, before, attempts[-1] if attempts else None, lines, heartbeat)
        attempts.append(attempt)
        before = next((e for e in reversed(own) if e["event"] == "ended"), before)
    for i, attempt in enumerate(attempts):
        again = next((later.first for later in attempts[i + 1 :] if later.first is not None), attempt.last)
        _replayed(attempt, attempt.last - again)
    return attempts


def _replayed(attempt: Attempt, steps: int) -> None:
    """Move the time of so many steps, the attempt's last ones, from training to replay."""
    taken = attempt.last - (attempt.first or 0) + attempt.rolled_back
    lost = min(max(steps, 0) + attempt.rolled_back, taken)
    if lost > 0:
        seconds = attempt.seconds["train"] * lost / taken
        attempt.seconds["train"] -= seconds
        attempt.seconds["replay"] += seconds


def _one(
    number: int,
    own: Sequence[Mapping[str, Any]],
    before: Mapping[str, Any] | None,
    previous: Attempt | None,
    lines: Sequence[Mapping[str, Any]],
    heartbeat: Mapping[str, Any] | None,
) -> Attempt:
    def at(event: str) -> float | None:
        return next((float(e["time"]) for e in own if e["event"] == event), None)

    started, begun = at("started"), at("start")
    first = started if started is not None else begun
    assert first is not None
    # It was waited for since it was submitted, or since the attempt before it was over.
    begin = previous.begin + previous.total if previous else first
    submitted = [
        float(e["time"])
        for e in lines
        if e["event"] == "submitted" and not e.get("takeover") and float(e["time"]) <= first
    ]
    if submitted and (not previous or submitted[-1] > begin):
        begin = submitted[-1]
    attempt = Attempt(number, begin)
    in_place = before is not None and _life(own) is not None and _life(own) == _life(lines, before)
    attempt.seconds["start" if in_place else "queue"] += max(0.0, first - begin)

    ended = next((e for e in reversed(own) if e["event"] == "ended"), None)
    beat = float(ended["beat"]) if ended and ended.get("beat") else None
    if beat is None and heartbeat and int(heartbeat.get("attempt", -1)) == number:
        beat = float(heartbeat["time"])
    # Who tells of a hang or of a lost peer has waited for it.
    said = max(float(e["time"]) for e in own if e["event"] not in ("ended", "submitted", "hang", "failed"))
    alive = max(beat or said, said)
    end = _end(ended, alive, own)
    reached = first
    for kind, until in (("start", begun), ("load", at("first_step")), ("train", end)):
        until = min(end if until is None else until, end)
        attempt.seconds[kind] += max(0.0, until - reached)
        reached = max(reached, until)

    steps = [int(e["step"]) for e in own if isinstance(e.get("step"), int)]
    if heartbeat and int(heartbeat.get("attempt", -1)) == number:
        steps.append(int(heartbeat["step"]))
    loaded = (e["step"] for e in own if e["event"] == "loaded" and e.get("step") is not None)
    attempt.first = next(loaded, None)
    attempt.last = max(steps, default=0)
    attempt.rolled_back = sum(int(e.get("lost", 0)) for e in own if e["event"] == "rollback")
    last_words = {e.get("step") for e in own if e["event"] in ("done", "preempted")}
    for e in own:
        if e["event"] == "saved":  # beside the steps, but for the last one
            waited = "waited" if "waited" in e and e.get("step") not in last_words else "seconds"
            _move(attempt, "save", float(e.get(waited, 0)))
    if ended is not None and may_retry(int(ended["code"])) and ended["code"] != PREEMPTED:
        _move(attempt, "hang", max(0.0, end - alive))
    attempt.outcome = _outcome(ended)
    return attempt


def _life(events: Sequence[Mapping[str, Any]], of: Mapping[str, Any] | None = None) -> tuple[str, int] | None:
    """(job, restart) that an attempt ran in."""
    number = None if of is None else of["attempt"]
    for e in events:
        if e["event"] == "started" and (number is None or e["attempt"] == number):
            return str(e.get("job")), int(e.get("restart", 0))
    return None


def _end(ended: Mapping[str, Any] | None, alive: float, own: Sequence[Mapping[str, Any]]) -> float:
    if ended is None:
        return alive
    # The end of an attempt that was killed with its node is written by the next life.
    lost = "killed with its node" in str(ended.get("why", ""))
    return alive if lost else max(float(ended["time"]), alive)


def _move(attempt: Attempt, kind: str, seconds: float) -> None:
    """Out of what counted as training."""
    seconds = min(seconds, attempt.seconds["train"])
    attempt.seconds["train"] -= seconds
    attempt.seconds[kind] += seconds


def _outcome(ended: Mapping[str, Any] | None) -> str:
    if ended is None:
        return "running"
    code = int(ended["code"])
    return {DONE: "done", PREEMPTED: "stopped"}.get(code, "failed")


def share(attempts: Sequence[Attempt], waiting: bool = False) -> float:
    """Seconds that trained over all seconds, of those in the queue only with ``waiting``."""
    total = sum(a.total - (0.0 if waiting else a.seconds["queue"]) for a in attempts)
    return sum(a.seconds["train"] for a in attempts) / total if total else 0.0


def svg(attempts: Sequence[Attempt], title: str) -> str:
    """One bar per attempt over the time since the first submission."""
    from diffbase.page import svg as charts  # Jinja2 takes as long to load as all else that launch.jobs needs

    begin = min((a.begin for a in attempts), default=0.0)
    rows = []
    for a in attempts:
        stretches = [
            (seconds, COLORS[kind], f"{kind} {seconds:.1f} s") for kind, seconds in a.seconds.items()
        ]
        rows.append((f"{a.number} {a.outcome}", a.begin - begin, stretches, ""))
    return charts.stacks(rows, title, left=90, legend=COLORS, tick=_clock)


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""Where a run's time went, from its ledger: how much of it trained, and what was lost to what.

queue    waiting for Slurm, from when it had the job in its queue
start    from the job's first process to the training process's begin, and restarts in place
load     taking up a checkpoint, up to the end of the first step
train    steps that counted
save     writing checkpoints, as far as training waited for it
replay   steps that were done again, by a later attempt or after a rollback
hang     from the last sign of life of an attempt that hung to its end
failure  the same of one that failed otherwise: until its end was noticed, and for a lost node or supervisor
         until Slurm had the job in its queue again
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.follow import ends
from launch.follow.ends import Events

KINDS = ("queue", "start", "load", "train", "save", "replay", "hang", "failure")
COLORS = dict(
    zip(
        KINDS,
        ("#b8c0cc", "#7f9cc9", "#5b7db1", "#4c9f70", "#e0b341", "#d98243", "#c94f4f", "#8e3b6f"),
        strict=True,
    )
)
BEGINS = ("started", "start")
LAST_WORDS = ("done", "preempted", "failed", "hang")
"""Of the training process."""


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
    attempts: list[Attempt] = []
    before: Mapping[str, Any] | None = None  # the event that ended the attempt before
    began = [(number, own) for number, own in ends.split(lines) if any(e["event"] in BEGINS for e in own)]
    for i, (number, own) in enumerate(began):
        beat = heartbeat
        if beat and int(beat.get("attempt", -1)) != int(own[0]["attempt"]):
            beat = None
        if any(later[0]["attempt"] == own[0]["attempt"] for _, later in began[i + 1 :]):
            beat = None  # by hand all have one number: it is the newest one's
        newest = i == len(began) - 1
        attempt = _one(number, own, before, attempts[-1] if attempts else None, lines, beat, newest)
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
    own: Events,
    before: Mapping[str, Any] | None,
    previous: Attempt | None,
    lines: Events,
    heartbeat: Mapping[str, Any] | None,
    newest: bool,
) -> Attempt:
    def at(event: str) -> float | None:
        return next((float(e["time"]) for e in own if e["event"] == event), None)

    started, begun = at("started"), at("start")
    first = started if started is not None else begun
    assert first is not None
    begin = _waited_from(own, first, previous, lines)
    attempt = Attempt(number, begin, ends.kind(own, newest))
    in_place = before is not None and _life(own) is not None and _life(own) == _life(lines, before)
    back = begin  # when the job was in the queue again
    if previous and previous.outcome in ends.FAULTS and not in_place:
        queued = next((e["queued"] for e in own if e.get("queued") is not None), begin)
        back = min(max(float(queued), begin), max(first, begin))
    attempt.seconds["failure"] += back - begin
    attempt.seconds["start" if in_place else "queue"] += max(0.0, first - back)

    ended = next((e for e in reversed(own) if e["event"] == "ended"), None)
    beat = float(ended["beat"]) if ended and ended.get("beat") else None
    if beat is None and heartbeat:
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
    if heartbeat:
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
    if attempt.outcome in ends.FAULTS:
        _move(attempt, "hang" if attempt.outcome == ends.HANG else "failure", max(0.0, end - alive))
    return attempt


def _waited_from(own: Events, first: float, previous: Attempt | None, lines: Events) -> float:
    """Since when an attempt, whose process began at ``first``, was waited for.

    Since it was submitted, or since the attempt before it was over; by hand nobody says that it is wanted.
    """
    if not any(e["event"] == "started" for e in own):
        return first
    begin = previous.begin + previous.total if previous else first
    submitted = [
        float(e["time"])
        for e in lines
        if e["event"] == "submitted" and not e.get("takeover") and float(e["time"]) <= first
    ]
    if submitted and (not previous or submitted[-1] > begin):
        begin = submitted[-1]
    return begin


def _life(events: Events, of: Mapping[str, Any] | None = None) -> tuple[str, int] | None:
    """(job, restart) that an attempt ran in."""
    number = None if of is None else of["attempt"]
    for e in events:
        if e["event"] == "started" and (number is None or e["attempt"] == number):
            return str(e.get("job")), int(e.get("restart", 0))
    return None


def _end(ended: Mapping[str, Any] | None, alive: float, own: Events) -> float:
    if ended is None:
        return max([alive, *(float(e["time"]) for e in own if e["event"] in LAST_WORDS)])
    # The end of an attempt that was killed with its node is written by the next life.
    lost = "killed with its node" in str(ended.get("why", ""))
    return alive if lost else max(float(ended["time"]), alive)


def _move(attempt: Attempt, kind: str, seconds: float) -> None:
    """Out of what counted as training."""
    seconds = min(seconds, attempt.seconds["train"])
    attempt.seconds["train"] -= seconds
    attempt.seconds[kind] += seconds


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

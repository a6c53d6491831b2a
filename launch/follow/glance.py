"""A run at a glance: state, how far, how fast, how long still, and what went wrong last."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffbase.formats import jsonl
from diffcore.runs.figures import spent_of
from launch.follow import condition, ends, goodput
from launch.follow.faults import Fault, faults
from launch.follow.points import Unreadable
from launch.follow.run import UNKNOWN_TO_SLURM, Run
from launch.scheduler.query import Job, Known
from launch.supervise.decide import pace

LINES = 5
"""Logged steps that the rate is the median of."""
LONGEST = 1e10
"""Seconds left, at most: 300 years."""
UNREADABLE = "UNREADABLE"


@dataclass(frozen=True)
class Glance:
    """One run. None: not known, or not yet."""

    run: str
    job: str | None
    cluster: str
    state: str
    """Slurm's word, or the folder's."""
    condition: str
    """The word for scripts, of condition.py."""
    why: str | None = None
    """Why it waits, how it ended, or why nothing is known of it."""
    nodes: str | None = None
    elapsed: str | None = None
    """Of this life of the job, as Slurm writes it."""
    step: int | None = None
    steps: int | None = None
    section: str | None = None
    """What training was at when it was heard of last."""
    heard: float | None = None
    """When that was, seconds since 1970."""
    rate: float | None = None
    """Steps per second, lately; of one that does not run, before it ended."""
    left: float | None = None
    """Seconds to the last step at that rate; of a running one."""
    goodput: float | None = None
    """Share of the time on the nodes that trained."""
    checkpoint: int = 0
    """Step of the newest complete one."""
    attempts: int | None = None
    failed: int | None = None
    stopped: int | None = None
    fault: Fault | None = None
    """The newest."""
    slow: Mapping[int, float] | None = None
    """Ranks that were slow lately: how many times their peers' time they took for their part of a step."""
    damage: str | None = None
    spent: Mapping[str, float] | None = None
    """What the run has cost, over all its lives: images, flops, cpu_seconds."""

    def tree(self) -> dict[str, Any]:
        """For JSON: the same names."""
        return asdict(self)


def glance(run: Run | Unreadable, known: Known) -> Glance:
    """What there is to say of a run. ``known``: Slurm's answer for its job among others."""
    if isinstance(run, Unreadable):
        return Glance(
            str(run.folder), run.job, run.cluster, UNREADABLE, "unknown", why=run.why, damage=run.why
        )
    job = known.get(run.job) if run.asks_slurm else None
    state = run.state(job, known.answered and run.asks_slurm)
    word = condition.of(state)
    attempts = ends.split(run.events)
    kinds = [ends.kind(own, newest=i == len(attempts) - 1) for i, (_, own) in enumerate(attempts)]
    accounts = goodput.account(run.events, run.beat)
    rate = rate_of(run.folder)
    step, total = run.step, run.total
    left = None
    if word == "running" and rate is not None and step is not None and total is not None:
        left = min(max(0, total - step) / rate, LONGEST)
    return Glance(
        str(run.folder), run.job or None, run.cluster, state, word,
        why=_why(run, job, state, known.answered), nodes=(job.nodes or None) if job else None,
        elapsed=(job.elapsed or None) if job else None, step=step, steps=total,
        section=run.beat["section"] if run.beat else None, heard=run.beat["time"] if run.beat else None,
        rate=rate, left=left,
        goodput=goodput.share(accounts) if accounts else None, checkpoint=run.checkpoint,
        attempts=len(attempts), failed=sum(kind in ends.FAULTS for kind in kinds),
        stopped=sum(kind in (ends.STOPPED, ends.TIMEOUT) for kind in kinds),
        fault=next(iter(reversed(faults(run.events))), None), damage=run.damage,
        slow=pace.slow_ranks(run.events, pace.factor_of(run.events)), spent=costs_of(run.folder),
    )  # fmt: skip


def of_sweep(at: Glance, points: Sequence[Glance]) -> Glance:
    """A sweep's own line, of its points'; ``at`` itself without any."""
    if not points:
        return at
    words = [one.condition for one in points]
    state = ", ".join(f"{words.count(word)} {word}" for word in condition.CODES if word in words)
    newest = max((one.fault for one in points if one.fault), key=lambda fault: fault.time, default=None)
    return replace(
        at, state=state, condition=condition.worst(words), fault=newest, why=None,
        left=max((one.left for one in points if one.left is not None), default=None),
        attempts=sum(one.attempts or 0 for one in points),
        failed=sum(one.failed or 0 for one in points),
        stopped=sum(one.stopped or 0 for one in points),
    )  # fmt: skip


def _why(run: Run, job: Job | None, state: str, answered: bool) -> str | None:
    if job is not None:
        return job.why or None
    if state == "UNKNOWN" and run.asks_slurm and answered:
        return UNKNOWN_TO_SLURM
    return None


def rate_of(folder: Path) -> float | None:
    """Steps per second, of the last logged lines; None without one."""
    found = [rate for line in jsonl.tail(folder / "metrics.jsonl") if (rate := _rate(line)) is not None]
    return statistics.median(found[-LINES:]) if found else None


def costs_of(folder: Path) -> dict[str, float] | None:
    """What the run has cost by its last logged line; None without one that says it."""
    found = [spent for line in jsonl.tail(folder / "metrics.jsonl") if (spent := spent_of(line))]
    return found[-1] if found else None


def _rate(line: Mapping[str, Any]) -> float | None:
    """``train/samples`` is step x batch."""
    images, samples, step = (line.get(n) for n in ("train/images_per_second", "train/samples", "step"))
    if not all(isinstance(v, int | float) and 0 < v < 2**53 for v in (images, samples, step)):
        return None
    rate = float(images) * float(step) / float(samples)  # type: ignore[arg-type]
    return rate if math.isfinite(rate) and rate > 0 else None


def ago(seconds: float) -> str:
    """How long ago, in words; a clock may be ahead."""
    for size, unit in [(86400, "d"), (3600, "h"), (60, "min")]:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def since(then: float) -> str:
    """The same of a time."""
    return ago(time.time() - then)


def clock(seconds: float) -> str:
    """Seconds as D-HH:MM:SS, Slurm's form."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hour:02d}:{minute:02d}:{second:02d}"


def rate_words(rate: float | None) -> str:
    """Steps per second, or seconds per step where that is more than one."""
    if rate is None:
        return "-"
    return f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"


def of_steps(glance: Glance) -> str:
    """``step/steps``; - before the first step."""
    return "-" if glance.step is None else f"{glance.step}/{'?' if glance.steps is None else glance.steps}"


def fault_words(fault: Fault | None, why: bool = False) -> str:
    """Kind, when and where of a fault; ``why`` too."""
    if fault is None:
        return "-"
    at = f" at step {fault.step}" if fault.step is not None else ""
    node = f" on {fault.node}" if fault.node else ""
    return f"{fault.kind}{node}{at}, {since(fault.time)}" + (f": {fault.why}" if why and fault.why else "")

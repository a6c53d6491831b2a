"""What plans of a network answer: what to change so that it fits, and the largest micro batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from diffbase.cli import InputError
from diffcore.memory.calibration import Calibration
from diffcore.memory.modules.job import Job
from diffcore.memory.modules.plan import plan_of
from diffcore.memory.planning.plan import Plan

MOST = 2**16
"""Largest micro batch that is tried."""
SHARED = ("fsdp2", "zero3")


@dataclass(frozen=True)
class Alternative:
    """A change of one setting."""

    flag: str
    """As the command line has it."""
    slower: str
    """What it costs, in words."""
    plan: Plan


def alternatives(job: Job, outside: Calibration) -> Iterator[Alternative]:
    """Each change that may take less, alone, in the order of what it costs. Those that cannot be are left
    out: a network without checkpointing, say."""
    for flag, slower, values in _changes(job):
        try:
            yield Alternative(flag, slower, plan_of(replace(job, **values), outside))
        except InputError:
            continue


def _changes(job: Job) -> Iterator[tuple[str, str, dict[str, Any]]]:
    if job.precision == "fp32":
        yield "--precision bf16", "nothing: faster on any GPU since Ampere", {"precision": "bf16"}
    if not job.checkpointing:
        yield "--checkpointing", "about a third: one more forward", {"checkpointing": True}
    if job.world > 1 and job.strategy not in SHARED:
        for strategy in SHARED:
            given: dict[str, Any] = {"strategy": strategy}
            yield f"--strategy {strategy}", "half as much traffic again", given
    if job.micro > 1:
        half = job.micro // 2
        more = job.accumulation * 2
        change = {"micro": half, "accumulation": more}
        yield f"--micro-batch {half} --accumulation {more}", "little, while the GPU is kept busy", change


def largest(job: Job, room: int, outside: Calibration) -> int:
    """The largest micro batch whose plan is within ``room`` bytes, 0 if not one sample's is.

    What a plan takes is nearly linear in the micro batch: the next guess is where a line through two plans
    meets ``room``, and every third one the middle of what is open.
    """
    known: dict[int, int] = {}

    def smi(micro: int) -> int:
        if micro not in known:
            known[micro] = plan_of(replace(job, micro=micro), outside).smi
        return known[micro]

    if smi(1) > room:
        return 0
    low, high = 1, MOST + 1
    while high - low > 1:
        guess = 2 * low
        if others := known.keys() - {low}:
            other = max(others)
            slope = (known[other] - known[low]) / (other - low)
            guess = low + int((room - known[low]) / max(slope, 1.0))
        if len(known) % 3 == 0 and high <= MOST:
            guess = (low + high) // 2
        guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if smi(guess) <= room else (low, guess)
    return low

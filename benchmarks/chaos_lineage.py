"""What became of a training, from the trace of its forward passes alone (``peers/tracing.py``).

A process that computes with the weights which another had after k steps is at step k, whatever it says. The
steps that lead to the final weights are, of each number, the last one taken.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Pass:
    """One forward pass: seconds since 1970, process, rank, digest of the weights, the samples.

    Without samples it is none: the optimizer has just made these weights.
    """

    time: float
    pid: int
    rank: int
    weights: str
    samples: tuple[str, ...]


def read(folder: Path) -> list[Pass]:
    """All passes that were written down, in the order of time. A line that is being written is left out."""
    found = []
    for path in folder.glob("*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                row = json.loads(line)
                found.append(Pass(**row | {"samples": tuple(row["samples"])}))
    return sorted(found, key=lambda one: one.time)


@dataclass(frozen=True)
class Step:
    """A pass, and how many steps had led to its weights; None where those are nobody's."""

    number: int | None
    one: Pass


def steps(passes: Sequence[Pass]) -> list[Step]:
    """Each pass with its place, in the order of time. Processes are told apart by rank and pid."""
    # All ranks have the same weights.
    known: dict[str, int] = {}
    at: dict[tuple[int, int], int | None] = {}
    found = []
    for one in passes:
        process = (one.rank, one.pid)
        if not one.samples:
            if (last := at.get(process)) is not None:
                known.setdefault(one.weights, last + 1)
            continue
        if process in at:
            last = at[process]
            number = None if last is None else last + 1
        else:
            number = known.get(one.weights, None if known else 0)
        if number is not None:
            known.setdefault(one.weights, number)
        at[process] = number
        found.append(Step(number, one))
    return found


@dataclass(frozen=True)
class Lineage:
    """``again``: steps of rank 0 that were taken more than once. ``twice``, ``never``: samples of the epochs
    that the final weights saw twice or not at all. ``lost``: whether weights came from nowhere."""

    again: int
    twice: int
    never: int
    lost: bool


def lineage(passes: Sequence[Pass], total: int, epoch: int) -> Lineage:
    """Of ``total`` steps, of which ``epoch`` see every sample of the set once.

    The set is all samples that were ever seen.
    """
    placed = steps(passes)
    last: dict[tuple[int, int], Pass] = {}
    for step in placed:
        if step.number is not None and step.number < total:
            last[step.number, step.one.rank] = step.one
    everything = {sample for one in passes for sample in one.samples}
    seen: dict[int, Counter[str]] = defaultdict(Counter)
    for (number, _), one in last.items():
        seen[number // epoch].update(one.samples)
    first = [step.number for step in placed if step.one.rank == 0 and step.number is not None]
    return Lineage(
        again=len(first) - len(set(first)),
        twice=sum(sum(count - 1 for count in seen[e].values()) for e in range(total // epoch)),
        never=sum(len(everything - seen[e].keys()) for e in range(total // epoch)),
        lost=any(step.number is None for step in placed),
    )


def standstill(placed: Iterable[Step], moment: float) -> float | None:
    """The longest time from ``moment`` on without a step that had not been taken before, in seconds.

    None: none was begun since.
    """
    reached, news = -1, list[float]()
    for step in placed:
        if step.number is not None and step.number > reached:
            reached = step.number
            news.append(step.one.time)
    gaps = [b - a for a, b in pairwise(news) if b > moment]
    return max(gaps, default=None)

"""When each tensor of a step comes and goes, by module: what a timeline's hover and the exports show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from diffcore.memory.planning.stream import Stream

MOST = 100_000
"""Tensors of a step that are told of: more make a file of many megabytes."""
POINTS = 250
"""Of a timeline."""
LARGEST = 6
"""Modules that are named at a point of it."""


def lifetimes(stream: Stream) -> dict[str, Any] | None:
    """The tensors on the device through the stream's last step, as anatomy.json has them; None if too many.

    ``tensors`` are rows of the numbers of category and layer, bytes, and the events by which it came and
    went. Events are counted from 1 on in the step; 0 is before it, and -1 that it is still there.
    """
    marks = stream.marks
    start = len(marks) - 1 - [name for name, _ in reversed(marks)].index("start")
    zero = marks[start][1]
    living: dict[int, tuple[int, int]] = {}
    found: list[tuple[int, int, int, int]] = []
    for number, (what, size) in enumerate(stream.events, 1):
        at = max(0, number - zero)
        if size:
            living[what] = (at, size)
        elif (born := living.pop(what)) and at:
            found.append((born[0], what, born[1], at))
    found += [(at, what, size, -1) for what, (at, size) in living.items()]
    told = sorted(row for row in found if not stream.host[row[1]])
    if len(told) > MOST:
        return None
    categories = sorted({stream.category[what] for _, what, _, _ in told})
    layers = sorted({stream.layer[what] for _, what, _, _ in told})
    of_category = {name: number for number, name in enumerate(categories)}
    of_layer = {name: number for number, name in enumerate(layers)}
    return {
        "categories": categories,
        "layers": layers,
        "phases": [{"name": name, "end": end - zero} for name, end in _named(marks[start + 1 :])],
        "tensors": [
            [of_category[stream.category[what]], of_layer[stream.layer[what]], size, born, died]
            for born, what, size, died in told
        ],
    }


def _named(marks: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Phases of several micro batches by their numbers. A plan marks only the last one's backward: what ends
    with another's forward began with a backward."""
    count, number, found = sum(name == "forward" for name, _ in marks), 0, list[tuple[str, int]]()
    for (before, _), (name, end) in pairwise([("", 0), *marks]):
        if count > 1 and name in ("forward", "backward"):
            number += name == "forward"
            name = f"{name} {number}"
            if before == "forward" == name.split()[0]:
                name = f"backward {number - 1}, {name}"
        found.append((name, end))
    return found


@dataclass(frozen=True)
class Change:
    """One tensor comes (``bytes`` above 0) or goes."""

    at: int
    """Number of the event."""
    tensor: int
    """Number of its row."""
    bytes: int


@dataclass(frozen=True)
class Point:
    """What lives after an event."""

    at: int
    phase: str
    bytes: dict[str, int]
    """By category."""
    largest: tuple[tuple[str, str, int], ...]
    """Module, category and bytes of what is largest there."""


def changes(told: dict[str, Any]) -> list[Change]:
    """The events of ``lifetimes`` in order."""
    found = []
    for number, (_, _, size, born, died) in enumerate(told["tensors"]):
        found.append(Change(born, number, size))
        if died >= 0:
            found.append(Change(died, number, -size))
    return sorted(found, key=lambda change: (change.at, change.bytes > 0, change.tensor))


def phase_at(told: dict[str, Any], at: int) -> str:
    """The phase that event ``at`` is in; of what was before the step the first."""
    phases = told["phases"]
    return str(next((phase["name"] for phase in phases if at <= phase["end"]), phases[-1]["name"]))


def points(told: dict[str, Any], most: int = POINTS) -> list[Point]:
    """At most ``most`` instants at which the total turns, the highest of each run of them, and both ends."""
    turns = _turns(told)
    if len(turns) > most:
        inner, run = turns[1:-1], -(-len(turns) // (most - 2))
        runs = [inner[i : i + run] for i in range(0, len(inner), run)]
        turns = [turns[0], *(max(each, key=lambda turn: turn[1]) for each in runs), turns[-1]]
    return list(_at(told, [at for at, _ in turns]))


def _turns(told: dict[str, Any]) -> list[tuple[int, int]]:
    """(event, total after it) at the start, where the total stops to rise or to fall, and at the end."""
    totals: dict[int, int] = {0: 0}
    total = 0
    for change in changes(told):
        total += change.bytes
        totals[change.at] = total
    totals.setdefault(told["phases"][-1]["end"], total)
    line = sorted(totals.items())
    inner = zip(line, line[1:], line[2:], strict=False)
    turns = [b for a, b, c in inner if (b[1] > a[1]) != (c[1] > b[1])]
    return [line[0], *turns, line[-1]] if len(line) > 1 else line


def _at(told: dict[str, Any], events: list[int]) -> Iterator[Point]:
    categories, layers, rows = told["categories"], told["layers"], told["tensors"]
    by_category: dict[str, int] = defaultdict(int)
    by_module: dict[tuple[str, str], int] = defaultdict(int)
    line, number = changes(told), 0
    for at in events:
        while number < len(line) and line[number].at <= at:
            change = line[number]
            category, layer = categories[rows[change.tensor][0]], layers[rows[change.tensor][1]]
            by_category[category] += change.bytes
            if layer:
                by_module[layer, category] += change.bytes
            number += 1
        ranked = sorted(by_module.items(), key=lambda item: (-item[1], item[0]))[:LARGEST]
        largest = tuple((*key, size) for key, size in ranked if size > 0)
        yield Point(at, phase_at(told, at), {k: v for k, v in by_category.items() if v}, largest)

"""A step as a Chrome trace, which ui.perfetto.dev and chrome://tracing open.

Counters by category, a slice a phase, and slices of modules in each other as their tensors come. There is no
clock in it: an event of the step (a tensor comes or goes) is a microsecond.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffcore.memory.planning import lifetimes
from diffcore.memory.planning.states import CATEGORIES, WORDS
from diffcore.memory.reading import SIDES

PHASES, MODULES = 1, 2
"""Threads of a process: its rows."""
NO_MODULE = ("", "network", "(loss)")

Row = dict[str, Any]


def trace(anatomy: dict[str, Any]) -> dict[str, Any]:
    """The trace: a process for each rank of each side, of all that have a timeline."""
    rows: list[Row] = []
    ranks = [(which, rank) for which in SIDES for rank in anatomy[which]]
    for process, (which, rank) in enumerate(ranks, 1):
        mine = list(_rank(rank))
        if mine:
            name = {"name": f"rank {rank['rank']}, {which}"}
            rows.append({"ph": "M", "name": "process_name", "pid": process, "args": name})
            threads = {PHASES: "phases", MODULES: "modules, as their tensors come"}
            for thread, words in threads.items():
                about = {"ph": "M", "name": "thread_name", "pid": process, "tid": thread}
                rows.append(about | {"args": {"name": words}})
            rows += [{"pid": process, **row} for row in mine]
    return {"displayTimeUnit": "ms", "traceEvents": rows}


def _rank(rank: dict[str, Any]) -> Iterator[Row]:
    if told := rank.get("lifetimes"):
        yield from _phases([(phase["name"], phase["end"]) for phase in told["phases"]])
        yield from _counters(told)
        yield from _modules(told)
        return
    line = rank["timeline"]
    ends = [(p["phase"], at + 1) for at, p in enumerate(line) if p["phase"] != _phase(line, at + 1)]
    yield from _phases(ends)
    for at, point in enumerate(line):
        yield _counter(at, point["bytes"])


def _phase(line: list[dict[str, Any]], at: int) -> str | None:
    return str(line[at]["phase"]) if at < len(line) else None


def _phases(ends: list[tuple[str, int]]) -> Iterator[Row]:
    begin = 0
    for name, end in ends:
        yield _slice(PHASES, name, begin, end)
        begin = end


def _counters(told: dict[str, Any]) -> Iterator[Row]:
    """A counter track of all categories, at every event."""
    sizes = dict.fromkeys(told["categories"], 0)
    line = lifetimes.changes(told)
    for number, change in enumerate(line):
        sizes[told["categories"][told["tensors"][change.tensor][0]]] += change.bytes
        if number + 1 == len(line) or line[number + 1].at != change.at:
            yield _counter(change.at, sizes)


def _counter(at: int, sizes: dict[str, int]) -> Row:
    ordered = [name for name in (*CATEGORIES, *sorted(sizes.keys() - set(CATEGORIES))) if name in sizes]
    return {"ph": "C", "name": "bytes", "ts": at, "args": {WORDS.get(n, n): sizes[n] for n in ordered}}


def _modules(told: dict[str, Any]) -> Iterator[Row]:
    """A slice for each part of a module's path, from its first tensor to the next module's."""
    open_: list[tuple[str, int]] = []
    end = told["phases"][-1]["end"]
    came = [row for row in told["tensors"] if row[3] > 0]  # in their order
    for row in came:
        name = told["layers"][row[1]]
        path = [] if name in NO_MODULE else name.split(".")
        same = 0
        while same < min(len(path), len(open_)) and open_[same][0] == path[same]:
            same += 1
        yield from _closed(open_[same:], row[3])
        open_ = [*open_[:same], *((part, row[3]) for part in path[same:])]
    yield from _closed(open_, end)


def _closed(parts: list[tuple[str, int]], end: int) -> Iterator[Row]:
    for name, begin in parts:
        if end > begin:
            yield _slice(MODULES, name, begin, end)


def _slice(thread: int, name: str, begin: int, end: int) -> Row:
    return {"ph": "X", "name": name, "tid": thread, "ts": begin, "dur": end - begin}

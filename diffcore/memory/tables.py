"""The memory report, comparisons and advice as tables on a terminal; figures in MiB."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from diffbase.cli import InputError
from diffbase.tables import Console, TextTable, say
from diffcore.memory.comparing import compared, sentence
from diffcore.memory.planning.states import CATEGORIES, WORDS
from diffcore.memory.reading import fullest, mib, same, strategy, verdict

MIB = 2**20
WIDTH = 110
CHANGES = 15
"""Rows of a part of a comparison."""


def show(anatomy: dict[str, Any], console: Console | None = None) -> None:
    """The report (anatomy.json) of at most eight ranks per side."""
    console = console or _console()
    say(console, verdict(anatomy))
    for which in ("measured", "planned"):
        for rank in anatomy[which][:8]:
            _moments(anatomy["run"], rank, which).print(console)
        if anatomy[which]:
            rank = fullest(anatomy[which])
            _closure(rank, which).print(console)
            if rank["layers"]:
                _layers(rank).print(console)
            for note in rank["notes"]:
                say(console, f"note: {note}")
    for line in anatomy["advice"]:
        say(console, line)


def print_table(rows: Iterable[dict[str, Any]]) -> None:
    """Plans of one network under many settings (``advise.table``)."""
    texts = ("precision", "checkpointing", "ZeRO", "ranks")
    headings = (*texts, "after step", "peak", "nvidia-smi", "fits")
    title = "MiB on each rank, nvidia-smi's number, and the smallest card that holds it"
    table, last = TextTable(title, *headings, text=(0, 1, 2, 3, 7)), None
    for row in rows:
        group = (row["precision"], row["checkpointing"], row["zero"])
        if last not in (None, group):
            table.add_section()
        last = group
        sizes = (_whole(row[name]) for name in ("after_step", "peak", "smi"))
        fits = f"from {row['fits'][0]}" if row["fits"] else "none"
        table.add_row(*map(str, group), str(row["world"]), *sizes, fits)
    table.print(_console())


def print_comparison(a: dict[str, Any], b: dict[str, Any], name_a: str, name_b: str) -> None:
    """What differs, settings first, then bytes by size; InputError if there is no moment in common."""
    console, found = _console(), compared(a, b)
    if not found["moments"]:
        raise InputError(f"{name_a} and {name_b} have no moment in common, planned or measured")
    say(console, f"A is {name_a}, B is {name_b}. {sentence(a, b)}")
    for row in found["settings"]:
        say(console, f"{row['setting']}: {row['a']} -> {row['b']}")
    parts = {
        "moments": ("All tensors", ("moment",)),
        "categories": ("By category", ("moment", "category")),
        "modules": ("What modules leave for backward", ("module",)),
        "sum": ("What is no tensor", ("row",)),
    }
    for part, (title, named) in parts.items():
        if rows := found[part]:
            more = f", the largest {CHANGES} of {len(rows)}" if len(rows) > CHANGES else ""
            text = range(len(named))
            table = TextTable(
                f"{title}, {rows[0]['which']}{more}", *named, "A MiB", "B MiB", "B - A", "change", text=text
            )
            for row in rows[:CHANGES]:
                x, y = row["a"], row["b"]
                change = "=" if same(x, y, x) else f"{y / x - 1:+.1%}" if x else "new"
                names = (WORDS.get(row[name], str(row[name])) for name in named)
                table.add_row(*names, mib(x, 2), mib(y, 2), mib(y - x, 2), change)
            table.print(console)
    if not any(found[part] for part in ("categories", "modules", "sum")):
        say(console, "nothing differs by more than 0.05 % of the whole")


def _moments(run: dict[str, Any], rank: dict[str, Any], which: str) -> TextTable:
    moments = rank["moments"]
    title = (
        f"Memory {which}, rank {rank['rank']} of {run['world']}: {run['parameters']:,} parameters, "
        f"{strategy(run)}, {run['precision']}, checkpointing {run['checkpointing']}, "
        f"micro batch {run['micro_batch']}"
    )
    table = TextTable(title, "MiB", *(moment["name"] for moment in moments), "bytes / param")
    last = moments[-1]["bytes"]
    for category in CATEGORIES:
        sizes = [moment["bytes"].get(category, 0) for moment in moments]
        if any(sizes):
            share = f"{last[category] / rank['parameters']:.2f}" if last.get(category) else ""
            table.add_row(WORDS[category], *map(_mib, sizes), share)
    table.add_section()
    for name, word in (("allocated", "allocated"), ("reserved", "reserved"), ("host", "on the host")):
        sizes = [moment[name] for moment in moments]
        if any(sizes) and (name != "reserved" or rank["device"] != "cpu"):
            table.add_row(word, *map(_mib, sizes), "", bold=True)
    return table


def _closure(rank: dict[str, Any], which: str) -> TextTable:
    seen = "nvidia-smi" if rank["device"] != "cpu" else "the system (RSS)"
    words = f"what {seen} shows" if which == "measured" else f"what {seen} will show"
    if which == "planned" and rank["device"] == "cpu":
        words = "all tensors"
    title = f"Rank {rank['rank']} at its peak: the sum that makes {words}"
    table = TextTable(title, "", "MiB", "from", text=(0, 2))
    for row in rank["closure"]:
        table.add_row(WORDS.get(row["name"], row["name"]), _mib(row["bytes"]), row["source"])
    table.add_section()
    total = sum(row["bytes"] for row in rank["closure"])
    table.add_row(words, _mib(total), rank.get("total", {}).get("source", which), bold=True)
    return table


def _layers(rank: dict[str, Any], most: int = 12) -> TextTable:
    table = TextTable("Modules that leave most for backward", "", "MiB", "share")
    total = sum(layer["bytes"] for layer in rank["layers"]) or 1
    for layer in rank["layers"][:most]:
        table.add_row(layer["name"], _mib(layer["bytes"]), f"{layer['bytes'] / total:.1%}")
    return table


def _console() -> Console:
    """A terminal has its own width; a file or a pipe gets lines that the tables fit in."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def _mib(size: float) -> str:
    return mib(size, 2)


def _whole(size: float) -> str:
    return f"{size / MIB:,.0f}"

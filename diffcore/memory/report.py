"""The memory report: anatomy.json (its schema is docs/memory.md's), tables, TensorBoard, report.html.

A report has planned ranks, measured ranks or both, and every reader of it takes what there is.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffcore.config.tree import Config
from diffcore.memory.advise import MOST, Change, Planner, Step, words
from diffcore.memory.calibration import calibration
from diffcore.memory.page import fullest, page
from diffcore.memory.plan.plan import Plan, as_json
from diffcore.memory.plan.states import CATEGORIES, WORDS

SCHEMA = "diffcore.anatomy/1"
MIB = 2**20


def about(config: Config, world: int, parameters: int) -> dict[str, Any]:
    micro, accumulation = config.batch.split(world)
    return {
        "model": config.model.kind,
        "parameters": parameters,
        "world": world,
        "zero": config.engine.zero,
        "precision": config.engine.precision,
        "checkpointing": getattr(config.engine, "checkpointing", "none"),
        "offload": getattr(config.engine, "offload", "none"),
        "micro_batch": micro,
        "accumulation": accumulation,
    }


def planned(config: Config, plans: Sequence[Plan], advice: Sequence[str] = ()) -> dict[str, Any]:
    """anatomy.json of plans alone."""
    return {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": about(config, plans[0].world, plans[0].parameters),
        "planned": [as_json(p) for p in plans],
        "measured": [],
        "advice": list(advice),
    }


def measured(config: Config, ranks: Sequence[dict[str, Any]], advise: bool = True) -> dict[str, Any]:
    """anatomy.json of what every rank measured, with the plan of the same settings beside it."""
    device = "cpu" if ranks[0]["device"] == "cpu" else "cuda"
    tree = {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": about(config, len(ranks), ranks[0]["parameters"]),
        "planned": [],
        "measured": list(ranks),
        "advice": [],
    }
    try:
        outside = calibration(ranks[0]["device"], torch.version.cuda)
        planner = Planner(config, device=device, outside=outside)
        tree["planned"] = [as_json(planner.plan(config, len(ranks), rank["rank"])) for rank in ranks[:16]]
        if advise:
            tree["advice"] = words(planner, config, len(ranks))
    except Exception as error:  # the measurement is worth writing without it
        tree["advice"] = [f"No plan beside it: {type(error).__name__}: {error}"]
    return tree


def save(folder: Path, anatomy: dict[str, Any]) -> Path:
    """Write anatomy.json, memory.txt and report.html into ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "anatomy.json", (json.dumps(anatomy, indent=1) + "\n").encode())
    text = io.StringIO()
    show(anatomy, Console(file=text, width=110))
    write_atomic(folder / "memory.txt", text.getvalue().encode())
    write_atomic(folder / "report.html", page(anatomy).encode())
    return folder / "report.html"


def load(path: Path) -> dict[str, Any]:
    """anatomy.json, or the one in a run folder. InputError if it is none or of another version."""
    file = path / "anatomy.json" if path.is_dir() else path
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{file}: schema {found!r} is not {SCHEMA}")
    parts = {"run": dict, "planned": list, "measured": list, "advice": list}
    if missing := [name for name, kind in parts.items() if not isinstance(tree.get(name), kind)]:
        raise InputError(f"{file}: no {' and no '.join(missing)} in it")
    return tree


def scalars(anatomy: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, MiB) for TensorBoard: every moment's categories of the rank that holds most."""
    for which in ("planned", "measured"):
        if not anatomy[which]:
            continue
        rank = fullest(anatomy[which])
        for moment in rank["moments"]:
            for category, size in moment["bytes"].items():
                yield f"memory_{which}/{moment['name']}/{category}", size / MIB
            yield f"memory_{which}/{moment['name']}/allocated", moment["allocated"] / MIB


def show(anatomy: dict[str, Any], console: Console | None = None) -> None:
    """The report as tables on a terminal."""
    console = console or _console()
    for which in ("measured", "planned"):
        for rank in anatomy[which][:8]:
            console.print(_moments(anatomy["run"], rank, which))
        if anatomy[which]:
            rank = fullest(anatomy[which])
            console.print(_closure(rank, which))
            if rank["layers"]:
                console.print(_layers(rank))
            for note in rank["notes"]:
                console.print(f"note: {note}", highlight=False, markup=False)
    for line in anatomy["advice"]:
        console.print(line, highlight=False, markup=False)


def _table(title: str) -> Table:
    """A title is text, whatever brackets it has."""
    return Table(title=escape(title))


def _moments(run: dict[str, Any], rank: dict[str, Any], which: str) -> Table:
    table = _table(
        f"Memory {which}, rank {rank['rank']} of {run['world']}: {run['parameters']:,} parameters, "
        f"ZeRO-{run['zero']}, {run['precision']}, checkpointing {run['checkpointing']}, "
        f"micro batch {run['micro_batch']}"
    )
    table.add_column("MiB", no_wrap=True)
    for moment in rank["moments"]:
        table.add_column(moment["name"], justify="right")
    table.add_column("bytes / param", justify="right")
    last = rank["moments"][-1]["bytes"]
    for category in CATEGORIES:
        sizes = [moment["bytes"].get(category, 0) for moment in rank["moments"]]
        if any(sizes):
            share = f"{last.get(category, 0) / rank['parameters']:.2f}" if last.get(category) else ""
            table.add_row(WORDS[category], *[f"{size / MIB:,.2f}" for size in sizes], share)
    table.add_section()
    for name in ("allocated", "reserved", "host"):
        sizes = [moment[name] for moment in rank["moments"]]
        if any(sizes) and (name != "reserved" or rank["device"] != "cpu"):
            label = "on the host" if name == "host" else name
            table.add_row(label, *[f"{size / MIB:,.2f}" for size in sizes], "", style="bold")
    return table


def _closure(rank: dict[str, Any], which: str) -> Table:
    total = sum(row["bytes"] for row in rank["closure"])
    seen = "nvidia-smi" if rank["device"] != "cpu" else "the system (RSS)"
    words = f"what {seen} shows" if which == "measured" else f"what {seen} will show"
    if which == "planned" and rank["device"] == "cpu":
        words = "all tensors"
    table = _table(f"Rank {rank['rank']} at its peak: the sum that makes {words}")
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_column("from")
    for row in rank["closure"]:
        name, source = escape(WORDS.get(row["name"], row["name"])), escape(row["source"])
        table.add_row(name, f"{row['bytes'] / MIB:,.2f}", source)
    table.add_section()
    table.add_row(words, f"{total / MIB:,.2f}", rank.get("total", {}).get("source", which), style="bold")
    return table


def _layers(rank: dict[str, Any], most: int = 12) -> Table:
    table = Table(title="Modules that leave most for backward")
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_column("share", justify="right")
    total = sum(layer["bytes"] for layer in rank["layers"]) or 1
    for layer in rank["layers"][:most]:
        table.add_row(escape(layer["name"]), f"{layer['bytes'] / MIB:,.2f}", f"{layer['bytes'] / total:.1%}")
    return table


def print_table(rows: Iterable[dict[str, Any]]) -> None:
    table = Table(title="MiB on each rank, nvidia-smi's number, and the smallest card that holds it")
    for name in ("precision", "checkpointing", "ZeRO", "ranks"):
        table.add_column(name)
    for name in ("after step", "peak", "nvidia-smi"):
        table.add_column(name, justify="right")
    table.add_column("fits")
    last = None
    for row in rows:
        group = (row["precision"], row["checkpointing"], row["zero"])
        if last not in (None, group):
            table.add_section()
        last = group
        table.add_row(
            row["precision"],
            row["checkpointing"],
            str(row["zero"]),
            str(row["world"]),
            f"{row['after_step'] / MIB:,.0f}",
            f"{row['peak'] / MIB:,.0f}",
            f"{row['smi'] / MIB:,.0f}",
            f"from {row['fits'][0]}" if row["fits"] else "none",
        )
    _console().print(table)


def _console() -> Console:
    """A terminal has its own width; a file or a pipe gets lines that the tables fit in."""
    return Console() if sys.stdout.isatty() else Console(width=110)


def print_fit(
    largest: int,
    micro: int,
    have: int,
    room: int,
    steps: Sequence[Step],
    alone: Sequence[tuple[Change, int, int]],
) -> None:
    console = _console()
    console.print(
        f"largest micro batch in {room / MIB:,.0f} MiB with these settings: {_micro(largest)}"
        f"; micro batch {micro} is planned at {have / MIB:,.0f} MiB and "
        f"{'fits' if have <= room else 'does not fit'}",
        highlight=False,
    )
    table = Table(title="Each change alone")
    for name in ("change", "saves MiB", "then", "largest micro batch", "slower by"):
        table.add_column(name, justify="left" if name in ("change", "slower by") else "right")
    for change, smi, most in alone:
        saved = f"{(have - smi) / MIB:,.0f}"
        table.add_row(change.setting, saved, f"{smi / MIB:,.0f}", _micro(most), change.slower)
    console.print(table)
    if have > room:
        words = "together, cheapest first" if steps and steps[-1].fits else "together: it still does not fit"
        table = Table(title=f"What makes micro batch {micro} fit, {words}")
        for name in ("settings", "saves MiB", "then", "fits", "slower by"):
            table.add_column(name, justify="right" if name in ("saves MiB", "then") else "left")
        for step in steps:
            table.add_row(
                ", ".join(step.settings),
                f"{step.saved / MIB:,.0f}",
                f"{step.smi / MIB:,.0f}",
                "yes" if step.fits else "no",
                "; ".join(step.slower),
            )
        console.print(table)


def _micro(largest: int) -> str:
    return f"{largest:,} or more" if largest == MOST else f"{largest:,}" if largest else "none"


def print_comparison(a: dict[str, Any], b: dict[str, Any], name_a: str, name_b: str) -> None:
    """Two reports' fullest ranks, moment by moment, category by category; InputError if they share none."""
    console, shown = _console(), False
    for which in ("measured", "planned"):
        if not (a[which] and b[which]):
            continue
        left = fullest(a[which])
        other = {moment["name"]: moment for moment in fullest(b[which])["moments"]}
        pairs = [(moment, other[moment["name"]]) for moment in left["moments"] if moment["name"] in other]
        if not pairs:
            continue
        shown = True
        table = _table(f"{which}: {name_a} and {name_b}")
        table.add_column("moment")
        table.add_column("category")
        for name in ("A MiB", "B MiB", "B - A", "change"):
            table.add_column(name, justify="right")
        for first, second in pairs:
            for category in (*CATEGORIES, "allocated"):
                x, y = (m["bytes"].get(category, m.get(category, 0)) for m in (first, second))
                if x or y:
                    share = f"{y / x - 1:+.1%}" if x else "new"
                    cells = [f"{v / MIB:,.2f}" for v in (x, y, y - x)]
                    style = "bold" if category == "allocated" else None
                    table.add_row(first["name"], WORDS.get(category, category), *cells, share, style=style)
            table.add_section()
        console.print(table)
    if not shown:
        raise InputError(f"{name_a} and {name_b} have no moment in common, planned or measured")
    changed = {k: (v, b["run"].get(k)) for k, v in a["run"].items() if v != b["run"].get(k)}
    for name, (x, y) in changed.items():
        console.print(f"{name}: {x} -> {y}", highlight=False, markup=False)

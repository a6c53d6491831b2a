"""The memory report of a run: ``memory.json`` and the same as a table in ``memory.txt``."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from diffcore.memory.trace import CATEGORIES, Anatomy
from shards.files import write_atomic

MIB = 2**20
WORDS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "buckets": "communication buckets",
    "masters": "fp32 master weights",
    "optimizer": "optimizer (Adam states)",
    "ema": "EMA of the weights",
    "activations": "activations saved for backward",
}


def table(anatomy: Anatomy) -> Table:
    """One rank's measurement as a rich table, MiB and bytes a parameter."""
    result = Table(
        title=f"Memory of rank {anatomy.rank}: {anatomy.parameters:,} parameters, "
        f"micro batch {anatomy.micro_batch}"
    )
    result.add_column("MiB")
    for moment in anatomy.moments:
        result.add_column(moment.name, justify="right")
    result.add_column("bytes a parameter", justify="right")
    last = anatomy.moments[-1]
    for category in CATEGORIES:
        cells = [f"{m.bytes[category] / MIB:,.2f}" for m in anatomy.moments]
        states = category != "activations"
        share = f"{last.bytes[category] / anatomy.parameters:.2f}" if states else ""
        result.add_row(WORDS[category], *cells, share)
    rest = [f"{m.rest / MIB:,.2f}" for m in anatomy.moments]
    result.add_row("not in a category (libraries, allocator, ...)", *rest, "", end_section=True)
    totals = [f"{m.total.bytes / MIB:,.2f}" for m in anatomy.moments]
    result.add_row(f"process: {last.total.source}", *totals, "", style="bold")
    return result


def write(run: Path, ranks: Sequence[Anatomy]) -> Path:
    """Write both files (rank 0 calls it with every rank's measurement); returns the table's path."""
    tree = {"version": 1, "unit": "bytes", "ranks": [a.as_json() for a in ranks]}
    write_atomic(run / "memory.json", (json.dumps(tree, indent=1) + "\n").encode())
    text = io.StringIO()
    console = Console(file=text, width=110)
    for anatomy in ranks:
        console.print(table(anatomy))
    write_atomic(run / "memory.txt", text.getvalue().encode())
    return run / "memory.txt"

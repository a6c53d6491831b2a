"""``fit``'s answer on a terminal."""

from __future__ import annotations

from typing import Any

from diffbase.line import say
from diffbase.tables import TextTable

MIB = 2**20
PARTS = ("compute", "communication", "offload", "optimizer")


def show(tree: dict[str, Any]) -> None:
    """The tree of ``answer``, in words and one table."""
    card, work, side = tree["card"], tree["network"], tree["network"]["side"]
    say(
        f"{card['name']}: {card['usable_bytes'] / MIB:,.0f} MiB ({card['usable']}); the network: "
        f"{work['parameters']:,} parameters, {work['flops'] / 1e9:,.1f} GFLOP an image of {side} x {side}"
    )
    if tree["find"]:
        say(_found(tree))
    if (own := tree["as_configured"]) is not None:
        fits = "fits" if own["fits"] else "does not fit"
        planned = f"{own['planned_bytes'] / MIB:,.0f} MiB"
        say(f"as the config is: micro batch {own['micro_batch']} is planned at {planned} and {fits}")
    _table(tree).print()
    say(f"times are {_timed(tree)}, {tree['times']}; outside torch: {tree['outside']}")
    for note in tree["notes"]:
        say(f"note: {note}")
    say(f"{'the command' if tree['find'] == 'batch' else 'the first'}: {tree['best']['command']}")


def _timed(tree: dict[str, Any]) -> str:
    kinds = {row["timed"] for row in tree["candidates"]}
    return "modelled, but for the row marked * (measured)" if "measured" in kinds else "modelled"


def _found(tree: dict[str, Any]) -> str:
    found, best = tree["found"], tree["best"]
    where = f"{best['nodes'] * best['gpus_per_node']} x {tree['card']['name']}"
    if tree["find"] == "card":
        return f"the smallest card that it fits: {where}"
    if tree["find"] == "gpus":
        return f"the fewest GPUs that it fits: {where}"
    more = " or more, the most that is tried" if found["most_tried"] else ""
    if tree["find"] == "batch":
        largest = f"{found['batch']:,} ({found['micro_batch']:,} a GPU)"
        return f"the largest batch without accumulation on {where}: {largest}{more}"
    return f"the longest side of an image on {where}: {found['side']:,} pixels{more}"


def _table(tree: dict[str, Any]) -> TextTable:
    several = len({(row["nodes"], row["gpus_per_node"]) for row in tree["candidates"]}) > 1
    title = "The largest" if tree["find"] == "batch" else "What fits, fastest first"
    headings = [
        *["nodes x GPUs"] * several, "zero", "precision", "checkpointing", "offload", "micro x acc.",
        "MiB planned", "ms a step", "images/s", "compute", "comm.", "offload", "optimizer",
    ]  # fmt: skip
    table = TextTable(title, *headings, text=range(4 + several), plain=True)
    for row in tree["candidates"]:
        seconds = row["seconds"]
        mark = " *" if row["timed"] == "measured" else ""
        table.add_row(
            *[f"{row['nodes']} x {row['gpus_per_node']}"] * several,
            str(row["zero"]), row["precision"], row["checkpointing"], row["offload"],
            f"{row['micro_batch']} x {row['accumulation']}", f"{row['planned_bytes'] / MIB:,.0f}",
            f"{1e3 * seconds['step']:,.1f}", f"{rate_words(row['images_per_second'])}{mark}",
            *(f"{seconds[name] / seconds['step']:.0%}" for name in PARTS),
        )  # fmt: skip
    return table


def rate_words(rate: float) -> str:
    """Images a second: whole ones, or three digits of few."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"

"""The top of the report: what run, when and where; the verdict; what would help most."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from diffbase.page.kit import Html, html, percent
from diffbase.page.rows import stacked
from diffcore.memory.page.figures import OUTSIDE, parts
from diffcore.memory.reading import (
    FULL,
    device,
    mib,
    on_gpu,
    peak,
    seen,
    sides,
    size_words,
    strategy,
    verdict,
)


def head(anatomy: dict[str, Any]) -> list[Html]:
    """What a reader wants first."""
    run, (which, rank) = anatomy["run"], sides(anatomy)[-1]
    ranks = f"rank {rank['rank']} of {run['world']}" if run["world"] > 1 else "one rank"
    about = [_date(run), device(rank) if which == "measured" else f"planned for a {device(rank)}", ranks]
    settings = (
        f"{run['model']}, {run['parameters']:,} parameters, {strategy(run)}, {run['precision']}, "
        f"checkpointing {run['checkpointing']}, offload {run['offload']}, "
        f"micro batch {run['micro_batch']} x {run['accumulation']}"
    )
    shown = [html.lead(verdict(anatomy)), *_room(anatomy, which, rank)]
    return [
        html.note(" · ".join(filter(None, about))),
        html.block("card", shown),
        *_advice(anatomy, rank),
        html.note(settings),
    ]


def _date(run: dict[str, Any]) -> str:
    try:
        return f"{datetime.fromisoformat(run.get('date', '')):%Y-%m-%d %H:%M} UTC"
    except ValueError:  # a plan, or another program's words
        return str(run.get("date", ""))


def _room(anatomy: dict[str, Any], which: str, rank: dict[str, Any]) -> list[Html]:
    """The device as a bar that the rank fills in part, with its tensors at the peak in colours."""
    if (room := rank.get("capacity")) is None or room["bytes"] <= 0:
        return []
    size, top = seen(rank), peak(rank)
    beside = max(0, size - top["allocated"])
    words = f"beside its tensors: {mib(beside)} MiB"
    most = max(room["bytes"], size)
    name = "it holds" if which == "measured" else "it will hold"
    row = (
        name,
        [*parts(top), (beside, OUTSIDE, words)],
        percent(size / most),
        f"of {size_words(room['bytes'])}",
    )
    return [stacked([row], f"{size_words(size)} of {size_words(room['bytes'])}", most)]


PLENTY = 0.5
"""Share of the device up to which there is no need to save."""


def _advice(anatomy: dict[str, Any], rank: dict[str, Any]) -> list[Html]:
    """The most useful change, then the others, then whatever else there is to say."""
    room = rank.get("capacity")
    enough = room and seen(rank) <= PLENTY * room["bytes"] and peak(rank)["name"] != FULL
    heading = "It has room to spare; if it had to take less" if enough else "What would help most"
    saved = anatomy.get("savings") or []
    told = [line for line in anatomy["advice"] if not (saved and " saves " in line)]
    fits = [line for line in told if line.startswith("The plan of ")]
    told = [line for line in told if line not in fits]
    if not on_gpu(rank):  # of a file from before advice was of the device
        told = [line for line in told if not line.startswith(("engine.precision", "engine.offload"))]
    found = []
    if saved:
        best = saved[0]
        words = (
            f"{best['setting']} would save {size_words(best['saves'])}, {percent(best['share'], 0)} of the "
            f"whole; slower by: {best['slower']}."
        )
        found.append(html.card(heading, [html.text(words), *_others(saved)], "best"))
    elif told:
        found.append(html.card(heading, [html.text(told[0])], "best"))
        told = told[1:]
    told = ([] if room else fits) + told  # the verdict says it of a known device
    return [*found, html.bullets(told)] if told else found


def _others(saved: list[dict[str, Any]]) -> list[Html]:
    rows = [(row["setting"], mib(row["saves"]), percent(row["share"], 0), row["slower"]) for row in saved]
    table = html.table("tnnt", ("setting, alone", "saves MiB", "", "slower by"), rows)
    note = html.note("Savings are planned; slow-downs are rules of thumb from the techniques' papers.")
    return [html.folded(f"All {len(saved)} settings that would save", table + note, False)] if rows else []

"""report.html: the memory report as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffbase.page import svg as charts
from diffbase.page.kit import Html, html
from diffcore.memory.planning.states import CATEGORIES, WORDS

MIB = 2**20
# fmt: off
COLORS = {
    "parameters": "#4e79a7", "masters": "#76b7b2", "optimizer": "#59a14f", "gradients": "#edc948",
    "ema": "#b07aa1", "activations": "#e15759", "buckets": "#f28e2b", "temporary": "#bab0ac",
    "data": "#9c755f",
}
# fmt: on


def page(anatomy: dict[str, Any]) -> str:
    """The page of what ``anatomy.json`` holds."""
    run = anatomy["run"]
    heading = (
        f"{run['model']}, {run['parameters']:,} parameters, {run['world']} rank{'s' * (run['world'] > 1)}, "
        f"ZeRO-{run['zero']}, {run['precision']}, checkpointing {run['checkpointing']}, "
        f"offload {run['offload']}, micro batch {run['micro_batch']} x {run['accumulation']}"
    )
    shown = [(which, fullest(anatomy[which])) for which in ("planned", "measured") if anatomy[which]]
    names = [[moment["name"] for moment in rank["moments"]] for _, rank in shown]
    comparable = names[0] == names[-1]  # at an out-of-memory error there is one moment, of no plan's
    sides = (" against " if comparable else " and ").join(which for which, _ in shown).capitalize()
    bars = [_bars(shown, comparable), html.note("MiB of tensors on the device")]
    if len(shown) == 2 and comparable:
        bars.append(_errors(shown[0][1], shown[1][1]))
    parts = [html.text(heading), html.legend({WORDS[c]: COLORS[c] for c in CATEGORIES})]
    parts.append(html.section(f"{sides}, phase by phase", *bars))
    for which, rank in [side for side in shown if side[1]["timeline"]][-1:]:
        title = f"Through one step, {which}, rank {rank['rank']}"
        parts.append(html.section(title, _timeline(rank["timeline"])))
    for which, rank in shown:
        notes = map(html.note, rank["notes"])
        parts.append(html.section(f"The sum, {which}, rank {rank['rank']}", _closure(rank), *notes))
    for which, rank in [side for side in shown if side[1]["layers"]][-1:]:
        title = f"Modules that leave most for backward, {which}"
        parts.append(html.section(title, *_layers(rank["layers"])))
    for which, _ in shown:
        if len(anatomy[which]) > 1:
            parts.append(html.section(f"All ranks, {which}", _ranks(anatomy[which])))
    if anatomy["advice"]:
        note = html.note("Savings are planned; slow-downs are rules of thumb.")
        parts.append(html.section("What would take less", html.bullets(anatomy["advice"]), note))
    return html.page("Memory report", parts)


def fullest(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rank that holds most at its peak."""
    return max(ranks, key=lambda rank: max(int(m["allocated"]) for m in rank["moments"]))


def _mib(size: float) -> str:
    return f"{size / MIB:,.1f}"


def _bars(shown: Sequence[tuple[str, dict[str, Any]]], comparable: bool) -> Html:
    """One bar per phase and side, with the total at its end; comparable sides are next to each other."""
    rows = []
    for which, rank in shown:
        for moment in rank["moments"]:
            sizes = [(c, moment["bytes"].get(c, 0)) for c in CATEGORIES]
            stretches = [(size, COLORS[c], f"{WORDS[c]} {_mib(size)} MiB") for c, size in sizes]
            rows.append((f"{moment['name']}, {which}", 0.0, stretches, _mib(moment["allocated"])))
    if comparable:
        count = len(rows) // len(shown)
        rows = [row for number in range(count) for row in rows[number::count]]
    return charts.stacks(rows, "bytes by category and phase", inline=True)


def _timeline(points: Sequence[dict[str, Any]]) -> Html:
    """Stacked areas over the points of one step, with a mark where a phase begins."""
    layers = {COLORS[c]: [point["bytes"].get(c, 0) for point in points] for c in CATEGORIES}
    phases = [None, *(point["phase"] for point in points)]
    marks = [(i, str(after)) for i, (before, after) in enumerate(pairwise(phases)) if before != after]
    most = max(sum(point["bytes"].values()) for point in points)
    return charts.areas(layers, marks, f"{_mib(most)} MiB", "bytes through one step")


def _errors(plan: dict[str, Any], measured: dict[str, Any]) -> Html:
    pairs = zip(plan["moments"], measured["moments"], strict=True)
    sizes = [(p["name"], p["allocated"], m["allocated"]) for p, m in pairs]
    rows = [(name, _mib(p), _mib(m), f"{p / m - 1 if m else 0:+.2%}") for name, p, m in sizes]
    return html.table("tnnn", ("", "planned MiB", "measured MiB", "error"), rows)


def _closure(rank: dict[str, Any]) -> Html:
    rows = [(WORDS.get(r["name"], r["name"]), _mib(r["bytes"]), r["source"]) for r in rank["closure"]]
    total = sum(row["bytes"] for row in rank["closure"])
    last = ("sum", _mib(total), rank.get("total", {}).get("source", "planned"))
    return html.table("tnt", ("", "MiB", "from"), rows, last)


def _layers(layers: Sequence[dict[str, Any]], most: int = 20) -> list[Html]:
    total, largest = sum(layer["bytes"] for layer in layers) or 1, layers[0]["bytes"] or 1
    rows = [
        (name, _mib(size), f"{size / total:.1%}", html.bar([("share", 0, size / largest)]))
        for name, size in [(layer["name"], layer["bytes"]) for layer in layers[:most]]
    ]
    rest = [html.note(f"and {len(layers) - most} more")] if len(layers) > most else []
    return [html.table("tnnt", ("module", "MiB", "share", ""), rows), *rest]


def _ranks(ranks: Sequence[dict[str, Any]]) -> Html:
    names = [moment["name"] for moment in ranks[0]["moments"]]
    rows = [(rank["rank"], *(_mib(m["allocated"]) for m in rank["moments"])) for rank in ranks]
    return html.table("t" + "n" * len(names), ("rank", *names), rows)

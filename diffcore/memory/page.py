"""report.html: the memory report as one self-contained page. No script, no network; labels are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from diffcore.memory.plan.states import CATEGORIES, WORDS

MIB = 2**20
# fmt: off
COLORS = {
    "parameters": "#4e79a7", "masters": "#76b7b2", "optimizer": "#59a14f", "gradients": "#edc948",
    "ema": "#b07aa1", "activations": "#e15759", "buckets": "#f28e2b", "temporary": "#bab0ac",
    "data": "#9c755f",
}
# fmt: on
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{font-size:1.15em;margin:2em 0 .5em}
table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
tr.total td{font-weight:600;border-top:2px solid #888}
.legend span{display:inline-block;margin-right:1em}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}
svg text{font:12px system-ui,sans-serif}.note{color:#666}
"""


def page(anatomy: dict[str, Any]) -> str:
    run = anatomy["run"]
    heading = (
        f"{run['model']}, {run['parameters']:,} parameters, {run['world']} rank{'s' * (run['world'] > 1)}, "
        f"ZeRO-{run['zero']}, {run['precision']}, checkpointing {run['checkpointing']}, "
        f"offload {run['offload']}, micro batch {run['micro_batch']} x {run['accumulation']}"
    )
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Memory report</title>",
        f"<style>{STYLE}</style></head><body><h1>Memory report</h1><p>{escape(heading)}</p>",
        _legend(),
    ]
    shown = [(which, fullest(anatomy[which])) for which in ("planned", "measured") if anatomy[which]]
    names = [[moment["name"] for moment in rank["moments"]] for _, rank in shown]
    comparable = names[0] == names[-1]  # at an out-of-memory error there is one moment, of no plan's
    title = _title([which for which, _ in shown], comparable)
    parts.append(f"<h2>{title}, phase by phase</h2>{_bars(shown, comparable)}")
    if len(shown) == 2 and comparable:
        parts.append(_errors(shown[0][1], shown[1][1]))
    for which, rank in [(which, rank) for which, rank in shown if rank["timeline"]][-1:]:
        parts.append(f"<h2>Through one step, {which}, rank {rank['rank']}</h2>{_timeline(rank['timeline'])}")
    for which, rank in shown:
        parts.append(f"<h2>The sum, {which}, rank {rank['rank']}</h2>{_closure(rank)}")
        parts += [f"<p class=note>{escape(note)}</p>" for note in rank["notes"]]
    for which, rank in [(which, rank) for which, rank in shown if rank["layers"]][-1:]:
        parts.append(f"<h2>Modules that leave most for backward, {which}</h2>{_layers(rank['layers'])}")
    for which, _ in shown:
        if len(anatomy[which]) > 1:
            parts.append(f"<h2>All ranks, {which}</h2>{_ranks(anatomy[which])}")
    if anatomy["advice"]:
        lines = "".join(f"<li>{escape(line)}</li>" for line in anatomy["advice"])
        parts.append(f"<h2>What would take less</h2><ul>{lines}</ul>")
        parts.append("<p class=note>Savings are planned; slow-downs are rules of thumb.</p>")
    return "".join([*parts, "</body></html>\n"])


def _title(names: Sequence[str], comparable: bool) -> str:
    return (" against " if comparable else " and ").join(names).capitalize()


def fullest(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rank that holds most at its peak."""
    return max(ranks, key=lambda rank: max(int(m["allocated"]) for m in rank["moments"]))


def _legend() -> str:
    spans = "".join(
        f"<span><i style='background:{COLORS[c]}'></i>{escape(WORDS[c])}</span>" for c in CATEGORIES
    )
    return f"<p class=legend>{spans}</p>"


def _mib(size: float) -> str:
    return f"{size / MIB:,.1f}"


def _bars(shown: Sequence[tuple[str, dict[str, Any]]], comparable: bool) -> str:
    """Stacked bars, one a phase and side, sides next to each other; labelled with the total in MiB."""
    rows = [(moment["name"], which, moment) for which, rank in shown for moment in rank["moments"]]
    if comparable:
        count = len(rows) // len(shown)
        rows = [row for number in range(count) for row in rows[number::count]]
    most = max((m["allocated"] for _, _, m in rows), default=1) or 1
    height = 26 * len(rows) + 8
    parts = [f"<svg viewBox='0 0 980 {height}' role=img aria-label='bytes by category and phase'>"]
    for number, (name, which, moment) in enumerate(rows):
        y, x = 26 * number + 4, 190.0
        parts.append(f"<text x=0 y={y + 14}>{escape(name)}, {escape(which)}</text>")
        parts.append(_stack(moment["bytes"], most, x, y, 680, 18))
        end = x + 680 * moment["allocated"] / most
        parts.append(f"<text x={end + 6:.1f} y={y + 14}>{_mib(moment['allocated'])}</text>")
    return "".join([*parts, "</svg><p class=note>MiB of tensors on the device</p>"])


def _stack(sizes: dict[str, int], most: int, x: float, y: float, width: float, height: float) -> str:
    parts = []
    for category in CATEGORIES:
        share = width * sizes.get(category, 0) / most
        if share >= 0.01:  # less would be drawn with no width
            label = f"{WORDS[category]} {_mib(sizes[category])} MiB"
            parts.append(
                f"<rect x={x:.2f} y={y} width={share:.2f} height={height} fill='{COLORS[category]}'>"
                f"<title>{escape(label)}</title></rect>"
            )
            x += share
    return "".join(parts)


def _errors(plan: dict[str, Any], measured: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(p['name'])}<td class=n>{_mib(p['allocated'])}<td class=n>{_mib(m['allocated'])}"
        f"<td class=n>{(p['allocated'] / m['allocated'] - 1) if m['allocated'] else 0:+.2%}"
        for p, m in zip(plan["moments"], measured["moments"], strict=True)
    )
    head = "<tr><th><th class=n>planned MiB<th class=n>measured MiB<th class=n>error"
    return f"<table>{head}{rows}</table>"


def _timeline(points: Sequence[dict[str, Any]]) -> str:
    """Stacked areas over the points of one step; the phases' ends are marked."""
    if not points:
        return ""
    width, height = 960, 300
    most = max(sum(p["bytes"].values()) for p in points) or 1
    step = width / max(1, len(points) - 1)
    parts = [f"<svg viewBox='0 0 980 {height + 30}' role=img aria-label='bytes through one step'>"]
    base = [0.0] * len(points)
    for category in CATEGORIES:
        top = [low + p["bytes"].get(category, 0) for low, p in zip(base, points, strict=True)]
        if top == base:
            continue
        up = [f"{i * step:.1f},{height - height * v / most:.1f}" for i, v in enumerate(top)]
        down = [f"{i * step:.1f},{height - height * v / most:.1f}" for i, v in enumerate(base)][::-1]
        parts.append(f"<polygon points='{' '.join([*up, *down])}' fill='{COLORS[category]}'/>")
        base = top
    phase = None
    for number, point in enumerate(points):
        if point["phase"] != phase:
            phase, x = point["phase"], number * step
            parts.append(f"<line x1={x:.1f} y1=0 x2={x:.1f} y2={height + 4} stroke='#444'/>")
            side = "text-anchor=end " if x > 0.9 * width else ""  # of the line, to stay in the picture
            x += -4 if side else 4
            parts.append(f"<text {side}x={x:.1f} y={height + 20}>{escape(str(phase))}</text>")
    parts.append(f"<text x=4 y=14>{_mib(most)} MiB</text>")
    return "".join([*parts, "</svg>"])


def _closure(rank: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(WORDS.get(row['name'], row['name']))}<td class=n>{_mib(row['bytes'])}"
        f"<td>{escape(row['source'])}"
        for row in rank["closure"]
    )
    total = sum(row["bytes"] for row in rank["closure"])
    where = rank.get("total", {}).get("source", "planned")
    foot = f"<tr class=total><td>sum<td class=n>{_mib(total)}<td>{escape(where)}"
    return f"<table><tr><th><th class=n>MiB<th>from{rows}{foot}</table>"


def _layers(layers: Sequence[dict[str, Any]], most: int = 20) -> str:
    total = sum(layer["bytes"] for layer in layers) or 1
    rows = "".join(
        f"<tr><td>{escape(layer['name'])}<td class=n>{_mib(layer['bytes'])}"
        f"<td class=n>{layer['bytes'] / total:.1%}"
        f"<td><svg width=240 height=12><rect height=12 fill='{COLORS['activations']}' "
        f"width={max(0.5, 240 * layer['bytes'] / layers[0]['bytes']):.1f} /></svg>"
        for layer in layers[:most]
    )
    rest = f"<p class=note>and {len(layers) - most} more</p>" if len(layers) > most else ""
    return f"<table><tr><th>module<th class=n>MiB<th class=n>share<th>{rows}</table>{rest}"


def _ranks(ranks: Sequence[dict[str, Any]]) -> str:
    names = [moment["name"] for moment in ranks[0]["moments"]]
    head = "".join(f"<th class=n>{escape(name)}" for name in names)
    rows = "".join(
        f"<tr><td>{rank['rank']}" + "".join(f"<td class=n>{_mib(m['allocated'])}" for m in rank["moments"])
        for rank in ranks
    )
    return f"<table><tr><th>rank{head}{rows}</table>"

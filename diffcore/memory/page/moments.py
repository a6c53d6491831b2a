"""Planned against measured, by category, at each moment of the step."""

from __future__ import annotations

from typing import Any

from diffbase.page.kit import Html, html, percent
from diffbase.page.rows import stacked
from diffcore.memory.page.figures import color, parts, used, word
from diffcore.memory.reading import both, error, mib, on_gpu, same, sides


def moments(anatomy: dict[str, Any]) -> list[Html]:
    """A card a moment. Sides that have other moments stand one after the other, without differences."""
    if pair := both(anatomy):
        planned, measured = pair
        cards = [
            _compared(p, m, on_gpu(measured))
            for p, m in zip(planned["moments"], measured["moments"], strict=True)
        ]
        note = html.note(
            f"MiB of tensors on rank {measured['rank']}; the error is the plan's; = below 0.05 % of all."
        )
        return [html.section("Planned against measured", note, html.block("grid", cards))]
    found = []
    for which, rank in sides(anatomy)[::-1]:
        cards = [_alone(moment, which, on_gpu(rank)) for moment in rank["moments"]]
        note = html.note(f"MiB of tensors on rank {rank['rank']}.")
        found.append(html.section(which.capitalize(), note, html.block("grid", cards)))
    return found


def _compared(planned: dict[str, Any], measured: dict[str, Any], gpu: bool) -> Html:
    whole = max(planned["allocated"], measured["allocated"])
    rows = []
    for name in used([planned, measured]):
        a, b = planned["bytes"].get(name, 0), measured["bytes"].get(name, 0)
        if same(a, b, whole) and same(a, 0, whole):
            continue
        rows.append((_named(name), mib(a), mib(b), _difference(a, b, whole)))
    a, b = planned["allocated"], measured["allocated"]
    off = error(a, b)
    total = ("all", mib(a), mib(b), html.span("good" if off == "=" else "strong", off))
    bars = [("planned", parts(planned), mib(a), ""), ("measured", parts(measured), mib(b), "")]
    table = html.table("tnnn", ("MiB", "planned", "measured", "error"), rows, total)
    drawn = stacked(bars, f"{measured['name']}: planned and measured")
    return html.card(measured["name"], [drawn, table, *_beside([planned, measured], gpu)])


def _beside(moments: list[dict[str, Any]], gpu: bool) -> list[Html]:
    """What is not among the tensors on the device."""
    words = [
        f"{name}: {' and '.join(mib(moment[key]) for moment in moments)}"
        for key, name in (("reserved", "reserved"), ("host", "on the host"))
        if any(moment[key] for moment in moments) and (gpu or key == "host")
    ]
    return [html.note("; ".join(words))] if words else []


def _difference(planned: int, measured: int, whole: int) -> str:
    """In MiB, with its sign."""
    if same(planned, measured, whole):
        return "="
    return f"{'+' if planned > measured else '-'}{mib(abs(planned - measured))}"


def _alone(moment: dict[str, Any], which: str, gpu: bool) -> Html:
    whole = moment["allocated"] or 1
    rows = [
        (_named(name), mib(size), percent(size / whole))
        for name in used([moment])
        if (size := moment["bytes"][name])
    ]
    table = html.table("tnn", ("MiB", "", ""), rows, ("all", mib(moment["allocated"]), ""))
    bar = stacked([(which, parts(moment), mib(moment["allocated"]), "")], moment["name"])
    return html.card(moment["name"], [bar, table, *_beside([moment], gpu)])


def _named(category: str) -> Html:
    return html.dot(color(category)) + html.span("", word(category))

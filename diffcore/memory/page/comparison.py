"""Two reports on one page: what is different, the largest first."""

from __future__ import annotations

from typing import Any

from diffbase.page import kit
from diffbase.page.kit import Html, html
from diffbase.page.rows import diverging, stacked
from diffcore.memory.comparing import Row, compared, sentence, side, word
from diffcore.memory.page.figures import OUTSIDE, color, parts, used
from diffcore.memory.page.figures import word as of_category
from diffcore.memory.reading import fullest, mib

MOST = 20
"""Rows of a part."""
MODULE = "#4a78b5"


def comparison(a: dict[str, Any], b: dict[str, Any], name_a: str, name_b: str) -> str:
    """The page of ``a`` and ``b``."""
    found = compared(a, b)
    sections = [html.note(f"A: {name_a} · B: {name_b}"), html.block("card", [html.lead(sentence(a, b))])]
    rows = [(row["setting"], row["a"], row["b"]) for row in found["settings"]]
    settings = html.table("ttt", ("", "A", "B"), rows) if rows else html.text("None.")
    sections.append(html.section("Settings that differ", settings))
    sections += _moments(a, b)
    headings = {
        "categories": "What has changed, by category and moment",
        "modules": "What modules leave for backward",
        "sum": "What is no tensor",
    }
    for part, heading in headings.items():
        if found[part]:
            sections.append(html.section(heading, *_changes(found[part], heading)))
    if not any(found[part] for part in headings):
        sections.append(html.text("Nothing else differs by more than 0.05 % of the whole."))
    return kit.page("Two memory reports", sections)


def _moments(a: dict[str, Any], b: dict[str, Any]) -> list[Html]:
    """Both at each moment that they share, on one scale."""
    if (which := side(a, b)) is None:
        return []
    mine = fullest(a[which])["moments"]
    others = {moment["name"]: moment for moment in fullest(b[which])["moments"]}
    both = [(moment, others[moment["name"]]) for moment in mine if moment["name"] in others]
    rows = []
    for pair in both:
        for name, moment in zip("AB", pair, strict=True):
            rows.append((f"{moment['name']}, {name}", parts(moment), mib(moment["allocated"]), ""))
    if not rows:
        return []
    legend = {of_category(n): color(n) for n in used(m for pair in both for m in pair)}
    bars = stacked(rows, f"{which}, A and B at each moment")
    return [html.section(f"Side by side, {which}", html.note("MiB"), html.legend(legend), bars)]


def _changes(rows: list[Row], title: str) -> list[Html]:
    lines = []
    for row in rows[:MOST]:
        size = row["b"] - row["a"]
        hue = color(row["category"]) if "category" in row else MODULE if "module" in row else OUTSIDE
        at = f"{row['moment']}: " if "moment" in row else ""
        note = f"{at}{mib(row['a'])} to {mib(row['b'])}"
        lines.append((word(row), size, hue, f"{'+' if size > 0 else ''}{mib(size)}", note))
    rest = [html.note(f"and {len(rows) - MOST} smaller ones")] if len(rows) > MOST else []
    return [html.note("MiB, B less A; the largest first, striped: less."), diverging(lines, title), *rest]

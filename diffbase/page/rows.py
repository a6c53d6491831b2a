"""Bars in rows that keep their text readable on any width: a sum as a waterfall, and stacks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffbase.page.kit import Html, html


@dataclass(frozen=True)
class Step:
    """A row of a waterfall."""

    name: str
    size: float
    color: str
    words: str
    """The size, in words."""
    note: str = ""
    is_sum: bool = False
    """It is of all rows before, and adds nothing."""


def waterfall(steps: Sequence[Step], title: str) -> Html:
    """Each row begins where the one before has ended; what is below zero goes back."""
    spans, running = list[tuple[float, float]](), 0.0
    for step in steps:
        begin = 0.0 if step.is_sum else running
        running = step.size if step.is_sum else running + step.size
        spans.append((min(begin, begin + step.size), max(begin, begin + step.size)))
    low, high = min([0.0, *(span[0] for span in spans)]), max([0.0, *(span[1] for span in spans)])
    room = (high - low) or 1.0
    lines = []
    for number, (step, (left, right)) in enumerate(zip(steps, spans, strict=True)):
        kind = "end" if number == len(steps) - 1 else "sum" if step.is_sum else ""
        hover = f"{step.name}: {step.words}"
        part = ((left - low) / room, (right - left) / room, step.color, hover, step.size < 0)
        lines.append((kind, step.name, [part], step.words, step.note))
    return html.rows(title, lines)


Part = tuple[float, str, str]
"""Length, colour, and what is shown on hover."""


def stacked(rows: Sequence[tuple[str, Sequence[Part], str, str]], title: str, most: float = 0.0) -> Html:
    """A bar a row of (name, its parts, words, note), all on one scale up to ``most`` (0: the longest)."""
    most = most or max((sum(part[0] for part in parts) for _, parts, _, _ in rows), default=0) or 1.0
    lines = []
    for name, parts, words, note in rows:
        begin, shares = 0.0, []
        for length, color, hover in parts:
            shares.append((begin / most, length / most, color, hover, False))
            begin += length
        lines.append(("", name, [share for share in shares if share[1] > 0], words, note))
    return html.rows(title, lines)


def diverging(rows: Sequence[tuple[str, float, str, str, str]], title: str) -> Html:
    """What has grown to the right of a common zero and what has shrunk to its left, striped.

    ``rows`` are (name, difference, colour, words, note).
    """
    low = min([0.0, *(row[1] for row in rows)])
    room = (max([0.0, *(row[1] for row in rows)]) - low) or 1.0
    lines = []
    for name, size, color, words, note in rows:
        part = ((min(0.0, size) - low) / room, abs(size) / room, color, f"{name}: {words}", size < 0)
        lines.append(("", name, [part], words, note))
    return html.rows(title, lines)

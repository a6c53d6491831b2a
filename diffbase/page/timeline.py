"""What lives at each instant, as areas on top of each other: axes, names, and the largest on hover."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffbase.page.kit import Html, html
from diffbase.page.svg import Shape, corners, shape

SCRIPT = "timeline.js.j2"
"""Shows an instant beside the chart at once; without it the browser does after a while, by its title."""
NOISE = 0.0005
"""Share of the highest total up to which a size is not told of."""
SIDE = 1000
"""Of the drawing, which is stretched to its box."""


@dataclass(frozen=True)
class Instant:
    """An instant of a timeline."""

    at: float
    """Where it is on the axis below."""
    phase: str
    sizes: Mapping[str, float]
    """By name; those without a size may be left out."""
    largest: Sequence[tuple[str, float, str]] = field(default=())
    """What is largest at this instant: its name, size, and of which of the names it is."""

    @property
    def total(self) -> float:
        """All sizes together."""
        return sum(self.sizes.values())


def timeline(
    instants: Sequence[Instant],
    colors: Mapping[str, str],
    words: Callable[[float], str],
    title: str,
    below: str,
    *,
    unit: float = 1.0,
    beside: Sequence[tuple[float, float]] = (),
) -> Html:
    """Areas by name in the order of ``colors``, from the bottom up.

    ``words`` says a size, ``below`` names the axis of ``Instant.at``, the axis on the left has round numbers
    of ``unit``. ``beside`` is a second total to compare with, (at, size), drawn as a dashed line.
    """
    first, last = instants[0].at, max(instants[-1].at, instants[0].at + 1)
    high = max([instant.total for instant in instants] + [size for _, size in beside]) or 1.0
    ticks = round_numbers(high / unit)
    most = max(high * 1.03, ticks[-1] * unit)

    def place(at: float, size: float) -> tuple[float, float]:
        return SIDE * (at - first) / (last - first), SIDE * (1 - size / most)

    shapes = [_rule(place(first, tick * unit)[1]) for tick in ticks]
    base = [0.0] * len(instants)
    for name, color in colors.items():
        top = [low + i.sizes.get(name, 0) for low, i in zip(base, instants, strict=True)]
        if top != base:
            edge = [place(i.at, y) for i, y in zip(instants, top, strict=True)]
            back = [place(i.at, y) for i, y in zip(instants, base, strict=True)][::-1]
            shapes.append(shape("polygon", points=corners([*edge, *back]), fill=color, data_name=name))
        base = top
    if beside:
        line = corners(place(*point) for point in beside)
        shapes.append(
            shape("polyline", points=line, stroke="currentColor", stroke_width=2, stroke_dasharray="6 4")
        )
    begun = phases(instants)
    bounds = [*(begin for _, begin in begun), last]
    spans = [(begin, end, name) for (name, begin), end in zip(begun, bounds[1:], strict=True)]
    for begin, _, _ in spans[1:]:
        x = place(begin, 0)[0]
        shapes.append(shape("line", x1=x, x2=x, y1=0, y2=SIDE, stroke="#888", stroke_dasharray="2 3"))
    peak = max(range(len(instants)), key=lambda number: instants[number].total)
    places = [place(instant.at, 0)[0] for instant in instants]
    for number, (instant, x) in enumerate(zip(instants, places, strict=True)):
        left = (places[max(number - 1, 0)] + x) / 2
        right = (places[min(number + 1, len(places) - 1)] + x) / 2
        named: dict[str, Any] = {"data_x": round(x, 1)} | ({"data_peak": number} if number == peak else {})
        hover = "\n".join("\t".join(line) for line in _said(instant, colors, words, high))
        shapes.append(
            shape("rect", hover=hover, class_="spot", x=left, width=right - left, y=0, height=SIDE, **named)
        )
    readout = [
        (name, rest[0] if rest else "", colors.get(rest[1], "") if rest[1:] else "")
        for name, *rest in _said(instants[peak], colors, words, high)
    ]
    return html.timeline(
        f"{title}. Highest: {words(instants[peak].total)}, in {instants[peak].phase}. Phases: "
        + ", ".join(name for name, _ in begun),
        shapes,
        [(tick * unit / most, f"{tick:,g}") for tick in ticks],
        [(place(a, 0)[0] / SIDE, (place(b, 0)[0] - place(a, 0)[0]) / SIDE, name) for a, b, name in spans],
        below,
        readout,
    )


def round_numbers(most: float, count: int = 6) -> list[float]:
    """From 0 to ``most``, in the smallest steps of 1, 2 or 5 times a power of ten of which ``count`` do.

    ``count`` is 2 or more.
    """
    power = 10.0 ** math.floor(math.log10(most / count))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if int(most / step) <= count)
    return [round(number * step, 12) for number in range(int(most / step) + 1)]


def phases(instants: Sequence[Instant]) -> list[tuple[str, float]]:
    """Each phase and where it begins."""
    found: list[tuple[str, float]] = []
    for before, instant in zip([None, *instants], instants, strict=False):
        if before is None:
            found.append((instant.phase, instant.at))
        elif before.phase != instant.phase:
            found.append((instant.phase, before.at))
    return found


def _said(
    instant: Instant, colors: Mapping[str, str], words: Callable[[float], str], high: float
) -> list[list[str]]:
    """Lines of (name, size, of which colour's name), of a heading without the last."""
    least = NOISE * high
    lines = [[one_line(instant.phase), words(instant.total)]]
    for name in [*colors][::-1]:
        if (size := instant.sizes.get(name, 0)) > least:
            lines.append([one_line(name), words(size), name])
    if largest := [row for row in instant.largest if row[1] > least]:
        lines.append(["largest here"])
        lines += [[one_line(name), words(size), of] for name, size, of in largest]
    return lines


def one_line(text: str) -> str:
    """Without what ends a line or a cell of an instant's title."""
    return " ".join(text.split()) or "?"


def _rule(y: float) -> Shape:
    return shape("line", x1=0, x2=SIDE, y1=y, y2=y, stroke="#ddd")

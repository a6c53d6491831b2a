"""Charts as SVG text: no script, small enough for a page or a repository."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diffbase.page.kit import Html, html

COLORS = (
    "#4a78b5", "#c0562f", "#3d8b4f", "#8557a5", "#8a6d3b", "#d16ba5", "#555555", "#a3a635", "#3aa6a6",
    "#d9a441", "#7f7f7f",
)  # fmt: skip
LEFT, BOTTOM, TOP, LEGEND = 60, 40, 12, 170

Point = tuple[float, float, str]
"""x, y, and what is shown on hover."""
Stretch = tuple[float, str, str]
"""Length, colour, and what is shown on hover."""
Shape = tuple[str, dict[str, Any], str, str]


def lines(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] = (0.0, 1.0),
    percent: bool = True,
    width: int = 720,
    height: int = 360,
) -> Html:
    """One curve per series, x from 0, y in ``y_range``, and a legend."""
    most = max([1e-9, *(x for points in series.values() for x, _, _ in points)]) * 1.02
    low, high = y_range
    right, floor = width - LEGEND, height - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most * (right - LEFT), TOP + (high - y) / (high - low) * (floor - TOP)

    shapes = []
    for i in range(5):
        across, up = most * i / 4, low + (high - low) * i / 4
        x, y = place(across, up)
        shapes += [
            shape("line", x1=LEFT, x2=right, y1=y, y2=y, stroke="#ddd"),
            _text(LEFT - 8, y + 4, f"{up:.0%}" if percent else f"{up:.3g}", "end"),
            _text(x, floor + 16, f"{across:,.3g}", "middle"),
        ]
    for i, (name, points) in enumerate(series.items()):
        color, places = COLORS[i % len(COLORS)], [place(x, y) for x, y, _ in points]
        shapes.append(shape("polyline", points=corners(places), fill="none", stroke=color, stroke_width=1.5))
        for (x, y), (_, _, hover) in zip(places, points, strict=True):
            shapes.append(shape("circle", hover=f"{name} {hover}", cx=x, cy=y, r=3, fill=color))
        shapes.append(_text(right + 12, TOP + 14 + 17 * i, name, fill=color))
    shapes.append(_text((LEFT + right) / 2, height - 6, x_label, "middle"))
    shapes.append(_text(-(TOP + floor) / 2, 14, y_label, "middle", transform="rotate(-90)"))
    return html.svg(width, height, f"{y_label} over {x_label}", shapes)


def stacks(
    rows: Sequence[tuple[str, float, Sequence[Stretch], str]],
    title: str,
    *,
    left: int = 190,
    legend: Mapping[str, str] | None = None,
    tick: Callable[[float], str] | None = None,
) -> Html:
    """One bar per row: its name, where it begins, its stretches, and a text at its end.

    With a ``legend`` (names and their colours) the title is written above; ``tick`` words the lengths below.
    """
    span = max((begin + sum(s[0] for s in stretches) for _, begin, stretches, _ in rows), default=0) or 1
    width, top, shapes = 980, 54 if legend else 4, []
    scale, bottom = (width - left - 110) / span, top + 26 * len(rows)
    if legend:
        shapes.append(_text(10, 18, title))
        for i, (name, color) in enumerate(legend.items()):
            shapes.append(shape("rect", x=10 + 75 * i, y=28, width=12, height=12, fill=color))
            shapes.append(_text(26 + 75 * i, 38, name))
    for y, (name, begin, stretches, words) in zip(range(top, bottom, 26), rows, strict=True):
        x = left + begin * scale
        shapes.append(_text(10, y + 14, name))
        for length, color, hover in stretches:
            if (long := length * scale) >= 0.01:  # less would be written as no width
                shapes.append(shape("rect", hover=hover, x=x, y=y, width=long, height=18, fill=color))
                x += long
        shapes.append(_text(x + 6, y + 14, words))
    if tick:
        ticks = [span * i / 5 for i in range(6)]
        shapes += [_text(left + t * scale, bottom + 16, tick(t), "middle") for t in ticks]
    return html.svg(width, bottom + (40 if tick else 4), title, shapes)


def shape(tag: str, words: str = "", hover: str = "", **attributes: Any) -> Shape:
    """One of ``html.svg``'s: attributes with dashes for underscores (a last one is left out)."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    values = {names[k]: round(v, 2) if isinstance(v, float) else v for k, v in attributes.items()}
    return tag, values, words, hover


def _text(x: float, y: float, words: str, anchor: str = "start", **attributes: Any) -> Shape:
    return shape("text", words, x=x, y=y, text_anchor=anchor, **attributes)


def corners(places: Iterable[tuple[float, float]]) -> str:
    """The points of a polygon or of a line."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

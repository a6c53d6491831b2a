"""Line charts as SVG text: no library, no script, small enough for a page or a repository."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

COLORS = (
    "#4a78b5", "#c0562f", "#3d8b4f", "#8557a5", "#8a6d3b", "#d16ba5", "#555555", "#a3a635", "#3aa6a6",
    "#d9a441", "#7f7f7f",
)  # fmt: skip
LEFT, BOTTOM, TOP, LEGEND = 60, 40, 12, 170

Point = tuple[float, float, str]
"""x, y and what a reader who hovers is told."""


def lines(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] = (0.0, 1.0),
    percent: bool = True,
    width: int = 720,
    height: int = 360,
) -> str:
    """An SVG with a curve a series, x from 0, y in ``y_range``, and a legend."""
    most = max([1e-9, *(x for points in series.values() for x, _, _ in points)]) * 1.02
    low, high = y_range
    right, floor = width - LEGEND, height - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / most * (right - LEFT), TOP + (high - y) / (high - low) * (floor - TOP)

    parts = [f'<rect width="{width}" height="{height}" fill="white"/>']
    for i in range(5):
        value = low + (high - low) * i / 4
        _, y = place(0, value)
        text = f"{value:.0%}" if percent else f"{value:.3g}"
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{text}</text>'
        )
        x, _ = place(most * i / 4, low)
        parts.append(f'<text x="{x:.0f}" y="{floor + 16}" text-anchor="middle">{most * i / 4:,.3g}</text>')
    for i, (name, points) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        places = [place(x, y) for x, y, _ in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{path}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{html.escape(name)} '
            f"{html.escape(told)}</title></circle>"
            for (x, y), (_, _, told) in zip(places, points, strict=True)
        ]
        parts.append(
            f'<text x="{right + 12}" y="{TOP + 14 + 17 * i}" fill="{color}">{html.escape(name)}</text>'
        )
    middle, center = (TOP + floor) / 2, (LEFT + right) / 2
    parts.append(
        f'<text x="{center:.0f}" y="{height - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text x="14" y="{middle:.0f}" text-anchor="middle" transform="rotate(-90 14 {middle:.0f})">'
        f"{html.escape(y_label)}</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="system-ui, sans-serif" font-size="12">{"".join(parts)}</svg>'
    )

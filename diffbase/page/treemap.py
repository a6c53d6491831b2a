"""A whole divided among its parts, as rectangles in rectangles (Bruls, Huizing and van Wijk 2000)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffbase.page.kit import Html, html

Rectangle = tuple[float, float, float, float]
"""Left, top, width, height."""
SMALL = 0.06
"""Share of the width or height below which no name is printed; on a screen it depends on its size."""
ASPECT = 16 / 9
"""Width over height of the whole, where the page is wide."""


@dataclass(frozen=True)
class Node:
    """A part, and what is in it; ``size`` is that of all of it, above 0."""

    name: str
    size: float
    words: str
    """The size, in words."""
    color: str
    hover: str
    within: Sequence[Node] = ()


def treemap(nodes: Sequence[Node], title: str) -> Html:
    """``nodes`` as areas in the proportion of their sizes; names where they have room, and all on hover."""
    return html.treemap(title, list(_tiles(nodes, ASPECT, 1.0, 1.0)))


def _tiles(nodes: Sequence[Node], aspect: float, wide: float, high: float) -> Iterator[tuple[object, ...]]:
    """``wide``, ``high``: what these are in, as shares of the whole; where a name has no room it is small."""
    ordered = sorted(nodes, key=lambda node: (-node.size, node.name))
    for node, (x, y, width, height) in zip(
        ordered, squarified([node.size for node in ordered], aspect, 1.0), strict=True
    ):
        across, down = wide * width / aspect, high * height
        within = list(_tiles(node.within, width / height, across, down))
        share = (x / aspect, y, width / aspect, height)
        small = across < SMALL or down < SMALL
        yield (*share, node.color, node.name, node.words, node.hover, small, within)


def squarified(sizes: Sequence[float], width: float, height: float) -> list[Rectangle]:
    """Rectangles that fill ``width`` x ``height``, one for each of ``sizes``, which fall and are above 0.

    Rows are laid along the shorter side of what is left, each as long as its squares get squarer by it.
    """
    scale = width * height / sum(sizes) if sizes else 0.0
    areas, left, found = [size * scale for size in sizes], (0.0, 0.0, width, height), list[Rectangle]()
    while areas:
        count, side = 1, min(left[2:])
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(areas[:count], side):
            count += 1
        row, areas = areas[:count], areas[count:]
        laid, left = _laid(row, left)
        found += laid
    return found


def _worst(row: Sequence[float], side: float) -> float:
    """The largest ratio of two sides in a row along ``side``."""
    thick = sum(row) / side
    return max(max(area / thick**2, thick**2 / area) for area in row)


def _laid(row: Sequence[float], room: Rectangle) -> tuple[list[Rectangle], Rectangle]:
    """The rectangles of a row, and the room that is left."""
    x, y, width, height = room
    found = []
    if width >= height:
        thick = sum(row) / height
        for area in row:
            found.append((x, y, thick, area / thick))
            y += area / thick
        return found, (room[0] + thick, room[1], max(width - thick, 1e-12), height)
    thick = sum(row) / width
    for area in row:
        found.append((x, y, area / thick, thick))
        x += area / thick
    return found, (room[0], room[1] + thick, width, max(height - thick, 1e-12))

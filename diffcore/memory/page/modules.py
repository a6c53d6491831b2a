"""What modules leave for backward, as a treemap by their paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffbase.page.kit import Html, html, percent
from diffbase.page.svg import COLORS
from diffbase.page.treemap import Node, treemap
from diffcore.memory.reading import mib, size_words

SMALL = 0.002
"""Share of the whole below which modules of one path are shown together."""
DIVIDED = 0.1
"""Share of the whole from which a path within a path gets a frame of its own."""
ROWS = 25
"""Of the table."""


@dataclass
class Path:
    """A module with what is inside it."""

    own: int = 0
    within: dict[str, Path] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.own + sum(path.size for path in self.within.values())


def modules(shown: Sequence[tuple[str, dict[str, Any]]]) -> list[Html]:
    """Of the last side that knows its modules."""
    for which, rank in shown[::-1]:
        layers = [(layer["name"], layer["bytes"]) for layer in rank["layers"] if layer["bytes"] > 0]
        if layers:
            return [html.section(f"What modules leave for backward, {which}", *_drawn(layers))]
    return []


def _drawn(layers: Sequence[tuple[str, int]]) -> list[Html]:
    total = sum(size for _, size in layers)
    top = tree(layers)
    named = ", ".join(f"{name} {percent(size / total, 0)}" for name, size in _ranked(top)[:5])
    nodes = nodes_of(top, total)
    rows = [(name, mib(size), percent(size / total)) for name, size in layers[:ROWS]]
    rest = total - sum(size for _, size in layers[:ROWS])
    last = ("all", mib(total), "") if rest <= 0 else (f"all, with {len(layers) - ROWS} more", mib(total), "")
    table = html.table("tnn", ("module", "MiB", "share"), rows, last)
    return [
        html.note(f"{size_words(total)} of activations, by the module that made them; areas are bytes."),
        treemap(nodes, f"{size_words(total)} by module: {named}"),
        html.folded("The largest as a table", table, False),
    ]


def tree(layers: Iterable[tuple[str, int]]) -> Path:
    """Modules by the dots in their names."""
    top = Path()
    for name, size in layers:
        path = top
        for part in name.split("."):
            path = path.within.setdefault(part, Path())
        path.own += size
    return top


def _ranked(path: Path) -> list[tuple[str, int]]:
    sizes = [(name, inner.size) for name, inner in path.within.items()]
    return sorted(sizes, key=lambda item: (-item[1], item[0]))


def nodes_of(top: Path, total: int) -> list[Node]:
    """The treemap's: a colour for each path at the top, frames where there is much, the smallest together."""
    found = []
    for number, (name, _) in enumerate(_ranked(top)):
        found.append(_node(name, name, top.within[name], total, COLORS[number % len(COLORS)]))
    return _joined(found, total, "")


def _node(name: str, whole: str, path: Path, total: int, hue: str) -> Node:
    while not path.own and len(path.within) == 1:  # a frame around a single frame says nothing
        ((part, path),) = path.within.items()
        name, whole = f"{name}.{part}", f"{whole}.{part}"
    hover = f"{whole}: {size_words(path.size)}, {percent(path.size / total)}"
    if not path.within:
        return Node(name, path.size, mib(path.size), hue, hover)
    leaves = [Node("itself", path.own, mib(path.own), hue, f"{whole} itself: {size_words(path.own)}")]
    inner = leaves * bool(path.own)
    for part, within in path.within.items():
        if within.size >= DIVIDED * total:
            inner.append(_node(part, f"{whole}.{part}", within, total, hue))
        else:
            inner += _flat(part, f"{whole}.{part}", within, total, hue)
    return Node(name, path.size, mib(path.size), hue, hover, _joined(inner, total, whole))


def _flat(name: str, whole: str, path: Path, total: int, hue: str) -> list[Node]:
    """All of a path without frames."""
    found = []
    if path.own:
        hover = f"{whole}: {size_words(path.own)}, {percent(path.own / total)}"
        found.append(Node(name, path.own, mib(path.own), hue, hover))
    for part, within in path.within.items():
        found += _flat(f"{name}.{part}", f"{whole}.{part}", within, total, hue)
    return found


def _joined(nodes: list[Node], total: int, where: str) -> list[Node]:
    """The smallest as one."""
    small = [node for node in nodes if node.size < SMALL * total and not node.within]
    if len(small) < 2:
        return nodes
    size = sum(node.size for node in small)
    words = f"{len(small)} more{f' in {where}' if where else ''}: {size_words(size)}"
    rest = Node(f"{len(small)} more", size, mib(size), small[0].color, words)
    return [*(node for node in nodes if node not in small), rest]

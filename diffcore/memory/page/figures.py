"""Colours and words that the parts of a page share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffcore.memory.planning.states import CATEGORIES, WORDS
from diffcore.memory.reading import mib

# fmt: off
COLORS = {
    "parameters": "#4e79a7", "masters": "#6fb7b7", "optimizer": "#59a14f", "gradients": "#e3b93c",
    "ema": "#a678b4", "activations": "#e15759", "buckets": "#f28e2b", "temporary": "#a7a19b",
    "data": "#9c755f",
}
# fmt: on
OUTSIDE = "#8a94a3"
"""Of what is no tensor."""
RESIDUAL = "#c2185b"


def color(category: str) -> str:
    """Of a category, or of a row of the sum that is none."""
    if category.startswith("residual"):
        return RESIDUAL
    return COLORS.get(category, OUTSIDE)


def word(category: str) -> str:
    """What people call it."""
    return WORDS.get(category, category)


def of(moment: dict[str, Any]) -> list[tuple[str, int]]:
    """(category, bytes) of those that have any, ours in their order first."""
    others = [name for name in moment["bytes"] if name not in WORDS]
    return [(name, size) for name in (*CATEGORIES, *others) if (size := moment["bytes"].get(name, 0))]


def used(moments: Iterable[dict[str, Any]]) -> list[str]:
    """The categories that any of ``moments`` has."""
    found = list(dict.fromkeys(name for moment in moments for name, _ in of(moment)))
    return sorted(found, key=lambda name: CATEGORIES.index(name) if name in WORDS else len(CATEGORIES))


def parts(moment: dict[str, Any]) -> list[tuple[float, str, str]]:
    """A moment as the parts of a bar."""
    return [(size, color(name), f"{word(name)}: {mib(size)} MiB") for name, size in of(moment)]

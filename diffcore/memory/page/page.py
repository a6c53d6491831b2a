"""report.html: the memory report as one self-contained page."""

from __future__ import annotations

from typing import Any

from diffbase.page import kit
from diffbase.page.kit import html
from diffbase.page.timeline import SCRIPT
from diffcore.memory.page.closing import closing
from diffcore.memory.page.head import head
from diffcore.memory.page.modules import modules
from diffcore.memory.page.moments import moments
from diffcore.memory.page.ranks import ranks
from diffcore.memory.page.steps import through
from diffcore.memory.reading import sides


def page(anatomy: dict[str, Any]) -> str:
    """The page of what ``anatomy.json`` holds."""
    shown, parts = sides(anatomy), [*head(anatomy)]
    parts += moments(anatomy)
    parts += through(anatomy)
    parts += modules(shown)
    parts += closing(shown)
    parts += ranks(anatomy)
    notes = [html.section(f"Notes, {which}", html.bullets(rank["notes"])) for which, rank in _noted(shown)]
    return kit.page(title(anatomy), [*parts, *notes], SCRIPT)


def title(anatomy: dict[str, Any]) -> str:
    """What the page is of."""
    name = anatomy["run"].get("name")
    return f"Memory of {name}" if name else "Memory report"


def _noted(shown: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(which, rank) for which, rank in shown if rank["notes"]]

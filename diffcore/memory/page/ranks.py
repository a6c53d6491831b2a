"""All ranks side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffbase.page.kit import Html, html
from diffbase.page.rows import stacked
from diffcore.memory.page.figures import color, parts, used, word
from diffcore.memory.reading import MIB, SIDES, error, fullest, mib, peak

MOST = 64
"""Ranks that are drawn: of more the largest and the smallest."""


def ranks(anatomy: dict[str, Any]) -> list[Html]:
    """A bar a rank at its peak, where there are several, and a table of all moments."""
    found = []
    for which in SIDES[::-1]:
        if len(anatomy[which]) > 1:
            found.append(html.section(f"Ranks side by side, {which}", *_drawn(anatomy[which])))
    return found


def _drawn(all_ranks: Sequence[dict[str, Any]]) -> list[Html]:
    largest, drawn = fullest(all_ranks), list(all_ranks)
    sizes = sorted(peak(rank)["allocated"] for rank in all_ranks)
    spread = error(sizes[-1], sizes[0])
    words = (
        "all are equal" if spread == "=" else f"the largest holds {spread.lstrip('+')} more than the smallest"
    )
    if len(drawn) > MOST:
        ordered = sorted(drawn, key=lambda rank: -peak(rank)["allocated"])
        drawn = sorted([*ordered[: MOST // 2], *ordered[-MOST // 2 :]], key=lambda rank: rank["rank"])
        words += f"; the {MOST // 2} largest and the {MOST // 2} smallest of {len(all_ranks)} are drawn"
    rows = []
    for rank in drawn:
        top = peak(rank)
        note = "the largest" if rank is largest and spread != "=" else ""
        rows.append((f"rank {rank['rank']}", parts(top), mib(top["allocated"]), note))
    legend = {word(name): color(name) for name in used(peak(rank) for rank in drawn)}
    names = [moment["name"] for moment in all_ranks[0]["moments"]]
    cells = [(rank["rank"], *(mib(m["allocated"]) for m in rank["moments"])) for rank in drawn]
    whole = all(len(row) == len(names) + 1 for row in cells)
    table = html.table("t" + "n" * len(names), ("rank", *names), cells) if whole else ""
    return [
        html.note(f"MiB of tensors at each rank's peak; {words}."),
        html.legend(legend),
        stacked(
            rows, f"{len(drawn)} ranks at their peaks, {sizes[0] / MIB:,.0f} to {sizes[-1] / MIB:,.0f} MiB"
        ),
        *([html.folded("Every moment as a table", table, False)] if table else []),
    ]

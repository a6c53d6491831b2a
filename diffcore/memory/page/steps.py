"""Through one step: what lives at each instant."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffbase.page.kit import Html, html
from diffbase.page.timeline import Instant, phases, timeline
from diffcore.memory.page.figures import color, word
from diffcore.memory.planning import lifetimes
from diffcore.memory.planning.states import CATEGORIES
from diffcore.memory.reading import mib, sides, size_words

# From the bottom up: what stays the whole step first.
ORDER = ("parameters", "masters", "optimizer", "ema", "data", "buckets", "gradients", "activations", "temporary")  # fmt: skip  # noqa: E501
assert set(ORDER) == set(CATEGORIES)


def through(anatomy: dict[str, Any]) -> list[Html]:
    """The step as measured, with the plan's total as a dashed line, and as planned, folded."""
    drawn = [(which, rank, instants(rank)) for which, rank in _known(anatomy) if rank]
    if not drawn:
        return []
    (which, rank, found), *rest = drawn
    beside = _beside(found, rest[0][2]) if rest and rest[0][1]["rank"] == rank["rank"] else []
    parts = _drawn(which, rank, found, beside)
    for other, its_rank, its in rest:
        folded = html.block("", _drawn(other, its_rank, its))
        parts.append(html.folded(f"The same step, {other}", folded, False))
    return [html.section(f"Through one step, {which}, rank {rank['rank']}", *parts)]


def _known(anatomy: dict[str, Any]) -> list[tuple[str, dict[str, Any] | None]]:
    """A rank of each side, measured first: one whose tensors are known, else the fullest with a timeline."""
    found: list[tuple[str, dict[str, Any] | None]] = []
    for which, fullest in sides(anatomy)[::-1]:
        known = [rank for rank in (fullest, *anatomy[which]) if rank.get("lifetimes")]
        found.append((which, known[0] if known else fullest if fullest["timeline"] else None))
    return found


def _drawn(
    which: str, rank: dict[str, Any], found: list[Instant], beside: Sequence[tuple[float, float]] = ()
) -> list[Html]:
    names = [word(name) for name in ORDER]
    others = [name for instant in found for name in instant.sizes if name not in names]
    colors = dict(zip(names, map(color, ORDER), strict=True)) | {name: color(name) for name in others}
    colors = {name: c for name, c in colors.items() if any(i.sizes.get(name) for i in found)}
    below = "allocations and frees, in their order" if rank.get("lifetimes") else "where the total turns"
    title = f"Bytes through one step, {which}, by category"
    chart = timeline(found, colors, size_words, title, below, unit=2**20, beside=beside)
    dashed = " The dashed line is the total as planned." if beside else ""
    how = "Point at an instant, or use the arrow keys, to see what lives there."
    return [
        html.note(f"MiB on the device. {how}{dashed}"),
        html.legend(dict([*colors.items()][::-1])),
        chart,
        html.folded("The same as a table", _table(found, list(colors)), False),
    ]


def _beside(found: Sequence[Instant], planned: Sequence[Instant]) -> list[tuple[float, float]]:
    """The plan's total over the measured step's axis, stretched so that the ends of phases meet; none where
    one side's phases are not among the other's."""
    here, there = _ends(found), _ends(planned)
    if not (here.keys() <= there.keys() or there.keys() <= here.keys()):
        return []
    shared = [name for name in here if name in there]
    to, of = ([side[0].at, *(ends[n] for n in shared)] for side, ends in ((found, here), (planned, there)))
    line = []
    for instant in planned:
        number = max(i for i, start in enumerate(of[:-1]) if start <= instant.at)
        share = (instant.at - of[number]) / ((of[number + 1] - of[number]) or 1)
        line.append((to[number] + share * (to[number + 1] - to[number]), instant.total))
    return line


def _ends(found: Sequence[Instant]) -> dict[str, float]:
    """Where each phase ends; one of two parts by the name of the second."""
    begun = phases(found)
    ends = [*(begin for _, begin in begun[1:]), found[-1].at]
    return {name.split(", ")[-1]: end for (name, _), end in zip(begun, ends, strict=True)}


def instants(rank: dict[str, Any]) -> list[Instant]:
    """Of each tensor's life where that is known, else of the timeline."""
    if told := rank.get("lifetimes"):
        return [
            Instant(
                point.at,
                point.phase,
                {word(name): size for name, size in point.bytes.items()},
                [(layer, size, word(category)) for layer, category, size in point.largest],
            )
            for point in lifetimes.points(told)
        ]
    return [
        Instant(at, point["phase"], {word(name): size for name, size in point["bytes"].items()})
        for at, point in enumerate(rank["timeline"])
    ]


def _table(found: list[Instant], names: list[str]) -> Html:
    """Each phase at its highest."""
    ends = [number for number, (a, b) in enumerate(pairwise(found)) if a.phase != b.phase]
    begins = [0, *(number + 1 for number in ends)]
    phases = [found[a:b] for a, b in zip(begins, [*begins[1:], len(found)], strict=True)]
    tops = [max(phase, key=lambda instant: instant.total) for phase in phases]
    rows = [(name, *(mib(top.sizes.get(name, 0)) for top in tops)) for name in names]
    total = ("all", *(mib(top.total) for top in tops))
    headings = ("MiB at the highest of", *(top.phase for top in tops))
    return html.table("t" + "n" * len(tops), headings, rows, total)

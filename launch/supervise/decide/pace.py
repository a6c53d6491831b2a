"""Which ranks and nodes are slower than their peers, by what each rank has told of its own work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

LATELY = 3
"""Reports in a row, of one attempt, in all of which a rank has to be slow: once may be anything."""
LEAST = 0.5
"""Of its attempt's median, the steps or the seconds of a report that counts: a job's last save is of few."""
FACTOR = 1.5
"""Times its peers' time that make a rank slow, where its run's profile does not say (``slow_factor``)."""


def slow_ranks(
    events: Iterable[Mapping[str, Any]], factor: float, attempt: int | None = None
) -> dict[int, float]:
    """Rank -> how many times its peers' time it took for its own work, where that was ``factor`` or more.

    ``events``: the ledger, oldest first, of which the LATELY newest reports (``pace``) of ``attempt`` count
    (None: the newest), but for short ones. Its peers' time is the median of the others'; the figure is its
    lowest of the reports.
    Empty where more than half of the ranks would be slow: then the others are fast.
    """
    lines = list(events)
    if attempt is None:
        attempt = max((int(e["attempt"]) for e in lines if e["event"] == "started"), default=0)
    told = [(e, own) for e in lines if e["event"] == "pace" and e["attempt"] == attempt and (own := _own(e))]
    reports = _without_short(told)[-LATELY:]
    if len(reports) < LATELY or len({len(own) for own in reports}) > 1:
        return {}
    lowest = [min(ratios) for ratios in zip(*map(_ratios, reports), strict=True)]
    found = {rank: round(ratio, 2) for rank, ratio in enumerate(lowest) if ratio >= factor}
    return found if 2 * len(found) <= len(lowest) else {}


def slow_nodes(events: Iterable[Mapping[str, Any]], factor: float) -> dict[str, float]:
    """The same by node: the newest attempt's nodes that have a slow rank, and the figure of the slowest."""
    lines = list(events)
    started = [e for e in lines if e["event"] == "started"]
    nodes = [str(node) for node in started[-1].get("nodes") or []] if started else []
    world = started[-1].get("world") if started else None
    if len(nodes) < 2 or not isinstance(world, int) or world < len(nodes):
        return {}
    found: dict[str, float] = {}
    for rank, ratio in slow_ranks(lines, factor).items():
        if rank < world:
            node = nodes[rank // (world // len(nodes))]
            found[node] = max(ratio, found.get(node, 0.0))
    return found


def factor_of(events: Iterable[Mapping[str, Any]]) -> float:
    """What the run's profile called slow when it was started last."""
    told = [e["slow_factor"] for e in events if e["event"] == "started" and "slow_factor" in e]
    return float(told[-1]) if told and isinstance(told[-1], int | float) and told[-1] > 1 else FACTOR


def _own(event: Mapping[str, Any]) -> list[float]:
    """Seconds by rank; none where the line does not hold them."""
    own = event.get("own")
    if (
        not isinstance(own, list)
        or len(own) < 2
        or not all(isinstance(s, int | float) and s > 0 for s in own)
    ):
        return []
    return [float(s) for s in own]


def _without_short(told: list[tuple[Mapping[str, Any], list[float]]]) -> list[list[float]]:
    """The reports that are of enough steps, or of enough seconds, against the others of their attempt.

    Few of both, since a rank that turns slow makes few steps of a period of seconds, and one that is well
    again few seconds of a number of steps. One that does not say how many steps it is of counts.
    """
    sizes = [
        (steps, steps * max(own)) if isinstance(steps := event.get("steps"), int) and steps > 0 else None
        for event, own in told
    ]
    usual = [LEAST * median(kind) for kind in zip(*filter(None, sizes), strict=True)]
    return [
        own
        for (_, own), size in zip(told, sizes, strict=True)
        if size is None or any(had >= least for had, least in zip(size, usual, strict=True))
    ]


def _ratios(own: list[float]) -> list[float]:
    """Each rank's time over the median of the others'."""
    order = sorted(range(len(own)), key=own.__getitem__)
    least, most = (len(own) - 2) // 2, (len(own) - 1) // 2  # the others' places in the middle
    ratios = [0.0] * len(own)
    for place, rank in enumerate(order):
        middle = [own[order[k + (k >= place)]] for k in (least, most)]
        ratios[rank] = 2 * own[rank] / sum(middle)
    return ratios

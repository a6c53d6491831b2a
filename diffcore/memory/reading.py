"""What every reader of an anatomy.json takes from it: the fullest rank, its peak, what fits, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffcore.memory.calibration import GPUS, capacity

MIB, GIB = 2**20, 2**30
NOISE = 0.0005
"""Share of the whole below which planned and measured are the same."""
FULL = "out of memory"
"""The moment of an error's report."""
WHEN = {
    "forward peak": "in forward",
    "after forward": "at the end of forward",
    "backward peak": "in backward",
    "step peak": "in the optimizer's step",
    "after step": "after the step",
    FULL: "when memory ran out",
}
"""Moments as parts of a sentence."""
PHASES = {"forward": "in forward", "backward": "in backward", "step": "in the optimizer's step"}
"""Phases of a timeline, likewise."""
SIDES = ("planned", "measured")


def fullest(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rank that holds most at its peak."""
    return max(ranks, key=lambda rank: int(peak(rank)["allocated"]))


def peak(rank: dict[str, Any]) -> dict[str, Any]:
    """The moment at which most is allocated."""
    found: dict[str, Any] = max(rank["moments"], key=lambda moment: int(moment["allocated"]))
    return found


def sides(anatomy: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """("planned" or "measured", its fullest rank), of what there is."""
    return [(which, fullest(anatomy[which])) for which in SIDES if anatomy[which]]


def both(anatomy: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The fullest measured rank and the plan of it; None where they have not the same moments."""
    if not (anatomy["planned"] and anatomy["measured"]):
        return None
    measured = fullest(anatomy["measured"])
    of_it = [rank for rank in anatomy["planned"] if rank["rank"] == measured["rank"]]
    planned = of_it[0] if of_it else fullest(anatomy["planned"])
    same = [m["name"] for m in planned["moments"]] == [m["name"] for m in measured["moments"]]
    return (planned, measured) if same else None


def strategy(run: dict[str, Any]) -> str:
    """How the ranks share the work."""
    return str(run.get("strategy") or f"ZeRO-{run['zero']}")


def on_gpu(rank: dict[str, Any]) -> bool:
    """Whether it is a rank of a GPU."""
    return bool(rank["device"] != "cpu")


def device(rank: dict[str, Any]) -> str:
    """Its name for people."""
    return {"cpu": "CPU", "cuda": "GPU"}.get(rank["device"], str(rank["device"]))


def mib(size: float, digits: int = 1) -> str:
    """MiB; what is rounded to nothing has no sign."""
    text = f"{size / MIB:,.{digits}f}"
    return text.lstrip("-") if not text.strip("-0.,") else text


def size_words(size: float) -> str:
    """A size with the unit that suits it."""
    if abs(size) < 1024:
        return f"{size:,.0f} bytes"
    if abs(size) < MIB:
        return f"{size / 1024:,.0f} KiB"
    return f"{mib(size)} MiB" if abs(size) < 10 * GIB else f"{size / GIB:,.1f} GiB"


def same(planned: float, measured: float, whole: float) -> bool:
    """Whether they differ by no more than noise of the whole."""
    return abs(planned - measured) <= NOISE * abs(whole)


def error(planned: float, measured: float) -> str:
    """The plan's error as a share of what was measured, "=" below noise."""
    if same(planned, measured, measured):
        return "="
    return f"{planned / measured - 1:+.1%}".replace("%", " %") if measured else "new"


def seen(rank: dict[str, Any]) -> int:
    """What the system shows, or will show, for the rank."""
    return int(rank["total"]["bytes"]) if "total" in rank else sum(row["bytes"] for row in rank["closure"])


def shown_by(rank: dict[str, Any], which: str) -> str:
    """What shows that number."""
    if on_gpu(rank):
        return "nvidia-smi shows" if which == "measured" else "nvidia-smi will show"
    return "the process holds" if which == "measured" else "all tensors are"


def verdict(anatomy: dict[str, Any]) -> str:
    """The report in a sentence: the peak, when it is, and what it leaves of the device."""
    pair, shown = both(anatomy), sides(anatomy)
    which, rank = shown[-1]
    top = peak(rank)
    when = _when(rank, top)
    if pair is None:
        return f"Peak {size_words(top['allocated'])} {which}, {when}; {_left(rank, which)}."
    planned, measured = peak(pair[0])["allocated"], peak(pair[1])["allocated"]
    off = error(planned, measured)
    if off == "=":
        off = "the same"
    elif off != "new":
        off = f"the plan is {off.strip('+-')} {'high' if planned > measured else 'low'}"
    words = f"Peak {size_words(planned)} planned, {size_words(measured)} measured ({off}), {when}"
    return f"{words}; {_left(pair[1], 'measured')}."


def _when(rank: dict[str, Any], top: dict[str, Any]) -> str:
    """By the timeline, as backward's peak may be what forward has left; else by the moment's name."""
    line = [(sum(point["bytes"].values()), point["phase"]) for point in rank["timeline"]]
    highest, phase = max(line, key=lambda point: point[0], default=(0, ""))
    if line and same(highest, top["allocated"], highest) and phase in PHASES:
        return PHASES[phase]
    return WHEN.get(top["name"], f"at {top['name']}")


def _left(rank: dict[str, Any], which: str) -> str:
    size, words = seen(rank), shown_by(rank, which)
    if room := rank.get("capacity"):
        spare, of = room["bytes"] - size, f"of {size_words(room['bytes'])} ({room['source']})"
        held = f"{words} {size_words(size)} {of}"
        if peak(rank)["name"] == FULL:  # of what it could have had, a limit on addresses may be less
            return held
        return f"{held}: {size_words(abs(spare))} {'to spare' if spare >= 0 else 'too much'}"
    if not on_gpu(rank):
        return f"{words} {size_words(size)}"
    for name, gigabytes in GPUS.items():
        if (spare := capacity(gigabytes) - size) >= 0:
            return (
                f"{words} {size_words(size)}: it fits a card of {name.replace('GB', ' GB')} "
                f"with {size_words(spare)} to spare"
            )
    return f"{words} {size_words(size)}: more than a card of {max(GPUS.values())} GB has"

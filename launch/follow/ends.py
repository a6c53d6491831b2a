"""What an attempt at a run ended with, in a word, from its lines of the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffbase.exits import BAD_INPUT, PREEMPTED, may_retry
from diffbase.exits import DONE as DONE_CODE

Events = Sequence[Mapping[str, Any]]
Attempts = list[tuple[int, list[Mapping[str, Any]]]]

RUNNING = "running"
DONE = "done"
STOPPED = "stopped"
"""Asked to stop, by a preemption or a person; everything is saved."""
TIMEOUT = "time limit"
"""The same at the job's time limit."""
HANG = "hang"
KILLED = "killed"
"""By SIGKILL: a person, the kernel's OOM killer, or Slurm's."""
MEMORY = "out of memory"
NODE_LOST = "node lost"
LOST = "lost"
"""Without a last word, or its supervisor gone: a node, the scheduler, or a kill of all of it."""
PREFLIGHT = "preflight"
"""Before training began."""
BAD = "bad input"
CRASH = "crash"
"""The same command may go on."""
FAILED = "failed"
"""The same command would fail again."""

FAULTS = frozenset({HANG, KILLED, MEMORY, NODE_LOST, LOST, PREFLIGHT, BAD, CRASH, FAILED})


def kind(own: Events, newest: bool = True) -> str:
    """One of the words above. ``own``: the attempt's lines; ``newest``: no attempt came after it.

    An attempt that no launcher watched has no ``ended``: its own last words tell.
    """
    ended = next((e for e in reversed(own) if e["event"] == "ended"), None)
    names = {e["event"] for e in own}
    failed = [e for e in own if e["event"] == "failed"]
    words = " ".join(str(e.get("why", "")) for e in (*failed, *([ended] if ended else [])))
    if ended is not None:
        code = int(ended["code"])
        if code == PREEMPTED:
            return TIMEOUT if ended.get("timeout") else STOPPED
    elif "done" in names or "preempted" in names:
        return DONE if "done" in names else STOPPED
    elif failed:
        code = failed[-1].get("code") or 1
    elif "hang" in names:
        return HANG
    else:
        return RUNNING if newest else LOST
    if code == DONE_CODE:
        return DONE
    if code == BAD_INPUT:
        return BAD
    if "hang" in names or "said nothing" in words:
        return HANG
    if "out of memory" in words.lower():
        return MEMORY
    if not may_retry(code):
        return FAILED
    if "killed with its node" in words or "no word from the supervisor" in words:
        return NODE_LOST if " is down" in words else LOST
    if "started" not in names and "start" not in names and ended is not None:
        return PREFLIGHT
    return KILLED if "killed by SIGKILL" in words else CRASH


def split(events: Events) -> Attempts:
    """The attempts of a ledger, oldest first: number, and its lines in order of time.

    Without a launcher every start has the number 0: then a new ``start`` begins an attempt, and they are
    numbered in order. Lives of a job that ended before an attempt began are among them, with ``ended`` alone.
    """
    found: Attempts = []
    newest: dict[int, list[Mapping[str, Any]]] = {}
    for event in sorted(events, key=lambda e: float(e["time"])):
        number = int(event["attempt"])
        own = newest.get(number)
        if own is None or (event["event"] == "start" and _is_by_hand_and_began(own)):
            own = newest[number] = []
            found.append((number, own))
        own.append(event)
    began = [(number, own) for number, own in found if any(e["event"] in OPENING for e in own)]
    unique = len({number for number, _ in began}) == len(began)
    return [(number if unique else i, own) for i, (number, own) in enumerate(began)]


OPENING = ("started", "start", "ended")


def _is_by_hand_and_began(own: Events) -> bool:
    names = {e["event"] for e in own}
    return "start" in names and "started" not in names

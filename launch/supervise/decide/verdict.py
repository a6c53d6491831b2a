"""What the ends of an attempt's processes mean for the job."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from diffbase.exits import BAD_INPUT, DONE, FATAL, HOLD_BACK, PREEMPTED, RETRYABLE, may_retry
from launch.supervise.meeting import Exit

ASKED = (-signal.SIGUSR2, -signal.SIGTERM, -signal.SIGINT)
ALONE = HOLD_BACK / 2
"""Seconds that a node has to fail before every other one to be the cause: ranks that lost a peer hold back,
while in a hang the limits of all run out together, and the one that hangs says nothing."""


@dataclass(frozen=True)
class Verdict:
    """``code`` of exits.py for the whole attempt, which rank caused it, and one line.

    ``node``: the one that failed, where it did so alone and before all others; "" where that is not known.
    """

    code: int
    why: str
    rank: int | None = None
    node: str = ""


def judge(
    exits: Mapping[int, Exit],
    world: int,
    asked: bool,
    node_of: Callable[[int], str] = lambda rank: "",
    waited: Collection[int] = (),
) -> Verdict:
    """The attempt's outcome. ``asked``: the job was asked to stop. ``node_of``: a rank's node, where known.

    What the supervisors killed is no cause. The first failure is: the ranks that lost a peer fail after it.
    But ``waited``, the ranks whose watchdogs told of a hang, are those that waited for the cause.
    """
    own = sorted((e for e in exits.values() if not e.ours), key=lambda e: (e.time, e.rank))
    stopped = [e for e in own if e.code == PREEMPTED or (asked and e.code in ASKED)]
    failed = [e for e in own if e.code != DONE and e not in stopped]
    missing = sorted(set(range(world)) - set(exits))
    if failed:
        first = failed[0]
        code = RETRYABLE if may_retry(first.code) else first.code
        why = f"rank {first.rank} on {first.node}: {describe(first.code)}"
        if missing:  # the ranks that lost a peer fail; the lost node is silent
            return Verdict(code, f"{why}; {_silent(missing)}", missing[0], _one_node(missing, node_of))
        if first.rank in waited:
            silent = {e.node: e.rank for e in exits.values()}
            for e in own:
                silent.pop(e.node, None)
            if len(silent) != 1:
                return Verdict(code, why, first.rank)
            ((node, rank),) = silent.items()
            return Verdict(code, f"{why}; {node} said nothing", rank, node)
        others = [e for e in exits.values() if e.node != first.node]
        alone = bool(others) and all(e.ours or e.time - first.time > ALONE for e in others)
        return Verdict(code, why, first.rank, first.node if alone else "")
    if stopped:
        return Verdict(PREEMPTED, "stopped by a signal, everything saved", stopped[0].rank)
    if 0 in exits and not exits[0].ours:  # rank 0 writes everything: it is done when all else is
        return Verdict(DONE, "done", 0)
    if missing:
        return Verdict(RETRYABLE, _silent(missing), missing[0], _one_node(missing, node_of))
    return Verdict(RETRYABLE, "did not stop in time")


def describe(code: int) -> str:
    """An exit code of subprocess in words."""
    names = {
        FATAL: "failed, and would again (its log says why)",
        BAD_INPUT: "was given something wrong (its log says what)",
        RETRYABLE: "lost a peer, a device or a disk, or hung (its log says which)",
    }
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}: {names[code]}" if code in names else f"exit code {code}"


def _one_node(ranks: list[int], node_of: Callable[[int], str]) -> str:
    """The node of these ranks, if they have but one."""
    nodes = {node_of(rank) for rank in ranks}
    return nodes.pop() if len(nodes) == 1 else ""


def _silent(ranks: list[int]) -> str:
    return f"no word from the supervisor of rank {_listed(ranks)}"


def _listed(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")

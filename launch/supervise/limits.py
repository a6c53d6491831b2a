"""How long supervisors wait for each other, in one place, in seconds, by the number of nodes.

A start over a network file system takes longer with every node that asks the same server for the same files:
10 to 15 minutes were published for 2,000 nodes, so about 0.45 s a node. On a few nodes the first figure of
each line is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass

OLD_LIFE = 90.0
"""That an older life of the run has to let go of the run folder."""
END_GRACE = 2.0
"""That a process whose peer is gone has for its last words."""
LEAVE_GRACE = 120.0
"""That a process has after a peer left in good order."""
SAVE_GRACE = 300.0
"""Longest wait for a checkpoint that was being written when a peer was lost."""
LAST_SAVE_GRACE = 30.0
"""The same when all other ranks have left: what is to be written by them will not come."""
MARGIN = 60.0
"""For what lies between the waits that the leader's silence is made of."""


@dataclass(frozen=True)
class Limits:
    """The waits that grow with the job."""

    muster: float
    """That the supervisors of all nodes have to appear."""
    probe: float
    """That the preflight's timed all-reduce may take, with the start of its processes."""
    stragglers: float
    """Without another exit, after which the missing ones' supervisors count as gone."""
    reconnect: float
    """Within which a supervisor makes its broken connection to rank 0's again, or that one counts as gone."""
    node_lost: float
    """Within which a node whose connection ended is back, or counts as lost: it has given up by then."""
    leader_lost: float
    """Without a plan, after which rank 0's supervisor counts as gone: more than all that it may wait for."""


def of(nodes: int) -> Limits:
    """The limits of a job on ``nodes`` nodes."""
    muster, probe, stragglers = 120.0 + nodes / 2, 25.0 + nodes / 4, 30.0 + nodes / 50
    longest = max(OLD_LIFE + muster + probe, SAVE_GRACE + stragglers)
    reconnect = 10.0 + nodes / 100
    return Limits(muster, probe, stragglers, reconnect, 2 * reconnect, longest + MARGIN)

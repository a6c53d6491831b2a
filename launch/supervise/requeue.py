"""Asking Slurm to run the job again, if that is still ours to ask.

A job that gets SIGTERM may have been cancelled, preempted or have lost a node: then Slurm has decided, and
a requeue would bring a cancelled job back. So its state is asked for first; a process that outlived its
node's failure finds that another life has begun (the count of restarts differs) and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launch.scheduler import exclusion
from launch.scheduler.client import LIVING, state_of
from launch.supervise.environment import Layout


class Answer(NamedTuple):
    """What became of the question."""

    line: str
    """For the log."""
    again: bool
    """Whether the job runs again, whoever asked for it."""


def requeue(where: Layout, avoid: Sequence[str] = ()) -> Answer:
    """Have the job queued again, without the nodes ``avoid``."""
    if refusal := not_ours(where):
        return refusal
    if problem := exclusion.requeue(where.job):
        return Answer(f"requeue failed: {problem}", False)
    line = f"job {where.job} is queued again"
    if avoid and not exclusion.leave_out(where.job, avoid):
        # What rank 0's supervisor finds in the ledger (leader.py).
        return Answer(f"{line}; Slurm does not say that it leaves out {', '.join(avoid)}", True)
    return Answer(line + (f", without {', '.join(avoid)}" if avoid else ""), True)


def not_ours(where: Layout) -> Answer | None:
    """Why a requeue is not ours to ask for; None where it is."""
    state = state_of(where.job)
    if state is None:
        return Answer("Slurm does not answer here; the batch script asks for the requeue", True)
    if state.name != "RUNNING" or state.restarts != where.restart:
        line = f"not requeued: Slurm has the job as {state.name}"
        return Answer(line, state.restarts > where.restart and state.name in LIVING)
    return None

"""Asking Slurm to run the job again, if that is still ours to ask.

A job that gets SIGTERM may have been cancelled, preempted or have lost a node: then Slurm has decided, and
a requeue would bring a cancelled job back. So its state is asked for first; a process that outlived its
node's failure finds that another life has begun (the count of restarts differs) and asks for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from launch.scheduler import exclusion
from launch.scheduler.client import state_of
from launch.supervise.environment import Layout


def requeue(where: Layout, avoid: Sequence[str] = ()) -> str:
    """Have the job queued again, without the nodes ``avoid``; returns a line for the log."""
    if refusal := not_ours(where):
        return refusal
    if problem := exclusion.requeue(where.job):
        return f"requeue failed: {problem}"
    if avoid and not exclusion.leave_out(where.job, avoid):
        # What rank 0's supervisor finds in the ledger (leader.py).
        return f"job {where.job} is queued again; Slurm does not say that it leaves out {', '.join(avoid)}"
    return f"job {where.job} is queued again" + (f", without {', '.join(avoid)}" if avoid else "")


def not_ours(where: Layout) -> str:
    """Why a requeue is not ours to ask for; "" where it is."""
    state = state_of(where.job)
    if state is None:
        return "Slurm does not answer here; the batch script asks for the requeue"
    if state.name != "RUNNING" or state.restarts != where.restart:
        return f"not requeued: Slurm has the job as {state.name}"
    return ""

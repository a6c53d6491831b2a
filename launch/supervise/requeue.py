"""Asking Slurm to run the job again, if that is still ours to ask.

A job that gets SIGTERM may have been cancelled, preempted or have lost a node: then Slurm has decided, and
a requeue would bring a cancelled job back. So its state is asked for first; a process that outlived its
node's failure finds that another life has begun (the count of restarts differs) and asks for nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

import submitit

from launch.scheduler.client import leave_out, state_of
from launch.supervise.environment import Layout


def requeue(where: Layout, avoid: Sequence[str] = ()) -> str:
    """Have the job queued again, without the nodes ``avoid``; returns a line for the log."""
    state = state_of(where.job)
    if state is None:
        return "Slurm does not answer here; the batch script asks for the requeue"
    if state.name != "RUNNING" or state.restarts != where.restart:
        return f"not requeued: Slurm has the job as {state.name}"
    environment = submitit.JobEnvironment()
    try:
        environment._requeue(0)
    except (OSError, subprocess.SubprocessError) as error:
        return f"requeue failed: {error}"
    if avoid:
        leave_out(where.job, avoid)
    return f"job {where.job} is queued again"

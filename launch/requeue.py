"""Asking Slurm to run the job again, if that is still ours to ask.

A job that gets SIGTERM may have been cancelled, preempted or have lost a node: then Slurm has decided, and
a requeue would bring a cancelled job back. So its state is asked for first; a process that outlived its
node's failure finds that another life has begun (the count of restarts differs) and asks for nothing.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from launch.env import Layout

LIVING = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED")
"""States of a job that is not over."""
PATIENCE = 30  # seconds that Slurm has to answer


@dataclass(frozen=True)
class State:
    """A job as slurmctld sees it."""

    name: str
    restarts: int
    nodes: str
    partition: str


def state_of(job: str) -> State | None:
    """None if Slurm does not know the job, or does not answer."""
    command = ["scontrol", "show", "job", "-o", job]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse(text)


def parse(text: str) -> State | None:
    """The first job of ``scontrol show job -o``."""
    fields = dict(re.findall(r"(?:^|\s)(JobState|Restarts|NodeList|Partition)=(\S*)", text.split("\n")[0]))
    if "JobState" not in fields:
        return None
    return State(
        fields["JobState"],
        int(fields.get("Restarts", 0)),
        fields.get("NodeList", ""),
        fields.get("Partition", ""),
    )


def requeue(where: Layout, avoid: Sequence[str] = ()) -> str:
    """Have the job queued again, without the nodes ``avoid``; returns a line for the log."""
    import submitit

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
        update = ["scontrol", "update", f"JobId={where.job}", f"ExcNodeList={','.join(avoid)}"]
        subprocess.run(update, check=False, timeout=PATIENCE)
    return f"job {where.job} is queued again"

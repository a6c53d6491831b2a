"""Going on with fewer nodes: ``--nodes 1-2`` after a node was lost, or is left out, and no other is free; and
with more again.

Slurm queues the job again for as many nodes as before, and cannot shrink a waiting job. So a surviving
supervisor, in the seconds between Slurm's SIGTERM and its SIGKILL, submits a successor with as many nodes as
there are, from the same snapshot and into the same run folder, and cancels the old job. The global batch and
the data order do not depend on the number of ranks.

Such a job grows where training has stopped anyway, by a failure or at the time limit: if nodes are free that
it lacks, rank 0's supervisor submits a successor for these too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from diffcore.config import configure
from launch.ask.fewer_nodes import fitting
from launch.ask.spec import JobSpec
from launch.job import folder, registry
from launch.job.entry import record
from launch.job.folder import Place
from launch.job.sbatch import Sbatch
from launch.scheduler import client
from launch.supervise.environment import Layout

Successor = Callable[[Place], Any]
"""A job's folder -> what submitit runs there."""


def consider(place: Place, code: Path, where: Layout, spec: JobSpec, successor: Successor) -> str | None:
    """Submit a successor if a node of this job is lost and none is free; a line for the log, or None."""
    if not spec.requeue or spec.nodes_min >= spec.nodes:
        return None
    lost = client.lost_among(where.nodes)
    if not lost:
        return None
    state = client.state_of(where.job)
    # Slurm has counted the restart already; a job that was cancelled has none.
    if state is None or state.restarts != where.restart + 1:
        return None
    if not _elected(place, where):
        return None
    left = len(where.nodes) - len(lost)
    # This job's own nodes may already be listed as idle.
    others = set(client.idle_nodes(state.partition)) - {*where.nodes, *out_of(spec)}
    available = left + len(others)
    nodes = _fitting(place, spec, available)
    gone = ", ".join(lost)
    if nodes is None:
        return f"{gone} lost; {available} nodes are left, too few to go on: the job waits in the queue"
    if nodes == spec.nodes:
        return f"{gone} lost; other nodes are free, and Slurm queues the job again"
    job = succeed(place, code, where, spec, successor, nodes)
    return f"{gone} lost; job {job} goes on with {nodes} of {_wanted(spec)} nodes"


def out_of(spec: JobSpec) -> set[str]:
    """Nodes that a job of this run does without now."""
    return {*spec.exclude, *registry.excluded(spec.cluster.name)}


def larger(place: Place, where: Layout, spec: JobSpec, avoid: Collection[str]) -> int | None:
    """With how many nodes a job could go on that has taken another over, where it lacks some that are free
    now, without the nodes ``avoid`` and those that are lost; None where it is not to grow.

    Not where only some nodes of the partition will do: which of them are idle is not known.
    """
    cluster = spec.cluster
    some = cluster.constraint or cluster.gpus.type or {"constraint", "nodelist", "gres"} & {*cluster.sbatch}
    if not spec.requeue or spec.nodes >= _wanted(spec) or some:
        return None
    state = client.state_of(where.job)
    if state is None or state.name != "RUNNING" or state.restarts != where.restart:
        return None  # Slurm has decided about the job
    out = {*avoid, *out_of(spec), *client.lost_among(where.nodes)}
    nodes = _fitting(place, spec, len({*where.nodes, *client.idle_nodes(state.partition)} - out))
    return nodes if nodes is not None and nodes > spec.nodes else None


def grow(
    place: Place, code: Path, where: Layout, spec: JobSpec, successor: Successor, avoid: Collection[str]
) -> str | None:
    """Submit a successor with as many nodes as ``larger`` says; a line for the log, or None.

    OSError, or submitit's, where Slurm does not take it.
    """
    nodes = larger(place, where, spec, avoid)
    if nodes is None:
        return None
    job = succeed(place, code, where, _excluding(spec, {*avoid, *out_of(spec)}), successor, nodes)
    return f"nodes are free again: job {job} goes on with {nodes} of {_wanted(spec)} nodes"


def without(
    place: Place, code: Path, where: Layout, spec: JobSpec, successor: Successor, avoid: Collection[str]
) -> str | None:
    """Submit a successor that does without the nodes ``avoid``, if no others are free; a line for the log.

    None where the job is to be queued again: it may not shrink, or need not, or is no longer ours to end.
    OSError, or submitit's, where Slurm does not take it.
    """
    if not spec.requeue or spec.nodes_min >= spec.nodes:
        return None
    state = client.state_of(where.job)
    if state is None or state.name != "RUNNING" or state.restarts != where.restart:
        return None
    left = set(where.nodes) | set(client.idle_nodes(state.partition))
    available = len(left - {*avoid, *out_of(spec)})
    nodes = _fitting(place, spec, available)
    if nodes is None or nodes >= spec.nodes or not _elected(place, where):
        return None
    job = succeed(place, code, where, _excluding(spec, avoid), successor, nodes)
    return f"job {job} goes on with {nodes} of {_wanted(spec)} nodes, without {', '.join(avoid)}"


def succeed(place: Place, code: Path, where: Layout, spec: JobSpec, successor: Successor, nodes: int) -> str:
    """Submit the successor and cancel this job; returns its number, and what scancel had against it."""
    more = {"nodes": nodes, "nodes_wanted": _wanted(spec), "takes_over": where.job, "after": None}
    following = spec.model_copy(update=more)
    after = folder.create(place.run, spec.group)
    shutil.copyfile(place.config, after.config)
    folder.write_spec(after, following)
    after.live.mkdir(mode=0o700)
    # Slurm's variables of this job must not reach the next one.
    ours = ("SLURM_", "SUBMITIT_", "SRUN_")
    for name in [n for n in os.environ if n.startswith(ours) and n != "SLURM_CONF"]:
        del os.environ[name]
    job = str(Sbatch(following, after.folder, code).submit(successor(after)).job_id)
    # From here on the other job goes on, whatever fails: a requeue of this one would make two.
    try:
        record(place, after, following, job, takeover=True)
        refusal = client.cancel(where.job, client.SHORT)
    except (OSError, subprocess.SubprocessError) as error:
        refusal = str(error)
    return job + (f" (job {where.job} was not cancelled: {refusal})" if refusal else "")


def _excluding(spec: JobSpec, nodes: Collection[str]) -> JobSpec:
    more = sorted({*nodes} - {*spec.exclude})
    return spec.model_copy(update={"exclude": (*spec.exclude, *more)})


def _wanted(spec: JobSpec) -> int:
    return spec.nodes_wanted or spec.nodes


def _fitting(place: Place, spec: JobSpec, available: int) -> int | None:
    batch = configure.load(place.config).batch
    return fitting([batch], spec.tasks_per_node, spec.nodes_min, _wanted(spec), available)


def _elected(place: Place, where: Layout) -> bool:
    """Whether this process is the one that acts: the first that makes a file."""
    path = place.live / where.session / "takeover"
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    return True

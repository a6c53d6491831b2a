"""JobSpec: what is asked of the cluster for one job, checked before it is submitted. Imports no torch."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from diffbase.cli import InputError
from diffbase.explain import validated
from diffcore.config.section import Section
from launch.ask.profile import Cluster
from launch.scheduler.time_limit import minutes_of


class JobSpec(Section):
    """One job: its size, its time and how often it may be started again."""

    cluster: Cluster
    job: str = Field(min_length=1, max_length=100)
    """Name of the job in the queue: printable, without quotes, ``|`` and backslash, which Slurm changes."""
    nodes: int = Field(ge=1, le=100_000)
    """Nodes asked for."""
    nodes_min: int = Field(ge=1)
    """Fewest nodes that the run may go on with after one was lost."""
    tasks_per_node: int = Field(ge=1, le=4096)
    """Ranks per node: one per GPU."""
    gpus_per_node: int = Field(ge=0, le=64)
    """GPUs per node; 0: the ranks train on the CPU."""
    cpus_per_task: int = Field(ge=1)
    """Cores per rank."""
    minutes: int = Field(ge=1, le=10**8)
    """Time limit."""
    restarts: int = Field(default=20, ge=0)
    """Failures of one day that are retried; a stop by preemption or time limit is none."""
    after: str | None = Field(default=None, pattern=r"^\d+(_\d+)?$")
    """Job that must have ended before."""
    exclude: tuple[str, ...] = ()
    """Nodes left out."""
    requeue: bool = True
    """Whether the scheduler can start the job again; not on one machine, nor inside salloc."""
    takes_over: str | None = Field(default=None, pattern=r"^\d+(_\d+)?$")
    """Job whose run this one goes on with, on fewer or more nodes."""
    nodes_wanted: int | None = Field(default=None, ge=1, le=100_000)
    """Nodes that the run was submitted for, where this job has taken another over; it grows to them again."""
    parallel: int = Field(default=4, ge=1)
    """Jobs of a sweep that run at once."""
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the shards' index where it was submitted; None: they lie behind a URL."""
    group: bool = False
    """Whether the members of the run folder's group are trusted, as ``trust: group`` of the config says."""

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.nodes * self.tasks_per_node

    @field_validator("job")
    @classmethod
    def _name(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip() or set(name) & set("'\"`|\\"):
            raise ValueError(f"{name!r}: allowed are printable characters without quotes, | and \\")
        return name

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nodes_min > self.nodes:
            raise ValueError(f"nodes {self.nodes_min}-{self.nodes} ends before it begins")
        if self.gpus_per_node and self.tasks_per_node != self.gpus_per_node:
            raise ValueError(
                f"one rank a GPU: tasks-per-node {self.tasks_per_node} is not gpus-per-node "
                f"{self.gpus_per_node}; leave tasks-per-node out, or give gpus-per-node 0"
            )
        longest = self.cluster.max_minutes
        if longest and self.minutes > longest:
            raise ValueError(
                f"time: {self.minutes} minutes; the profile of {self.cluster.name} allows {longest}"
            )
        if self.minutes * 60 <= self.cluster.signal_seconds:
            raise ValueError(
                f"time: {self.minutes} minutes, but the job is told to save {self.cluster.signal_seconds} s "
                "before its end: give it longer"
            )
        if self.cluster.is_local and self.nodes > 1:
            raise ValueError(f"nodes: {self.nodes}; cluster local is one machine, so 1")
        return self


def from_flags(
    flags: Namespace,
    cluster: Cluster,
    default_name: str,
    here: bool = False,
    exclude: Sequence[str] = (),
    group: bool = False,
) -> JobSpec:
    """The flags of ``submit.py`` over the profile. InputError in one line for anything wrong.

    ``here``: the job runs inside an allocation that there is already. ``exclude``: nodes known to be bad.
    ``group``: the run folder's group is trusted.
    """
    low, high = parse_nodes(flags.nodes)
    gpus = flags.gpus_per_node or 0
    tasks = flags.tasks_per_node or max(gpus, 1)
    cluster = override(cluster, flags)
    tree: dict[str, Any] = {
        "cluster": cluster.model_dump(),
        "job": flags.name or default_name,
        "nodes": high,
        "nodes_min": low,
        "tasks_per_node": tasks,
        "gpus_per_node": gpus,
        "cpus_per_task": flags.cpus_per_task or cluster.cpus_per_task,
        "minutes": parse_minutes(flags.time) if flags.time else cluster.minutes,
        "restarts": usual_restarts(high) if flags.restarts is None else flags.restarts,
        "after": flags.after,
        "exclude": tuple(dict.fromkeys([*filter(None, (flags.exclude or "").split(",")), *exclude])),
        "requeue": not (here or cluster.is_local),
        "parallel": flags.parallel,
        "group": group,
    }
    return validated(JobSpec, tree, "job")


def usual_restarts(nodes: int) -> int:
    """Failures of a day that a job of so many nodes may have: thirteen times what a large run published.

    0.05 a node and day; Llama 3 had 0.0038 (arXiv 2407.21783, section 3.3.4). 20 at least.
    """
    return max(20, nodes // 20)


def override(cluster: Cluster, flags: Namespace) -> Cluster:
    """The profile with what the command line says instead."""
    keys = ("partition", "account", "qos", "constraint")
    given = {key: getattr(flags, key) for key in keys if getattr(flags, key) is not None}
    tree = cluster.model_dump() | given
    if flags.no_preflight:
        tree["preflight"]["mode"] = "off"
    return validated(Cluster, tree, "cluster")


def parse_nodes(text: str) -> tuple[int, int]:
    """``2`` -> (2, 2), ``1-2`` -> (1, 2)."""
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text)
    if not match:
        raise InputError(f"--nodes: {text!r}; give a number, or FEWEST-WANTED as 1-2")
    low = int(match[1])
    return low, int(match[2] or low)


def parse_minutes(text: str) -> int:
    """``--time`` as whole minutes (``time_limit.minutes_of``). InputError for anything else."""
    minutes = minutes_of(text)
    if minutes is None:
        raise InputError(f"--time: {text!r}; give minutes, HH:MM:SS or D-HH:MM:SS")
    return minutes

"""What the flags ask for, held against the cluster, the config and the data. Imports no torch."""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path

from diffbase.cli import InputError
from diffbase.line import say
from diffbase.machine.nvml import count_gpus
from diffcore.config.tree import Config
from diffcore.runs import run_folder
from launch.ask import profile
from launch.ask.cpu_ranks import cpu_ranks
from launch.ask.flags import PARALLEL
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from shards.schema import INDEX

QUEUES = ("after", "test_only", "sweep", "time", "partition", "account", "qos", "constraint", "exclude",
          "cpus_per_task", "queue")  # fmt: skip
"""Flags that one machine has no use for."""


def choose_cluster(flags: argparse.Namespace, here: bool) -> Cluster:
    """The profile; on one machine without a size, all GPUs or some ranks that share its cores."""
    cluster = profile.choose(flags.cluster)
    if cluster.is_local:
        if flags.gpus_per_node is None and flags.tasks_per_node is None:
            flags.gpus_per_node = count_gpus()
            flags.tasks_per_node = flags.gpus_per_node or cpu_ranks()
        if given := [name for name in QUEUES if getattr(flags, name)]:
            asked = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"cluster local has no queue: {asked} would do nothing; it is for Slurm")
    if flags.parallel != PARALLEL and not flags.sweep:
        raise InputError("--parallel is of a --sweep")
    if here and flags.sweep:
        raise InputError("--sweep is a job array of its own; inside an allocation add --queue")
    return cluster


def default_name(config: Config) -> str:
    """A job's name from the run folder's: letters, digits and ``_.-``, 100 at most."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", config.run.name)[:97]
    return name if name[:1].isalnum() else f"run{name}"


def fingerprint_of(data: Path | str) -> str | None:
    """Of packed shards, as ``shards.table.Index`` has it; None for a URL, or where no index can be read."""
    try:
        return None if isinstance(data, str) else hashlib.sha256((data / INDEX).read_bytes()).hexdigest()
    except OSError:
        return None


def _check_patterns(config: Config, spec: JobSpec) -> None:
    """InputError for a run folder whose name Slurm or a container cannot be given as a name alone."""
    refused = "" if spec.cluster.is_local else "\\"
    if spec.cluster.container:
        refused += ",:"
    if found := next((character for character in str(config.run.absolute()) if character in refused), None):
        what = "a list of paths" if found in ",:" else "a pattern for a file's name"
        raise InputError(
            f"run: {config.run} has {found!r}: it would be read as part of {what}; use another folder"
        )


def check(config: Config, spec: JobSpec, strict: bool) -> None:
    """What the nodes would find wrong, as InputErrors; missing shards are one only with ``strict``."""
    _check_patterns(config, spec)
    for nodes in sorted({spec.nodes_min, spec.nodes}):
        config.batch.split(nodes * spec.tasks_per_node)
    if isinstance(config.data.path, str):  # a URL: the nodes fetch it
        return
    if not strict and not (config.data.path / "index.json").exists():
        say(f"warning: data.path: {config.data.path} holds no index.json; seen from here", error=True)
        return
    from shards.table import Index  # numpy takes a tenth of a second: only where there are shards

    index = Index.load(config.data.path)
    for split in index.splits.values() if strict and not index.header.is_elsewhere else ():
        for shard in split.shards:
            path = config.data.path / shard.path
            size = path.stat().st_size if path.exists() else None
            if size != shard.bytes:
                said = "is missing" if size is None else f"has {size} bytes, the index says {shard.bytes}"
                raise InputError(f"data.path: {path} {said}; python -m shards.verify tells more")
    run_folder.check(config, run_folder.data_record(index))

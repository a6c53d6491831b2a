"""Slurm: its commands, its controller, and a cluster's profile held against what the cluster has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffbase.cli import InputError
from launch.ask.profile import Cluster, choose, profiles
from launch.doctor.finding import Finding, bad, ok, warn
from launch.scheduler import client
from launch.scheduler.client import Partition

SECONDS = 5.0
"""Slurm's time to answer; a healthy controller takes a tenth of one."""


def slurm(name: str | None) -> Iterator[Finding]:
    """Slurm as it is here, and the profile that ``--cluster`` names; None: none."""
    cluster = None
    if name is not None:
        try:
            cluster = choose(name)
        except InputError as error:
            yield bad(
                "profile", str(error), "slurm/profiles/ has the profiles, docs/slurm.md how to write one"
            )
    elif there := profiles():
        yield ok("profile", f"none was named; --cluster NAME checks one of local, {', '.join(there)}")
    wanted = cluster is not None and not cluster.is_local
    if cluster is not None and cluster.is_local:
        yield ok("profile", "local: ranks are processes of this machine, without Slurm")

    missing = client.missing_commands()
    if len(missing) == len(client.COMMANDS):
        if wanted:
            yield bad(
                "Slurm", "its commands are not here", "run this on a login node, or use --cluster local"
            )
        else:
            yield ok("Slurm", "no Slurm here; --cluster local trains without it")
        return
    if missing:
        yield bad("Slurm", f"missing: {', '.join(missing)}", "add the folder of Slurm's commands to PATH")
    else:
        yield ok("Slurm", f"{', '.join(client.COMMANDS)} are here")

    partitions = client.partitions(SECONDS)
    if not partitions:
        todo = "ask Slurm itself: sinfo; scontrol ping"
        found = f"no answer, or no partition for this user, within {SECONDS:g} s"
        yield bad("controller", found, todo) if wanted else warn("controller", found, todo)
        return
    yield ok("controller", f"answers: {', '.join(sorted({one.name for one in partitions}))}")
    if cluster is not None and wanted:
        yield from _profile(cluster, partitions)


def _profile(cluster: Cluster, partitions: Sequence[Partition]) -> Iterator[Finding]:
    name = "profile"
    mine = [
        one for one in partitions if (one.name == cluster.partition if cluster.partition else one.default)
    ]
    if not mine:
        found = f"no partition {cluster.partition!r}" if cluster.partition else "no default partition"
        names = ", ".join(sorted({one.name for one in partitions}))
        yield bad(name, f"{cluster.name}: {found}", f"set partition: in the profile to one of {names}")
        return
    partition = mine[0]
    if not partition.up:
        yield bad(name, f"{cluster.name}: partition {partition.name} is down", "another partition, or later")
    else:
        yield ok(name, f"{cluster.name}: partition {partition.name} is up")
    yield _time(cluster, partition)
    if (gpus := _gpus(cluster, mine)) is not None:
        yield gpus


def _time(cluster: Cluster, partition: Partition) -> Finding:
    name, longest = "profile: time", partition.minutes
    found = f"{partition.name} allows {'any time' if longest is None else f'{longest} minutes'}"
    if longest is not None and cluster.minutes > longest:
        todo = f"set minutes: in the profile to {longest} or less"
        return bad(name, f"{found}, the profile asks for {cluster.minutes}", todo)
    if longest is not None and (cluster.max_minutes or 0) > longest:
        todo = f"set max_minutes: in the profile to {longest}"
        return warn(name, f"{found}, the profile's max_minutes is {cluster.max_minutes}", todo)
    return ok(name, f"{found}, the profile asks for {cluster.minutes}")


def _gpus(cluster: Cluster, partition: Sequence[Partition]) -> Finding | None:
    """Whether a node of the partition has GPUs as the profile asks for them; None where it asks for none."""
    if cluster.gpus.form == "none":
        return None
    name, kinds = "profile: GPUs", sorted({kind for one in partition for kind in one.gpus})
    wanted = f"gpu:{cluster.gpus.type}" if cluster.gpus.type else "gpu"
    if not kinds:
        todo = "another partition: in the profile, or gpus: {form: none}"
        return bad(name, f"{partition[0].name} has no GPUs", todo)
    if not any(kind == wanted or kind.startswith(f"{wanted}:") for kind in kinds):
        todo = f"set gpus.type: in the profile to one that is there ({', '.join(kinds)}), or leave it out"
        return bad(name, f"{partition[0].name} has no {wanted}", todo)
    return ok(name, f"{partition[0].name} has {', '.join(kinds)}")

"""The checks, in the order of the report.

What needs more than the standard library is imported by the check that needs it, in its own process: a broken
package is then one bad line. And the process that forks them has no threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from launch.doctor.allreduce import all_reduce
from launch.doctor.devices import gpus, torch_and_gpus
from launch.doctor.engine import compiler, deepspeed
from launch.doctor.finding import Check, Finding
from launch.doctor.machine import locked_memory, open_files, processes, shared_memory, text_encoding
from launch.doctor.versions import versions

RUN_GB, TEMPORARY_GB, CACHE_GB = 2.0, 1.0, 5.0
"""Less free space than this is a warning."""
SPARE = 1.0
"""Seconds that the all-reduce has less than its check, so that it cleans up by itself."""


def checks(cluster: str | None, shards: str | None, run: str | None, seconds: float) -> list[list[Check]]:
    """All checks, in waves: what is timed comes last and alone, so that its figures mean something.

    ``seconds``: what each check may take.
    """
    beside = [
        Check("versions", versions),
        Check("GPUs", gpus),
        Check("torch build", torch_and_gpus),
        Check("DeepSpeed", deepspeed),
        Check("compiler", compiler),
        Check("disk: run", partial(_run_disk, run)),
        Check("disk: temporary", _temporary_disk),
        Check("disk: shard cache", _cache_disk),
        Check("shared memory", shared_memory),
        Check("locale", text_encoding),
        Check("open files", open_files),
        Check("locked memory", locked_memory),
        Check("processes", processes),
        Check("Slurm", partial(_slurm, cluster)),
    ]
    waves = [beside, [Check("all-reduce", partial(all_reduce, max(seconds - SPARE, seconds / 2)))]]
    if shards is not None:
        waves.insert(1, [Check("data", partial(_data, shards))])
    return waves


def _run_disk(run: str | None) -> Iterator[Finding]:
    from launch.doctor.disks import disk

    folder = Path.cwd() if run is None else Path(run)
    return disk("disk: run", folder, RUN_GB, "free some, or write runs to another disk")


def _temporary_disk() -> Iterator[Finding]:
    from launch.doctor.disks import disk, temporary_folder

    todo = "free some, or set TMPDIR to a folder on another disk"
    return disk("disk: temporary", temporary_folder(), TEMPORARY_GB, todo)


def _cache_disk() -> Iterator[Finding]:
    from launch.doctor.disks import disk
    from shards.remote.cache import default_folder

    todo = "free some, or set data.cache to a folder on another disk; only shards behind a URL need it"
    return disk("disk: shard cache", default_folder(), CACHE_GB, todo)


def _slurm(cluster: str | None) -> Iterator[Finding]:
    from launch.doctor.cluster import slurm

    return slurm(cluster)


def _data(shards: str) -> Iterator[Finding]:
    from launch.doctor.data import data

    return data(shards)

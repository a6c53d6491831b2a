"""What the system lends a process: shared memory, locale, limits."""

from __future__ import annotations

import codecs
import locale
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from diffbase.machine.nvml import count_gpus
from launch.doctor.finding import Finding, bad, ok, warn

MB, GB = 1e6, 1e9
SHARED_LOW, SHARED_TINY = 512 * MB, 68 * MB
"""Bytes of shared memory. A container has 64 MiB unless it is given more."""
FILES_LOW, FILES_BESIDE = 1024, 64
"""Open files: the usual limit, and what a process has open beside shards."""
PROCESSES_LOW = 1024
LOCKED_LOW = GB
INFINIBAND = Path("/sys/class/infiniband")


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Room where NCCL hands data from one GPU of a node to another."""
    name, todo = "shared memory", "in a container: --ipc=host, or --shm-size=2g"
    use = "NCCL needs it between the GPUs of a node"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield bad(name, f"{folder}: {error.strerror or error}; {use}, multiprocessing for its locks", todo)
        return
    size = f"{free / GB:.1f} GB" if free >= GB else f"{free / MB:.0f} MB"
    found = f"{folder}: {size} free"
    if free >= SHARED_LOW:
        yield ok(name, found)
    elif free < SHARED_TINY and count_gpus() > 1:
        yield bad(name, f"{found}; {use}", todo)
    else:
        yield warn(name, f"{found}; {use}", todo)


def text_encoding() -> Iterator[Finding]:
    """How text files and the terminal are read and written where nothing else is said."""
    encoding = codecs.lookup(locale.getpreferredencoding(False)).name
    if encoding == "utf-8":
        yield ok("locale", "UTF-8")
    else:
        yield warn(
            "locale", f"{encoding}, not UTF-8: names and labels may be garbled", "export LC_ALL=C.UTF-8"
        )


def open_files() -> Iterator[Finding]:
    """Descriptors for the shards that a reader keeps open."""
    from shards.images import OPEN_SHARDS

    name, (soft, hard) = "open files", resource.getrlimit(resource.RLIMIT_NOFILE)
    found, todo = f"at most {_limit(soft)}", f"ulimit -n {min(4096, hard) if hard >= 0 else 4096}"
    if soft == resource.RLIM_INFINITY or soft >= FILES_LOW:
        yield ok(name, found)
    elif soft < OPEN_SHARDS + FILES_BESIDE:
        yield bad(name, f"{found}; the shard reader alone keeps {OPEN_SHARDS} open", todo)
    else:
        yield warn(name, f"{found}, {FILES_LOW} is usual; the shard reader keeps {OPEN_SHARDS} open", todo)


def locked_memory() -> Iterator[Finding]:
    """Memory that must stay where it is while an InfiniBand adapter writes into it."""
    name, (soft, _) = "locked memory", resource.getrlimit(resource.RLIMIT_MEMLOCK)
    size = "without a limit" if soft == resource.RLIM_INFINITY else f"at most {soft / MB:.0f} MB"
    if not (INFINIBAND.is_dir() and any(INFINIBAND.iterdir())):
        yield ok(name, f"{size}; no InfiniBand here, which would need it")
    elif soft == resource.RLIM_INFINITY or soft >= LOCKED_LOW:
        yield ok(name, f"{size}, for InfiniBand")
    else:
        todo = "ulimit -l unlimited; under Slurm the administrator does it (PropagateResourceLimitsExcept)"
        yield warn(name, f"{size}: NCCL over InfiniBand may fail", todo)


def processes() -> Iterator[Finding]:
    """Processes and threads of this user: every rank has dozens."""
    name, (soft, _) = "processes", resource.getrlimit(resource.RLIMIT_NPROC)
    if soft == resource.RLIM_INFINITY or soft >= PROCESSES_LOW:
        yield ok(name, f"at most {_limit(soft)}")
    else:
        found = f"at most {soft}, of all of this user's; threads count, and a rank has dozens"
        yield warn(name, found, "ulimit -u 4096, or ask the administrator")


def _limit(value: int) -> str:
    return "any number" if value == resource.RLIM_INFINITY else str(value)

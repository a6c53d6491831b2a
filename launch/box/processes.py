"""Daemons known by a pid file, and the processes of one pretended node.

A process is its number **and** its start time: a number alone is soon another process's. Whatever is ended
here was started here, and is ended by number, never by name.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PROC = Path("/proc")


def start_time(pid: int) -> str | None:
    """When a process began, in clock ticks since boot; None where there is none, or only its zombie."""
    try:
        # The command's name, in brackets, may hold anything: read behind the last bracket.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def launch(command: Sequence[str], pid_file: Path, log: Path, env: dict[str, str]) -> None:
    """Start a daemon that stays in the foreground, in a session of its own; its pid file is ours."""
    with log.open("ab") as out:
        # fmt: off
        process = subprocess.Popen(
            command, env=env, cwd="/", start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out,
        )
        # fmt: on
    pid_file.write_text(f"{process.pid} {start_time(process.pid)}\n")


def running(pid_file: Path) -> int | None:
    """The number of the process that a pid file names, if that very process still runs."""
    try:
        number, started = pid_file.read_text().split()
        pid = int(number)
    except (OSError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def end(pid_file: Path, patience: float = 10) -> None:
    """SIGTERM, SIGKILL after ``patience`` seconds, and the pid file goes."""
    if pid := running(pid_file):
        send(pid, signal.SIGTERM)
        if not gone([pid], patience):
            send(pid, signal.SIGKILL)
            gone([pid], 5)
    pid_file.unlink(missing_ok=True)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL to all, as if at one moment: stopped first, so that none sees another one go."""
    pids = list(pids)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            send(pid, number)
    gone(pids, 5)


def send(pid: int, number: int) -> None:
    """Send a signal to a process, which may be gone."""
    with contextlib.suppress(ProcessLookupError):  # it may leave by itself meanwhile
        os.kill(pid, number)


def gone(pids: Sequence[int], patience: float) -> bool:
    """Wait until none of the processes runs; False when some still does after ``patience`` seconds."""
    until = time.monotonic() + patience
    while any(start_time(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def everything() -> Iterator[int]:
    """The number of every process of this machine but our own."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield int(entry.name)


def sharing_host_name(keeper: int) -> list[int]:
    """Processes in the same UTS namespace as ``keeper``, without it: all that runs on a pretended node."""
    namespace = _link(keeper, "ns/uts")
    if namespace is None or namespace == _link(os.getpid(), "ns/uts"):
        return []  # never this machine's own namespace
    return [pid for pid in everything() if pid != keeper and _link(pid, "ns/uts") == namespace]


def of_slurm_node(conf: Path, log: Path, name: str) -> list[int]:
    """The same without namespaces: tasks by their environment, slurmd and slurmstepd by their open log.

    A task that emptied its environment is not found.
    """
    marks = {f"SLURM_CONF={conf}".encode(), f"SLURMD_NODENAME={name}".encode()}
    return [pid for pid in everything() if marks <= _environment(pid) or str(log) in _open_files(pid)]


def _link(pid: int, what: str) -> str | None:
    try:
        return str((PROC / str(pid) / what).readlink())
    except OSError:
        return None


def _environment(pid: int) -> set[bytes]:
    try:
        return set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return set()


def _open_files(pid: int) -> set[str]:
    """Of slurmstepd and slurmd only: another program may well read a log."""
    executable = _link(pid, "exe") or ""
    if not Path(executable).name.startswith("slurm"):
        return set()
    try:
        return {str(entry.readlink()) for entry in (PROC / str(pid) / "fd").iterdir()}
    except OSError:
        return set()

"""Having a job queued again, and without some nodes: asked from inside the job that this ends.

Slurm changes ExcNodeList only of a job that waits. So the requeue comes first, and with it SIGTERM to all
processes of the job's steps, these commands among them: they ignore it, and have until Slurm's KillWait.
"""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Sequence

from launch.scheduler.client import PATIENCE, SHORT, answer
from launch.scheduler.nodelist import expand

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
AGAIN = 0.5
"""Seconds between two tries."""


def requeue(job: str) -> str:
    """Have Slurm queue a job again that runs; what it says if it will not, or ""."""
    try:
        done = _shielded(["scontrol", "requeue", job])
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def leave_out(job: str, nodes: Sequence[str], patience: float = PATIENCE) -> bool:
    """Have a queued job wait for other nodes than these, whatever it was to do without before.

    Whether Slurm says that it will, asked for up to ``patience`` seconds: while a job is completing, or the
    controller is busy, it may refuse at first.
    """
    until, names = time.monotonic() + patience, list(nodes)
    while True:
        try:
            _shielded(["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(names)}"])
            told = _shielded(["scontrol", "show", "job", "-o", job]).stdout
        except (OSError, subprocess.SubprocessError):
            told = ""
        if names and left_out(told) >= set(names):
            return True
        # One name that the cluster does not know (any more) is enough to be refused.
        known = answer(["sinfo", "-h", "-N", "-o", "%N"], SHORT).split()
        names = [node for node in nodes if node in known] if known else list(nodes)
        if not names or time.monotonic() > until:
            return not names
        time.sleep(AGAIN)


def left_out(text: str) -> set[str]:
    """The nodes that a job goes without, of ``scontrol show job -o``."""
    found = re.search(r"(?:^|\s)ExcNodeList=(\S+)", text)
    if not found or found[1] == "(null)":
        return set()
    try:
        return set(expand(found[1]))
    except ValueError:
        return set()


def _shielded(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that no signal to the job, its step or our process group ends, but SIGKILL."""

    def ignore() -> None:
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)

    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        start_new_session=True, preexec_fn=ignore,
    )  # fmt: skip

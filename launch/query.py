"""What Slurm says of jobs: one squeue and one sacct for all of them, and nothing where there is neither."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PATIENCE = 30  # seconds


@dataclass(frozen=True)
class Job:
    """A job as Slurm has it. ``why``: the reason it waits, or its exit code."""

    state: str
    elapsed: str = ""
    nodes: str = ""
    why: str = ""


def ask(jobs: Iterable[str]) -> dict[str, Job]:
    """State by job, of those that Slurm knows. Never raises: a controller that is down knows none."""
    wanted = [job for job in dict.fromkeys(jobs) if job]
    if not wanted or not shutil.which("squeue"):
        return {}
    # Job numbers, not the user's whole queue; an unknown number must not spoil the answer, so all states.
    queued = _run(["squeue", "--array", "-h", "--me", "-t", "all", "-o", "%i|%T|%M|%N|%r"])
    found = parse_squeue(queued)
    missing = [job for job in wanted if job not in found]
    if missing and shutil.which("sacct"):
        columns = "JobID,State,Elapsed,NodeList,ExitCode"
        found |= parse_sacct(_run(["sacct", "-n", "-P", "-X", "-o", columns, "-j", ",".join(missing)]))
    found |= {job: told for job in wanted if job not in found and (told := _array(job, found))}
    return {job: found[job] for job in wanted if job in found}


def _array(job: str, found: Mapping[str, Job]) -> Job | None:
    """A whole array by its elements: the states that there are, and how often."""
    states = Counter(told.state for name, told in found.items() if name.startswith(f"{job}_"))
    if not states:
        return None
    if len(states) == 1:
        return Job(next(iter(states)))
    return Job(", ".join(f"{count} {state}" for state, count in sorted(states.items())))


def parse_squeue(text: str) -> dict[str, Job]:
    """Lines of ``%i|%T|%M|%N|%r``."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 5:
            job, state, elapsed, nodes, reason = fields
            found[job] = Job(state, elapsed, nodes, "" if reason == "None" else reason)
    return found


def parse_sacct(text: str) -> dict[str, Job]:
    """Lines of ``JobID|State|Elapsed|NodeList|ExitCode``; a requeued job's last life comes last."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 5 and "." not in fields[0]:
            job, state, elapsed, nodes, code = fields
            why = "" if code == "0:0" else f"exit code {code.split(':')[0]}"
            found[job] = Job(state.split()[0], elapsed, nodes, why)
    return found


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""

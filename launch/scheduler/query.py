"""What Slurm says of jobs: one squeue and one sacct for all of them, and nothing where there is neither.

One squeue more where jobs are left that neither knows: another user's, where there is no sacct.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.scheduler import client


@dataclass(frozen=True)
class Job:
    """A job as Slurm has it. ``why``: the reason it waits, or its exit code; ``name``: in the queue."""

    state: str
    elapsed: str = ""
    nodes: str = ""
    why: str = ""
    name: str = ""


class Known(dict[str, Job]):
    """Jobs by number. ``answered``: Slurm did, so that a job that is not among them is unknown to it."""

    answered = False


def ask(wanted: Mapping[str, str]) -> Known:
    """State by job, of those that Slurm knows; ``wanted``: job -> name.

    A number is another job's where the name differs: of another cluster, or of a box that was made anew.
    Never raises: a controller that is down knows none.
    """
    known = Known()
    if not wanted or not shutil.which("squeue"):
        return known
    # The user's whole queue, not job numbers: one that is unknown must not spoil the answer.
    squeue = ["squeue", "--array", "-h", "-t", "all", "-o", "%i|%T|%M|%N|%r|%j"]
    queued = client.reply([*squeue, "--me"])
    known.answered = queued is not None
    found = parse_squeue(queued or "")
    missing = [job for job in wanted if job not in found]
    if missing and shutil.which("sacct"):
        columns = "JobID,State,Elapsed,NodeList,ExitCode,JobName"
        found |= parse_sacct(
            client.answer(["sacct", "-n", "-P", "-X", "-o", columns, "-j", ",".join(missing)])
        )
    found |= _arrays(wanted, found)
    if known.answered and (missing := [job for job in wanted if job not in found]):
        found |= parse_squeue(client.answer([*squeue, "-j", ",".join(missing)]))
        found |= _arrays(wanted, found)
    known |= {job: found[job] for job, name in wanted.items() if job in found and found[job].name == name}
    return known


def _arrays(wanted: Iterable[str], found: Mapping[str, Job]) -> dict[str, Job]:
    return {job: array for job in wanted if job not in found and (array := _array(job, found))}


def _array(job: str, found: Mapping[str, Job]) -> Job | None:
    """A whole array by its elements: the states that there are, and how often."""
    states = Counter(one.state for name, one in found.items() if name.startswith(f"{job}_"))
    if not states:
        return None
    if len(states) == 1:
        state = next(iter(states))
    else:
        state = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return Job(state, name=next(one.name for name, one in found.items() if name.startswith(f"{job}_")))


def parse_squeue(text: str) -> dict[str, Job]:
    """Lines of ``%i|%T|%M|%N|%r|%j``."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6:
            job, state, elapsed, nodes, reason, name = fields
            found[job] = Job(state, elapsed, nodes, "" if reason == "None" else reason, name)
    return found


def parse_sacct(text: str) -> dict[str, Job]:
    """Lines of ``JobID|State|Elapsed|NodeList|ExitCode|JobName``; a requeued job's last life comes last."""
    found = {}
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) == 6 and "." not in fields[0]:
            job, state, elapsed, nodes, code, name = fields
            why = "" if code == "0:0" else f"exit code {code.split(':')[0]}"
            found[job] = Job(state.split()[0], elapsed, nodes, why, name)
    return found

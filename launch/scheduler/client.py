"""Slurm's commands. A question is never an error: a controller that is down answers nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffbase.cli import InputError
from launch.scheduler.time_limit import minutes_of

PATIENCE = 30.0
"""Seconds that Slurm has to answer."""
SHORT = 10.0
"""The same where the asker is about to be killed; more than Slurm gives."""
LIVING = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING", "STOPPED")
"""States of a job that is not over."""
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
"""What submitting, running and following a job needs."""


@dataclass(frozen=True)
class State:
    """A job as slurmctld sees it."""

    name: str
    restarts: int
    nodes: str
    partition: str


@dataclass(frozen=True)
class Partition:
    """A partition, or those of its nodes that have the same GPUs."""

    name: str
    default: bool
    up: bool
    minutes: int | None
    """Longest time limit; None: any."""
    gpus: tuple[str, ...]
    """Kinds of GPUs of a node, as a job asks for them: ``gpu`` or ``gpu:TYPE``."""


def reply(command: Sequence[str], patience: float = PATIENCE) -> str | None:
    """What a command prints; None where there is none, it fails or does not answer in time."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patience)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def answer(command: Sequence[str], patience: float = PATIENCE) -> str:
    """The same, but nothing in place of None."""
    return reply(command, patience) or ""


def state_of(job: str) -> State | None:
    """None if Slurm does not know the job, or does not answer."""
    return parse(answer(["scontrol", "show", "job", "-o", job]))


def parse(text: str) -> State | None:
    """The first job of ``scontrol show job -o``."""
    fields = dict(re.findall(r"(?:^|\s)(JobState|Restarts|NodeList|Partition)=(\S*)", text.split("\n")[0]))
    if "JobState" not in fields:
        return None
    return State(
        fields["JobState"],
        int(fields.get("Restarts", 0)),
        fields.get("NodeList", ""),
        fields.get("Partition", ""),
    )


def queued_since(job: str) -> float | None:
    """Since when this life of a job had been in the queue, in seconds since 1970: a requeue begins anew.

    None where Slurm does not say.
    """
    found = re.search(r"(?:^|\s)SubmitTime=(\S+)", answer(["scontrol", "show", "job", "-o", job], SHORT))
    try:
        return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None
    except (ValueError, OverflowError):  # of a site's own form (SLURM_TIME_FORMAT)
        return None


def cancel(job: str, patience: float = 60.0) -> str | None:
    """Have Slurm end a job: SIGTERM, and SIGKILL after its KillWait. What it says if it will not."""
    done = subprocess.run(["scancel", job], capture_output=True, text=True, timeout=patience)
    return done.stderr.strip() if done.returncode else None


def when_it_would_start(script: Path) -> str:
    """sbatch's forecast for a batch script. InputError with its own line where it refuses it."""
    command = ["sbatch", "--test-only", str(script)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise InputError("--test-only: there is no sbatch here") from None
    if done.returncode:
        raise InputError(f"sbatch: {done.stderr.strip().removeprefix('sbatch: error: ')}")
    return done.stderr.strip() or done.stdout.strip()


def start_in(forecast: str) -> float | None:
    """The start that a forecast of ``when_it_would_start`` names, in seconds since 1970; None for none."""
    found = re.search(r"to start at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", forecast)
    try:
        return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else None
    except (ValueError, OverflowError):
        return None


def lost_among(nodes: Sequence[str]) -> list[str]:
    """Of these nodes those that are down or do not answer."""
    return lost_nodes(answer(["sinfo", "-h", "-N", "-n", ",".join(nodes), "-o", "%N %t"], SHORT))


def idle_nodes(partition: str) -> list[str]:
    """Nodes of a partition on which nothing runs."""
    return answer(["sinfo", "-h", "-N", "-p", partition, "-t", "idle", "-o", "%N"], SHORT).split()


def nodes_of(partition: str | None) -> list[str]:
    """All nodes of a partition, whatever their state; None: the default one's."""
    lines = answer(["sinfo", "-h", "-N", *(["-p", partition] if partition else []), "-o", "%N %P"], SHORT)
    rows = [line.split() for line in lines.splitlines()]
    return list(dict.fromkeys(r[0] for r in rows if len(r) == 2 and (partition or r[1].endswith("*"))))


def up_nodes(partition: str) -> list[str]:
    """Nodes of a partition that a job may get, now or when another job leaves them."""
    lines = answer(["sinfo", "-h", "-N", "-p", partition, "-o", "%N %t"], SHORT).splitlines()
    good = re.compile(r"(\S+) (idle|alloc|mix|comp|plnd|resv)\s*")
    return list(dict.fromkeys(found[1] for line in lines if (found := good.fullmatch(line))))


def lost_nodes(text: str) -> list[str]:
    """Nodes that are down or do not answer, of lines ``name state``."""
    lost = []
    for line in text.splitlines():
        name, _, state = line.strip().partition(" ")
        if re.match(r"(down|fail|unk)|.*\*$", state) and name not in lost:
            lost.append(name)
    return lost


def missing_commands() -> list[str]:
    """Those of COMMANDS that are not on the PATH."""
    return [command for command in COMMANDS if not shutil.which(command)]


def partitions(patience: float = SHORT) -> list[Partition]:
    """What this user may submit to; none where the controller does not answer."""
    return parse_partitions(answer(["sinfo", "-h", "-o", "%P|%a|%l|%G"], patience))


def parse_partitions(text: str) -> list[Partition]:
    """Lines of ``%P|%a|%l|%G``."""
    found = []
    for line in text.splitlines():
        fields = line.strip().split("|", 3)
        if len(fields) == 4:
            name, availability, limit, gres = fields
            kinds = re.findall(r"(?:^|,)(gpu(?::[A-Za-z][\w.-]*)?)(?=[:(,]|$)", gres)
            found.append(
                Partition(
                    name.removesuffix("*"),
                    name.endswith("*"),
                    availability == "up",
                    minutes_of(limit),
                    tuple(kinds),
                )
            )
    return found

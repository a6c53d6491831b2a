"""A process's place among the ranks, as its launcher's environment says.

torchrun's names, which deepspeed's launcher and ``launch`` set too. Where neither RANK nor WORLD_SIZE is
there, what srun or mpirun say: two processes of theirs must never take themselves for two runs.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import NamedTuple

from diffbase.cli import InputError
from diffbase.machine.ports import of_job

MOST = 1 << 24
"""Ranks of the largest job that is believed."""
ACCELERATORS = ("cpu", "cuda")
"""DeepSpeed's names of what diffcore trains on."""


OMPI = "OMPI_COMM_WORLD_"
MPI = (
    (f"{OMPI}SIZE", f"{OMPI}RANK", f"{OMPI}LOCAL_RANK", f"{OMPI}LOCAL_SIZE"),
    ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""What Open MPI's mpirun, MPICH's and Intel's call world, rank, local rank and ranks on the node."""


class Place(NamedTuple):
    """``rank`` of ``size`` in all, ``local`` on its node."""

    rank: int
    size: int
    local: int


def told(environ: Mapping[str, str] = os.environ) -> Mapping[str, str]:
    """``environ`` with torchrun's names in it, where srun or mpirun alone say who is who.

    MASTER_ADDR and MASTER_PORT of a step of srun's are its first node and a port that follows from job and
    step; mpirun has none for ranks on several nodes, nor a port. What is set already stays. InputError where
    something started ranks and does not say how many.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return environ
    step = environ.get("SLURM_STEP_NUM_TASKS"), environ.get("SLURM_PROCID")
    for size, rank, local, here in MPI:
        given = environ.get(size), environ.get(rank)
        if None not in given and given != step:  # else it is srun that speaks to MPI programs
            found = _named(*given, environ.get(local), environ.get(here))
            at_home = {"MASTER_ADDR": "127.0.0.1"} if environ.get(here) == given[0] else {}
            return {**at_home, **environ, **found}
    if None not in step and step[0] != "1":  # a batch script has a rank, and no step
        node, tasks = environ.get("SLURM_NODEID", ""), environ.get("SLURM_STEP_TASKS_PER_NODE", "")
        found = _named(*step, environ.get("SLURM_LOCALID"), _tasks_on(tasks, node))
        return {**_meeting(environ), **environ, **found}
    if "PMIX_RANK" in environ and None in step:
        raise InputError(
            "PMIX_RANK says that there are ranks, and nothing how many: set RANK, WORLD_SIZE, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT for each (WORLD_SIZE=1 for one alone), or start it by torchrun"
        )
    return environ


def _named(size: str | None, rank: str | None, local: str | None, here: str | None) -> dict[str, str]:
    names = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": here}
    return {name: value for name, value in names.items() if value is not None}


def _meeting(environ: Mapping[str, str]) -> dict[str, str]:
    """Where the ranks of a step of srun's meet: on its first node, where rank 0 is."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    # n[03-05,7]-ib,m -> n03-ib
    first = re.sub(r"\[([^],-]*)[^]]*\]", r"\1", re.split(r",(?![^[]*\])", nodes)[0])
    alone = environ.get("SLURM_STEP_NUM_NODES") == "1" or not first
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    port = next(of_job(*(environ.get(name, "0") for name in names)))
    return {"MASTER_ADDR": "127.0.0.1" if alone else first, "MASTER_PORT": str(port)}


def _tasks_on(counts: str, node: str) -> str | None:
    """Slurm's ``2(x3),1`` read at a node's number; None where it does not say."""
    parts = [re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part) for part in counts.split(",")]
    each = [part[1] for part in parts if part for _ in range(int(part[2] or 1))]
    return each[int(node)] if node.isascii() and node.isdigit() and int(node) < len(each) else None


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """RANK, WORLD_SIZE and LOCAL_RANK, also as ``told``; 0, 1 and 0 without a launcher. InputError for
    nonsense."""
    environ = told(environ)
    rank, size = rank_and_size(environ)
    found = Place(rank, size, number(environ, "LOCAL_RANK", 0, 0, size - 1))
    if size > 1:
        number(environ, "MASTER_PORT", None, 1, 65535)
        several = environ.get("LOCAL_WORLD_SIZE", str(size)) != str(size)
        if not environ.get("MASTER_ADDR", "" if several else "127.0.0.1"):
            raise InputError("MASTER_ADDR is empty or missing; allowed: the address of rank 0's node")
    return found


def rank_and_size(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """RANK and WORLD_SIZE. Among several every rank has to be told its own: all would be the first, else."""
    size = number(environ, "WORLD_SIZE", 1, 1, MOST)
    return number(environ, "RANK", 0 if size == 1 else None, 0, size - 1), size


def own_rank(environ: Mapping[str, str] = os.environ) -> int:
    """The rank, for who only has to know whether to speak: 0 without a launcher, or for nonsense."""
    try:
        return number(told(environ), "RANK", 0, 0, MOST)
    except InputError:
        return 0


def ranks_here(environ: Mapping[str, str] = os.environ) -> int | None:
    """The ranks on this node; None where no launcher says. InputError for nonsense."""
    environ = told(environ)
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # torchrun's, and that of DeepSpeed's launcher
        if environ.get(name):
            return number(environ, name, None, 1, MOST)
    return None


def check_devices(environ: Mapping[str, str] = os.environ) -> None:
    """InputError for an accelerator or a network interface that gloo and DeepSpeed would fail on."""
    if (device := environ.get("DS_ACCELERATOR", "cpu")) not in ACCELERATORS:
        raise InputError(f"DS_ACCELERATOR is {device!r:.40}; allowed: {', '.join(ACCELERATORS)}")
    here = [name for _, name in socket.if_nameindex()]
    for name in filter(None, environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in here:
            raise InputError(f"GLOO_SOCKET_IFNAME has {name!r:.40}; this machine has {', '.join(here)}")


def number(environ: Mapping[str, str], name: str, usual: int | None, least: int, most: int) -> int:
    """A whole number of the environment. InputError where it is none, or missing and not ``usual``."""
    given = environ.get(name)
    if given is None and usual is not None:
        return usual
    wanted = f"allowed are whole numbers from {least} to {most}, as a launcher sets it"
    if given is None:
        raise InputError(f"{name} is missing: {wanted}")
    if not (given.isascii() and given.isdigit() and len(given) < 10 and least <= int(given) <= most):
        raise InputError(f"{name} is {given!r:.40}: {wanted}")
    return int(given)

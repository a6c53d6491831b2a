"""Joining and leaving the run's process group."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import torch

from diffbase.cli import InputError
from diffbase.line import say
from diffbase.machine import compile_cache, launcher, malloc
from diffbase.machine.cores import fair
from diffcore.engine import rendezvous
from diffcore.engine.ranks import World, gather

NODES = ("SLURMD_NODENAME", "NODE_RANK", "GROUP_RANK")
"""What Slurm, ``launch`` and torchrun call a rank's node."""


def load() -> None:
    """Load DeepSpeed, before which some variables have to be set. Looks whether there are GPUs, uses none."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compile_cache.choose()
    import deepspeed  # noqa: F401


def start(run: Path, threads: int | None = None, *, group: bool = False, shown: bool = False) -> World:
    """Join the run's process group: one process alone, or as the launcher's environment says.

    ``run``: the run folder, which all ranks see; ``group`` and ``shown`` as of ``trust.own_folder``. Raises
    as ``rendezvous.join``; InputError for a run folder that others could change.
    """
    rank, size, local = launcher.place()
    if (told := launcher.told()) is not os.environ:
        os.environ.update(told)  # for DeepSpeed and the rendezvous
        if rank == 0 and size > 1:
            say(f"{size} ranks, as srun or mpirun says; WORLD_SIZE=1 for one alone", error=True)
    launcher.check_devices()
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for train.deterministic, before CUDA starts
    # DeepSpeed calls collectives by names that torch is renaming; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    load()
    import deepspeed

    # DeepSpeed would compile its own shared-memory collectives here, with a C++ compiler that may be missing
    # and half a minute that a small run does not have; gloo does the same work.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    if torch.cuda.is_available():
        # Slurm may show a task one device only: then it is number 0, whatever the local rank.
        seen = torch.cuda.device_count()
        if seen > 1 and local >= seen:
            raise InputError(f"local rank {local} has no GPU: this node shows {seen} (one process per GPU)")
        device = torch.device("cuda", local if seen > 1 else 0)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(threads or 1)
        malloc.keep_freed()
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = rendezvous.join(backend, run, group=group, shown=shown)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    world = World(rank, size, local, device, store)
    if device.type == "cpu" and threads is None:
        torch.set_num_threads(_threads(world))
    return world


def _threads(world: World) -> int:
    """This rank's part of the cores that it may run on: all of them, where srun or ``launch`` bound each rank
    to its own. A collective."""
    # Slurm's nodes may be on one host, as torchrun's groups and those of ``launch``.
    here = [socket.gethostname(), *(os.environ.get(name) for name in NODES)]
    mine = sorted(os.sched_getaffinity(0))
    return fair(mine, [cores for host, cores in gather([here, mine], world) if host == here])


def stop() -> None:
    """Leave the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""A process's place among the ranks, as its launcher's environment says: torchrun's names."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import NamedTuple

from diffbase.cli import InputError

MOST = 1 << 24
"""Ranks of the largest job that is believed."""
ACCELERATORS = ("cpu", "cuda")
"""DeepSpeed's names of what diffcore trains on."""


class Place(NamedTuple):
    """``rank`` of ``size`` in all, ``local`` on its node."""

    rank: int
    size: int
    local: int


def place(environ: Mapping[str, str] = os.environ) -> Place:
    """RANK, WORLD_SIZE and LOCAL_RANK; 0, 1 and 0 without a launcher. InputError for nonsense."""
    rank, size = rank_and_size(environ)
    found = Place(rank, size, number(environ, "LOCAL_RANK", 0, 0, size - 1))
    if size > 1:
        number(environ, "MASTER_PORT", None, 1, 65535)
        if not environ.get("MASTER_ADDR", "127.0.0.1"):
            raise InputError("MASTER_ADDR is empty; allowed: the address of rank 0's node")
    return found


def rank_and_size(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """RANK and WORLD_SIZE. Among several every rank has to be told its own: all would be the first, else."""
    size = number(environ, "WORLD_SIZE", 1, 1, MOST)
    return number(environ, "RANK", 0 if size == 1 else None, 0, size - 1), size


def own_rank(environ: Mapping[str, str] = os.environ) -> int:
    """The rank, for who only has to know whether to speak: 0 without a launcher, or for nonsense."""
    try:
        return number(environ, "RANK", 0, 0, MOST)
    except InputError:
        return 0


def ranks_here(environ: Mapping[str, str] = os.environ) -> int | None:
    """The ranks on this node; None where no launcher says. InputError for nonsense."""
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

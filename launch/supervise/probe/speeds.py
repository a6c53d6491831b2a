"""How fast ranks add up a tensor: all together, and each node with its neighbours."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffbase.files import write_json
from diffcore.engine import ranks, rendezvous
from launch.supervise.probe.ring import rounds

TIMES = 5


def take_part(out: Path) -> None:
    """``measure`` as the rank that the launcher's environment says; rank 0 writes the result to ``out``.

    Its process has to end after it: the process group is left as it is, and on a GPU a context.
    """
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(local if torch.cuda.device_count() > 1 else 0)
    rendezvous.join("nccl" if cuda else "gloo", out.parent, group=True)
    place = ranks.World(rank, world, local, torch.device("cuda" if cuda else "cpu"))
    result = measure(place, os.environ.get("SLURMD_NODENAME") or os.uname().nodename)
    if rank == 0:
        write_json(out, result)
    dist.barrier()


def measure(place: ranks.World, node: str) -> dict[str, Any]:
    """GB/s over all ranks, and of each pair of neighbouring nodes "a b" where there are more than two.

    ``node``: this rank's. A collective; every rank gets the same answer. The pairs of a round are timed side
    by side, so that the time it takes does not grow with the nodes.
    """
    cuda = place.device.type == "cuda"
    data = torch.ones((64 if cuda else 4) << 18, device=place.device)  # 64 or 4 MiB
    result: dict[str, Any] = {"backend": dist.get_backend(), "gbps": _speed(data), "pairs": {}}
    # Each node's first rank, with the next node's.
    names = ranks.gather([node, place.local_rank], place)
    firsts = [(name, i) for i, (name, local_rank) in enumerate(names) if local_rank == 0]
    if len(firsts) < 3:
        return result
    mine: dict[str, float] = {}
    for pairs in rounds(len(firsts)):
        for (name, a), (other, b) in ((firsts[i], firsts[j]) for i, j in pairs):
            if place.rank in (a, b):
                # Made by its two members alone: nobody else waits.
                group = dist.new_group(sorted((a, b)), use_local_synchronization=True)
                mine[f"{name} {other}"] = _speed(data, group)
    for measured in ranks.gather(mine, place):
        result["pairs"] |= measured
    return result


def _speed(data: torch.Tensor, group: dist.ProcessGroup | None = None) -> float:
    """GB/s of the best of some all-reduces; the first ones set up connections."""
    best = float("inf")
    for _ in range(TIMES):
        _settle(data)
        began = time.perf_counter()
        dist.all_reduce(data, group=group)
        _settle(data)
        best = min(best, time.perf_counter() - began)
    return data.nbytes / best / 1e9


def _settle(data: torch.Tensor) -> None:
    if data.is_cuda:
        torch.cuda.synchronize()

"""How fast ranks add up a tensor: all together, and each node with its neighbours."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from diffcore.engine import ranks
from launch.supervise.probe.ring import rounds

TIMES = 5


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

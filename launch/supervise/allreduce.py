"""python -m launch.supervise.allreduce --out FILE: one rank of the preflight's timed all-reduce.

Rank 0 writes the bandwidth over all ranks and, of several nodes, over each pair of neighbours: bytes of the
tensor over the time of one all-reduce, GB/s. Ends by itself when its time is over.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from diffbase.exits import RETRYABLE
from diffbase.files import write_json

ROUNDS = 5


def main() -> None:
    """Time it on this rank; exits with 0, or RETRYABLE when time is up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    flags = parser.parse_args()
    limit = threading.Timer(flags.seconds, _too_late, [flags.seconds])
    limit.daemon = True
    limit.start()

    import torch
    import torch.distributed as dist

    from diffcore.engine import ranks, rendezvous

    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(local if torch.cuda.device_count() > 1 else 0)
    rendezvous.join("nccl" if cuda else "gloo", flags.out.parent, group=True)
    data = torch.ones((64 if cuda else 4) << 18, device="cuda" if cuda else "cpu")  # 64 or 4 MiB
    place = ranks.World(rank, world, local, data.device)

    def speed(group: Any) -> float:
        """GB/s of the best round; the first ones set up connections."""
        best = float("inf")
        for _ in range(ROUNDS):
            if cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            dist.all_reduce(data, group=group)
            if cuda:
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
        return data.nbytes / best / 1e9

    result: dict[str, Any] = {"backend": dist.get_backend(), "gbps": speed(None), "pairs": {}}
    # Each node's first rank, with the next node's.
    names = ranks.gather([os.environ.get("SLURMD_NODENAME") or os.uname().nodename, local], place)
    firsts = [(name, i) for i, (name, local_rank) in enumerate(names) if local_rank == 0]
    if len(firsts) > 2:
        for (name, a), (other, b) in zip(firsts, [*firsts[1:], firsts[0]], strict=True):
            group = dist.new_group([a, b])  # a collective of all ranks
            mine = speed(group) if rank in (a, b) else 0.0
            result["pairs"][f"{name} {other}"] = ranks.gather(mine, place)[a]
    if rank == 0:
        write_json(flags.out, result)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends slowly


def _too_late(seconds: float) -> None:
    print(f"launch: the all-reduce did not end within {seconds:.0f} s", file=sys.stderr, flush=True)
    os._exit(RETRYABLE)


if __name__ == "__main__":
    main()

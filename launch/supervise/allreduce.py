"""python -m launch.supervise.allreduce --out FILE: one rank of the preflight's timed all-reduce.

Rank 0 writes the bandwidth over all ranks and, of several nodes, over each pair of neighbours: bytes of the
tensor over the time of one all-reduce, GB/s. Ends by itself when its time is over.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from diffbase.exits import RETRYABLE
from diffbase.files import write_json


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
    from launch.supervise.probe import speeds

    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(local if torch.cuda.device_count() > 1 else 0)
    rendezvous.join("nccl" if cuda else "gloo", flags.out.parent, group=True)
    place = ranks.World(rank, world, local, torch.device("cuda" if cuda else "cpu"))
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    result = speeds.measure(place, node)
    if rank == 0:
        write_json(flags.out, result)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that ends slowly


def _too_late(seconds: float) -> None:
    print(f"launch: the all-reduce did not end within {seconds:.0f} s", file=sys.stderr, flush=True)
    os._exit(RETRYABLE)


if __name__ == "__main__":
    main()

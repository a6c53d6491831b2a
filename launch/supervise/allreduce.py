"""python -m launch.supervise.allreduce --out FILE: one rank of a timed all-reduce, alone.

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


def main() -> None:
    """Time it on this rank; exits with 0, or RETRYABLE when time is up."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    flags = parser.parse_args()
    limit = threading.Timer(flags.seconds, _too_late, [flags.seconds])
    limit.daemon = True
    limit.start()

    from launch.supervise.probe import speeds

    speeds.take_part(flags.out)
    os._exit(0)  # gloo's threads may abort a process that ends slowly


def _too_late(seconds: float) -> None:
    print(f"launch: the all-reduce did not end within {seconds:.0f} s", file=sys.stderr, flush=True)
    os._exit(RETRYABLE)


if __name__ == "__main__":
    main()

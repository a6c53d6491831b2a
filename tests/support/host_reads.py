"""python -m tests.support.host_reads CONFIG...: where a step reads a tensor on the host, as JSON by config.

On a GPU each such read waits until all that was queued before it is done. Of the third step, in which nothing
is built any more: {"FILE:FUNCTION": reads}, of the innermost call outside of torch.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from diffcore.config import configure
from diffcore.engine import process_group
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.run import Training

READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")
TORCH = f"{os.sep}torch{os.sep}"


class HostReads(TorchDispatchMode):
    """Counts operators whose result the host needs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            frames = [f for f in traceback.extract_stack()[:-1] if TORCH not in f.filename]
            self.found[f"{Path(frames[-1].filename).name}:{frames[-1].name}"] += 1
        return func(*args, **(kwargs or {}))


def main() -> None:
    world = process_group.start(Path(sys.argv[1]).parent, 1)
    reads = {}
    for path in sys.argv[1:]:
        config = configure.load(Path(path))
        watchdog = Watchdog(config.run, world.rank, config.train.steps, config.guards)
        with watchdog, Training(config, world, StopFlag(), watchdog) as training:
            for _ in range(2):
                training.asked_to_stop()
                training.learn()
            with HostReads() as counted:
                training.asked_to_stop()
                training.learn()
        reads[path] = dict(sorted(counted.found.items()))
    if world.main:
        print(json.dumps(reads), flush=True)
    os._exit(0)  # as diffcore/train.py leaves


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)

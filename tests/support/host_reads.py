"""python -m tests.support.host_reads CONFIG...: where a step reads a tensor on the host, as JSON by config.

On a GPU each such read waits until all that was queued before it is done. Of the third step, in which nothing
is built any more: {"FILE:FUNCTION": reads}, of the innermost call outside of torch.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from diffcore.training.run import Training
from tests.support.in_training import report

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


def reads(training: Training) -> dict[str, int]:
    """Of the third step."""
    for _ in range(2):
        training.asked_to_stop()
        training.learn()
    with HostReads() as counted:
        training.asked_to_stop()
        training.learn()
    return dict(sorted(counted.found.items()))


if __name__ == "__main__":
    report(reads)

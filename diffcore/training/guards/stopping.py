"""Being asked to stop: a signal sets a flag, all ranks agree on it, and the loop saves and leaves.

Slurm warns of preemption and of the time limit with a signal, and not every rank gets it at the same moment.
A rank that went to save alone would wait for ever: so the flags are combined after every step.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch

from diffcore.engine.ranks import World, side_group

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR2. A second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._before = {number: signal.signal(number, self._set) for number in SIGNALS}

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def restore(self) -> None:
        """Give the signals back to the handlers that they had before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Agreement:
    """The highest flag of all ranks, one step late: the exchange runs beside the step, over the CPU."""

    def __init__(self, world: World) -> None:
        self._group = side_group() if world.size > 1 else None
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._work: torch.distributed.Work | None = None

    def of(self, mine: int) -> int:
        """What the ranks said at the last call; ``mine`` is heard by all at the next one. A collective."""
        if self._group is None:
            return mine
        agreed = self.last()
        self._flag = torch.tensor([mine], dtype=torch.int32)
        self._work = torch.distributed.all_reduce(
            self._flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def last(self) -> int:
        """The result of the exchange under way; 0 before the first."""
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        return int(self._flag.item())

"""Being asked to stop: a signal sets a flag, all ranks agree on it, and the loop saves and leaves.

So do they where checkpoints come by time: rank 0's clock says when, and all save at the same step.

Slurm warns of preemption and of the time limit with a signal, and not every rank gets it at the same moment.
A rank that went to save alone would wait for ever: so all ranks act on the same words at the same step.
"""

from __future__ import annotations

import json
import signal
from time import monotonic
from types import FrameType

from diffcore.engine.exchange import part_of
from diffcore.engine.ranks import World

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
EPOCH = 0.25
"""Seconds between two looks at whether all are to stop, of up to 500 ranks; two at most until it is heard."""
MOST = 32
"""Steps between them: more would be long where steps suddenly take longer."""


class StopFlag:
    """Set by SIGTERM, SIGINT, SIGUSR2 or SIGHUP; not by a SIGHUP that was ignored before, as under nohup.

    A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before = {
            number: signal.signal(number, self._set)
            for number in SIGNALS
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def ask(self) -> None:
        """Have the run save and leave, as by SIGTERM."""
        self.signal = self.signal or signal.SIGTERM

    def restore(self) -> None:
        """Give the signals back to the handlers that they had before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Agreement:
    """All ranks stop at the same step, or save at it, and no step waits for that.

    Steps are counted in epochs of about ``EPOCH`` seconds. A step before one ends, rank 0 alone looks whether
    a rank was asked to stop, and whether by its clock a checkpoint is due, and writes what holds from then
    on, once: stop or not, when the next epoch ends, save or not. Every rank reads the same words at the same
    step, and they are there when it does.
    """

    def __init__(self, world: World, every: float | None = None) -> None:
        """``every``: seconds between two checkpoints that come by time."""
        self._main, self._store = world.main, part_of(world, "stop")
        self._epoch = EPOCH * max(1.0, world.size / 500)  # the store answers ranks one after the other
        self._steps, self._end, self._length = 0, 2, 1
        self._began = monotonic()
        self._said, self._told = False, list[int]()
        self._every, self._saved_at = every, self._began
        self.due = False
        """Whether a checkpoint is to be saved after the step that ``of`` was asked before."""

    def saved(self) -> None:
        """A checkpoint was begun, for whatever reason: from now on the time until the next one counts."""
        self._saved_at = monotonic()

    def _is_due(self) -> bool:
        if self._every is None or monotonic() - self._saved_at < self._every:
            return False
        self.saved()  # or it would be said again before it has begun
        return True

    def of(self, mine: int) -> int:
        """A signal that a rank got, the same on every rank, or 0; ``mine``: this one's. Once a step.

        Heard within two epochs. torch.distributed.DistError where rank 0 is gone.
        """
        if self._store is None:
            self.due = self._is_due()
            return mine
        self.due = False
        self._steps += 1
        if mine and not self._said:
            self._store.set("asked", str(mine))
            self._said = True
        agreed = 0
        if self._steps == self._end:
            agreed, self._end, due = json.loads(self._store.get(str(self._end)))
            self.due = bool(due)
        if self._main and self._steps == self._end - 1:
            asked = int(self._store.get("asked")) if self._store.check(["asked"]) else 0
            words = [asked, self._end + self._next_length(), int(self._is_due())]
            self._store.set(str(self._end), json.dumps(words))
            # Of the words before the last, every rank has made use: its gradients were in a step since.
            self._told.append(self._end)
            if len(self._told) > 2:
                self._store.delete_key(str(self._told.pop(0)))
        return agreed

    def _next_length(self) -> int:
        """Steps of the epoch after the next; grows slowly, shrinks at once."""
        now = monotonic()
        step = max((now - self._began) / self._length, 1e-6)
        self._began = now
        self._length = int(max(1, min(self._epoch / step, 2 * self._length, MOST)))
        return self._length

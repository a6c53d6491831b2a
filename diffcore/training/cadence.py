"""After which steps a run saves and validates.

Where checkpoints come by the clock, nothing that the weights depend on may: a validation may cut the
learning rate. Then ``validation.every``, in steps, says when to validate, and each of these has its
checkpoint, so that the best one is kept; without it every checkpoint has a validation, and ``Config`` takes
no rate that is cut on a plateau. Nor does it take ``guards.explosion`` there: a checkpoint by the clock may
lie between two log lines, and a resume from it logs the mean loss of the steps since then.
"""

from __future__ import annotations

from typing import NamedTuple

from diffcore.config.tree import Config


class Due(NamedTuple):
    """What is to be done after a step."""

    save: bool
    validate: bool


def due_after(config: Config, step: int, timed: bool, owed: bool = False) -> Due:
    """What is due after ``step`` steps.

    ``timed``: all ranks agreed that by the clock a checkpoint is; ``owed``: one that could not be made is.
    """
    every, last = config.validation.every, step == config.train.steps
    measured = bool(every and step % every == 0)
    if isinstance(config.train.checkpoint_every, int):
        save = step % config.train.checkpoint_every == 0 or last or owed
        return Due(save, save or measured)
    timed = timed or owed
    return Due(timed or measured or last, measured or last or (timed and not every))

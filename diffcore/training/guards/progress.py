"""What a run remembers of its own course beside the weights: cuts of the learning rate, what guards did.

It is the same on every rank, and goes into every checkpoint, so that a resumed run decides what the
uninterrupted one would have.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from diffcore.config.tree import Guards, LrSchedule
from diffcore.runs.tensors import Count

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
WINDOW = 20
"""Logged losses whose median is the recent loss."""
ENOUGH = 5
"""Logged losses that it takes to call one an explosion."""


@dataclass
class Progress:
    """The run's learning-rate cuts, skipped steps, rollbacks and best figures so far."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    lr_factor: Annotated[Finite, Field(gt=0)] = 1.0
    """Product of the cuts so far: on plateaus and after rollbacks."""
    updates: Count = 0
    """Steps that changed the weights."""
    skips: Count = 0
    """Steps that were left out because a gradient was not finite."""
    skips_in_row: Count = 0
    rollbacks: Count = 0
    best: Finite | None = None
    """Best value of ``train.best`` at a checkpoint."""
    plateau_loss: Finite | None = None
    """Lowest validation loss."""
    plateau_bad: Count = 0
    """Validations since."""
    losses: Annotated[list[Finite], Field(max_length=WINDOW)] = field(default_factory=list)
    """Recent logged losses."""

    def stepped(self, applied: bool) -> None:
        """Count a step."""
        self.updates += applied
        self.skips += not applied
        self.skips_in_row = 0 if applied else self.skips_in_row + 1

    def is_best(self, value: float, larger: bool) -> bool:
        """Take in a checkpoint's metric; whether it is the best so far."""
        if not math.isfinite(value):  # compares with nothing: it would stay the best for ever
            return False
        if self.best is not None and (value <= self.best if larger else value >= self.best):
            return False
        self.best = value
        return True

    def validated(self, loss: float, c: LrSchedule) -> bool:
        """Take in a validation loss; whether it ended the patience and the learning rate was cut."""
        if math.isfinite(loss) and (self.plateau_loss is None or loss < self.plateau_loss):
            self.plateau_loss, self.plateau_bad = loss, 0
            return False
        self.plateau_bad += 1
        if not c.plateau_patience or self.plateau_bad < c.plateau_patience:
            return False
        self.lr_factor *= c.plateau_factor
        self.plateau_bad = 0
        return True

    def exploded(self, loss: float, c: Guards) -> bool:
        """Take in a logged loss; whether it is an explosion (and then it is not taken in)."""
        if c.explosion is not None and len(self.losses) >= ENOUGH:
            usual = statistics.median(self.losses)
            if not math.isfinite(loss) or loss > c.explosion * usual:
                return True
        if math.isfinite(loss):
            self.losses = [*self.losses, loss][-WINDOW:]
        return False

    def rolled_back(self, before: Progress, c: Guards) -> None:
        """Become what ``before`` (the checkpoint's) was, with the rate cut once more."""
        rollbacks = self.rollbacks + 1
        self.__dict__.update(asdict(before))
        self.rollbacks = rollbacks
        self.lr_factor *= c.rollback_factor ** (rollbacks - before.rollbacks)  # it may have had some cuts

    def as_json(self) -> dict[str, Any]:
        """The fields by name, as a checkpoint's ``progress``."""
        return asdict(self)

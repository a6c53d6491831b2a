"""What training asks of a judge of drawn images, of whom it knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from diffcore.config.tree import Config
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World
from shards.table import Index


class Probe(Protocol):
    """What judges drawn images."""

    notes: Sequence[str]
    """Lines for the log, when training begins."""

    def __call__(self, engine: Engine, ema: Ema) -> dict[str, float]:
        """Figures by TensorBoard tag, the same on every rank. A collective."""


Judging = Callable[[Config, Index, World], Probe | None]


def no_judge(config: Config, index: Index, world: World) -> None:
    """The ``Judging`` of a training whose images nobody judges: no probe."""

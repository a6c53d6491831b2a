"""How fast each rank is by itself: its own work of a step, without the waits for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diffcore.engine.exchange import Exchange
from diffcore.engine.ranks import World

OTHERS = "communication"
"""The part of a step that is a wait for other ranks: of a fast rank the longest."""


class Taken(NamedTuple):
    """Seconds of ``steps`` steps: of this rank's own work, and of these the waits for data."""

    steps: int
    own: float
    data: float


class Pace:
    """Seconds of this rank since ``taken`` was last called. No collective, and no word but in ``told``."""

    def __init__(self, world: World) -> None:
        self._words, self._size = Exchange("pace", world), world.size
        self._own = self._data = 0.0
        self._steps = 0

    def add(self, seconds: Mapping[str, float], steps: int) -> None:
        """``steps`` steps took these seconds, by part (``StepClock.read``)."""
        self._own += sum(took for part, took in seconds.items() if part != OTHERS)
        self._data += seconds.get("data", 0.0)
        self._steps += steps

    def taken(self) -> Taken:
        """What was added since the last call, for ``told``."""
        taken = Taken(self._steps, self._own, self._data)
        self._own, self._data, self._steps = 0.0, 0.0, 0
        return taken

    def told(self, taken: Taken) -> dict[str, Any] | None:
        """What the ledger keeps, on rank 0: seconds of a step by rank, ``own`` and of these ``data``.

        None elsewhere, and where there was no step or there are no others. Every rank calls it, rank 0 waits
        and then asks for a word of each: of many ranks that is for a thread beside the training.
        """
        steps, *mine = taken
        if not steps or self._size == 1:
            return None
        found = self._words.to_main([round(took / steps, 6) for took in mine], range(self._size))
        if not found:
            return None
        own, data = zip(*(found[rank] for rank in range(self._size)), strict=True)
        return {"steps": steps, "own": list(own), "data": list(data)}

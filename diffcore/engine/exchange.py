"""Words between ranks, beside the training: through the store in which they met, and no group of all ranks.

A group of gloo's has a connection between every two ranks. What is said here is short and seldom, so it goes
by way of rank 0's store, to which every rank has a connection already. Waiting is asking again: a wait in the
store itself would hold up whatever else this rank wants of it, from another thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from typing import Any

from torch.distributed import DistStoreError, PrefixStore, Store

from diffcore.engine.ranks import World

FIRST = 0.002
"""Seconds until a rank asks again, the first time; each time half as long again, up to a bound."""


def part_of(world: World, name: str) -> Store | None:
    """A part of the store for words of one kind; None for one rank alone.

    Each time it is made it is another one: the ranks make them in the same order.
    """
    if world.size == 1:
        return None
    if world.store is None:
        raise ValueError(f"a world of {world.size} ranks without a store")
    return PrefixStore(f"{name}/{world.store.add(f'{name}/{world.rank}', 1)}", world.store)


class Exchange:
    """Rounds of words of one kind. The ranks agree on their order.

    torch.distributed.DistError where rank 0 is gone, or a rank does not speak within ``seconds``.
    """

    def __init__(self, name: str, world: World, seconds: float = 1800.0) -> None:
        self._world, self._seconds = world, seconds
        self._store = part_of(world, name)
        self._round = 0
        # Of many ranks that ask, each asks less often.
        self._slowest = min(2.0, 0.1 + world.size / 4000)

    def to_main(self, value: Any, ranks: Collection[int]) -> dict[int, Any]:
        """``value``, which JSON can hold, of each of ``ranks``, on rank 0. Elsewhere nothing, at once."""
        self._round += 1
        mine, main = self._world.rank, self._world.main
        others = {rank: f"{self._round}/{rank}" for rank in ranks if rank != 0}
        if self._store is None:
            return {0: value} if 0 in ranks else {}
        if not main:
            if mine in others:
                self._store.set(others[mine], json.dumps(value))
            return {}
        self._await(list(others.values()))
        found = {rank: json.loads(self._store.get(key)) for rank, key in others.items()}
        for key in others.values():
            self._store.delete_key(key)
        return ({0: value} if 0 in ranks else {}) | found

    def from_main(self, value: Any = None) -> Any:
        """Rank 0's ``value``, which JSON can hold, on every rank."""
        self._round += 1
        if self._store is None:
            return value
        key = str(self._round)
        if self._world.main:
            # It stays: nobody knows when the last rank has read it.
            self._store.set(key, json.dumps(value))
            return value
        self._await([key])
        return json.loads(self._store.get(key))

    def _await(self, keys: list[str]) -> None:
        assert self._store is not None
        until, pause = time.monotonic() + self._seconds, FIRST
        while keys and not self._store.check(keys):
            if time.monotonic() > until:
                raise DistStoreError(f"another rank has said nothing for {self._seconds:.0f} s")
            time.sleep(pause)
            pause = min(1.5 * pause, self._slowest)

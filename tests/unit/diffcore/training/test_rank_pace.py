"""What each rank tells of its own work."""

from __future__ import annotations

from typing import Any

from diffcore.engine.ranks import World
from diffcore.training.meters.pace import Pace
from tests.support.ranks import on_threads


def test_rank_0_hears_each_ranks_own_seconds_of_a_step() -> None:
    def work(world: World) -> list[Any]:
        pace, told = Pace(world), []
        for _ in range(2):
            pace.add({"data": 1.0, "forward": 2.0 + world.rank, "communication": 50.0}, 10)
            pace.add({"data": 1.0, "backward": 4.0}, 10)
            taken = pace.taken()
            pace.add({"data": 7.0, "forward": 7.0}, 7)  # the loop goes on while the saver's thread tells
            told.append(pace.told(taken))
            pace.taken()
        return [*told, pace.told(pace.taken())]  # no step since

    wanted = {"steps": 20, "own": [0.4, 0.45, 0.5], "data": [0.1, 0.1, 0.1]}
    assert on_threads(3, work) == [[wanted, wanted, None], [None] * 3, [None] * 3]
    assert on_threads(1, work) == [[None] * 3]

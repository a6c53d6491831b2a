"""Words of ranks by way of the store: threads in the ranks' places, in every order."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import DistStoreError, HashStore

from diffcore.engine.exchange import Exchange
from diffcore.engine.ranks import World
from tests.support.ranks import CPU, on_threads


@settings(deadline=None, max_examples=30)
@given(data=st.data(), size=st.integers(1, 6))
def test_rank_0_hears_those_that_speak_and_all_hear_rank_0(data: st.DataObject, size: int) -> None:
    rounds = data.draw(st.lists(st.sets(st.integers(0, size - 1)), max_size=4))
    late = data.draw(st.integers(0, size - 1))

    def work(world: World) -> list[Any]:
        words, heard = Exchange("test", world), []
        for number, speakers in enumerate(rounds):
            if world.rank == late:
                time.sleep(0.002)
            heard.append(words.to_main([number, world.rank], speakers))
            heard.append(words.from_main({"said": number} if world.main else "nobody hears this"))
        return heard

    def expected(rank: int) -> list[Any]:
        return [
            said
            for number, speakers in enumerate(rounds)
            for said in ({s: [number, s] for s in speakers} if rank == 0 else {}, {"said": number})
        ]

    assert on_threads(size, work) == [expected(rank) for rank in range(size)]


@pytest.mark.parametrize("names", [("one", "other"), ("one", "one")])
def test_two_exchanges_of_one_store_do_not_mix(names: tuple[str, str]) -> None:
    def work(world: World) -> list[Any]:
        one, other = (Exchange(name, world) for name in names)
        if world.main:
            return [one.from_main(1), other.from_main(2)]
        return [other.from_main(), one.from_main()][::-1]

    assert on_threads(2, work) == [[1, 2], [1, 2]]


def test_a_rank_that_says_nothing_is_waited_for_in_bounded_time() -> None:
    words = Exchange("test", World(0, 2, 0, CPU, HashStore()), seconds=0.05)
    with pytest.raises(DistStoreError, match="another rank has said nothing"):
        words.to_main(None, [0, 1])


def test_several_ranks_have_a_store() -> None:
    with pytest.raises(ValueError, match="without a store"):
        Exchange("test", World(0, 2, 0, CPU))

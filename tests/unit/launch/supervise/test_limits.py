"""Waits and rounds of any number of nodes."""

from __future__ import annotations

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from launch.supervise import limits
from launch.supervise.probe.ring import rounds


@given(st.integers(1, 100_000))
def test_a_leader_that_may_wait_is_not_taken_for_lost(nodes: int) -> None:
    found = limits.of(nodes)
    assert found.leader_lost > limits.OLD_LIFE + found.muster + found.probe
    assert found.node_lost > found.reconnect
    assert found.leader_lost > limits.SAVE_GRACE + limits.END_GRACE + found.stragglers


@given(st.lists(st.integers(1, 100_000), min_size=2, max_size=9, unique=True).map(sorted))
def test_no_wait_becomes_shorter_with_more_nodes(sizes: list[int]) -> None:
    for few, many in pairwise([limits.of(nodes) for nodes in sizes]):
        for name in ("muster", "probe", "stragglers", "reconnect", "node_lost", "leader_lost"):
            assert getattr(few, name) < getattr(many, name)


@given(st.integers(3, 3000))
def test_every_pair_of_a_ring_comes_once_in_rounds_that_do_not_grow(nodes: int) -> None:
    found = rounds(nodes)
    assert len(found) == 2 + nodes % 2
    assert sorted(chain.from_iterable(found)) == [(i, (i + 1) % nodes) for i in range(nodes)]
    for pairs in found:
        members = [node for pair in pairs for node in pair]
        assert len(set(members)) == len(members)

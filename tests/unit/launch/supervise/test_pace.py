"""Which ranks and nodes are named as slow, of what the ranks have told; against plain medians."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.supervise.decide.pace import LATELY, slow_nodes, slow_ranks

STARTED = {"event": "started", "attempt": 1, "world": 4, "nodes": ["n1", "n2"]}
SLOW = [1.0, 1.1, 1.0, 2.2]


def told(own: Any, attempt: int = 1) -> dict[str, Any]:
    return {"event": "pace", "attempt": attempt, "own": own}


@given(st.lists(st.lists(st.floats(0.1, 10), min_size=5, max_size=5), min_size=LATELY, max_size=6))
def test_slow_is_what_is_slower_than_the_median_of_the_others_each_time(reports: list[list[float]]) -> None:
    newest = reports[-LATELY:]
    lowest = [min(own[r] / median(own[:r] + own[r + 1 :]) for own in newest) for r in range(5)]
    wanted = {rank for rank, ratio in enumerate(lowest) if ratio >= 1.5}
    found = slow_ranks([STARTED, *map(told, reports)], 1.5)
    assert set(found) == (wanted if len(wanted) <= 2 else set())
    assert all(ratio == pytest.approx(lowest[rank], abs=0.01) for rank, ratio in found.items())


@pytest.mark.parametrize(
    ("events", "ranks"),
    [
        ([told(SLOW)] * LATELY, {3: 2.2}),
        ([told(SLOW)] * (LATELY - 1), {}),  # too few to say
        ([*[told(SLOW)] * LATELY, told([1.0] * 4)], {}),  # it is well again
        ([told(SLOW, 0)] * LATELY, {}),  # of an older attempt
        ([told([1.0, 3.0])] * LATELY, {1: 3.0}),
        ([told(own) for own in ([0.0, 1.0], "x", [1.0], [1.0, None], None)], {}),  # damaged
    ],
)
def test_only_what_is_slow_now_and_lasts(events: list[dict[str, Any]], ranks: dict[int, float]) -> None:
    assert slow_ranks([STARTED, *events], 1.5) == ranks


def test_a_slow_ranks_node_is_named() -> None:
    assert slow_nodes([STARTED, *[told(SLOW)] * LATELY], 1.5) == {"n2": 2.2}
    assert slow_nodes([STARTED, *[told(SLOW)] * LATELY], 2.5) == {}
    assert slow_nodes([STARTED | {"nodes": ["n1"]}, *[told(SLOW)] * LATELY], 1.5) == {}
    assert slow_nodes([], 1.5) == {}

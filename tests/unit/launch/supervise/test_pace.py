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


EVEN = [1.0, 1.0, 1.0, 1.0]


def told(own: Any, attempt: int = 1, steps: Any = None) -> dict[str, Any]:
    said = {} if steps is None else {"steps": steps}
    return {"event": "pace", "attempt": attempt, "own": own, **said}


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


@given(
    st.lists(st.tuples(st.sampled_from([SLOW, EVEN]), st.integers(50, 99)), min_size=LATELY, max_size=6),
    st.lists(st.tuples(st.sampled_from([SLOW, EVEN]), st.integers(1, 11)), max_size=2),
)
def test_short_reports_neither_clear_a_rank_nor_accuse_it(
    full: list[tuple[list[float], int]], short: list[tuple[list[float], int]]
) -> None:
    reports = [told(own, steps=steps) for own, steps in full]
    brief = [told(own, steps=steps) for own, steps in short]
    assert slow_ranks([STARTED, *reports, *brief], 1.5) == slow_ranks([STARTED, *reports], 1.5)


@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [
        # It turned slow: of a save every so many seconds a third of the steps is left.
        ((EVEN, 90), ([1.0, 1.0, 1.0, 3.0], 30), {3: 3.0}),
        # It is well again: as many steps take a third of the seconds.
        (([1.0, 1.0, 1.0, 3.0], 90), (EVEN, 90), {}),
        ((EVEN, 90), (SLOW, "many"), {3: 2.2}),  # damaged
    ],
)
def test_what_changed_a_ranks_pace_does_not_hide_it(
    before: tuple[list[float], int], after: tuple[list[float], Any], ranks: dict[int, float]
) -> None:
    reports = [told(before[0], steps=before[1])] * 9 + [told(after[0], steps=after[1])] * LATELY
    assert slow_ranks([STARTED, *reports], 1.5) == ranks


def test_a_slow_ranks_node_is_named() -> None:
    assert slow_nodes([STARTED, *[told(SLOW)] * LATELY], 1.5) == {"n2": 2.2}
    assert slow_nodes([STARTED, *[told(SLOW)] * LATELY], 2.5) == {}
    assert slow_nodes([STARTED | {"nodes": ["n1"]}, *[told(SLOW)] * LATELY], 1.5) == {}
    assert slow_nodes([], 1.5) == {}

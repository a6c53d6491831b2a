"""When a run is started again, and what the ends of its processes mean."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.exits import DONE, FATAL, PREEMPTED, RETRYABLE
from launch.supervise.decide import budget
from launch.supervise.decide.verdict import judge
from launch.supervise.meeting import Exit


def ended(code: int, progress: bool = False) -> dict[str, Any]:
    return {"event": "ended", "code": code, "progress": progress}


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 30))
def test_failures_end_it_at_the_budget_or_at_two_idle_ones(progress: list[bool], restarts: int) -> None:
    events = [ended(RETRYABLE, p) for p in progress]
    over = budget.spent(events, restarts) is not None
    idle = progress[-2:] == [False, False]
    assert over == (idle or len(progress) > restarts)


@given(st.lists(st.sampled_from([PREEMPTED]), max_size=100))
def test_preemption_is_never_counted(codes: list[int]) -> None:
    assert budget.spent([ended(code) for code in codes], 0) is None


def test_time_that_is_used_up_without_a_step_is_counted() -> None:
    over = ended(PREEMPTED) | {"timeout": True}
    assert budget.spent([over], 20) is None
    assert budget.spent([over, over], 20)
    assert budget.spent([over, ended(PREEMPTED, True) | {"timeout": True}, over], 20) is None
    assert budget.spent([ended(PREEMPTED, True) | {"timeout": True}] * 50, 0) is None


DAY, LIMIT = budget.DAY, 20


def blamed(node: str, rank: int | None = None, progress: bool = False) -> dict[str, Any]:
    return ended(RETRYABLE, progress) | {"node": node, "rank": rank}


@given(st.lists(st.floats(0.0, 30 * DAY), min_size=1, max_size=120), st.integers(0, 30))
def test_failures_with_progress_count_for_a_day(times: list[float], restarts: int) -> None:
    times.sort()
    lately = [t for t in times if t > times[-1] - DAY]
    over = budget.spent([ended(RETRYABLE, True) | {"time": t} for t in times], restarts)
    assert (over is not None) == (len(lately) > restarts)


def test_a_healthy_run_of_a_thousand_nodes_is_not_ended() -> None:
    """Four failures a day for a year."""
    events = [blamed(f"n{k % 997}", k % 8000, progress=True) | {"time": k * DAY / 4} for k in range(4 * 365)]
    assert budget.spent(events, LIMIT) is None


def test_other_nodes_to_blame_are_no_crash_loop_but_not_without_end() -> None:
    events = [blamed(f"n{k}", k) for k in range(budget.MOST_IDLE)]
    assert [budget.spent(events[:k], LIMIT) is None for k in range(len(events) + 1)] == [True] * 5 + [False]
    assert budget.spent([*events[:4], blamed("n8", 8, progress=True), *events[:4]], LIMIT) is None


@pytest.mark.parametrize(
    "second",
    [
        blamed("n1", 1),  # the same node
        blamed("n2", 1),  # the same rank, elsewhere
    ],
)
def test_the_same_node_or_rank_ends_it_the_second_time(second: dict[str, Any]) -> None:
    first = blamed("n1", 1)
    assert budget.spent([first], LIMIT) is None
    assert budget.spent([first, second], LIMIT)
    assert budget.spent([second, first], LIMIT)
    assert budget.spent([blamed("n3", 3), first, second], LIMIT)


def test_where_nobody_is_to_blame_the_place_says_whether_it_may_be_the_same() -> None:
    def at(step: int) -> dict[str, Any]:
        return blamed("") | {"step": step, "kept": 1000}

    assert budget.spent([at(1500), at(1500 - budget.NEAR)], LIMIT)
    assert budget.spent([at(3000), at(2800)], LIMIT)  # within a tenth of 2,000 steps
    assert budget.spent([at(1500), at(1100)], LIMIT) is None
    assert budget.spent([at(0), at(1500)], LIMIT) is None
    assert budget.spent([at(0), at(1500), at(1100), at(1900), at(1300)], LIMIT)  # but not without end
    over = [at(step) | {"code": PREEMPTED, "timeout": True} for step in (1500, 1100)]
    assert budget.spent(over, LIMIT)


def test_where_nobody_is_to_blame_it_may_be_the_same() -> None:
    nobody, hang = blamed(""), ended(PREEMPTED) | {"timeout": True}
    for one in (nobody, hang, ended(RETRYABLE)):
        assert budget.spent([one, nobody], LIMIT)
        assert budget.spent([one, blamed("n1", 1)], LIMIT) is None


def test_faults_of_nodes_that_were_left_out_leave_room_for_others() -> None:
    events: list[dict[str, Any]] = []
    for k in range(budget.MOST_IDLE - 1):
        events += [blamed(f"n{k}", k), blamed(f"n{k}", k), {"event": "left_out", "node": f"n{k}"}]
    assert budget.spent(events, LIMIT) is None
    assert budget.spent([*events, blamed("n8", 8)], LIMIT) is None
    assert budget.spent([*events, blamed("n8", 8), blamed("n9", 9)], LIMIT)


def test_a_node_that_was_left_out_cannot_do_it_again() -> None:
    events = [blamed("n1", 1), blamed("n1", 1), {"event": "left_out", "node": "n1"}]
    assert budget.spent(events, LIMIT) is None
    assert budget.spent([*events, blamed("n2", 7)], LIMIT) is None
    assert budget.spent([*events, blamed("n2", 1)], LIMIT)  # it was the rank
    back = [*events, blamed("n2", 7, progress=True), blamed("n1", 1)]
    assert budget.spent(back, LIMIT) is None
    assert budget.spent([*back, blamed("n1", 1)], LIMIT)  # weeks later it is back, and breaks again


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30), st.sets(st.integers(0, 9)))
def test_a_run_that_never_gets_further_ends_soon(faults: list[tuple[int, int]], out: set[int]) -> None:
    events = [{"event": "left_out", "node": f"n{k}"} for k in out]
    events += [blamed(f"n{node}", rank) for node, rank in faults]
    most = 2 * budget.MOST_IDLE if out else budget.MOST_IDLE
    assert (budget.spent(events, 10**6) is None) <= (len(faults) < most)


def test_submitting_again_begins_the_count_anew() -> None:
    events = [ended(RETRYABLE), ended(RETRYABLE)]
    assert budget.spent(events, 20)
    assert budget.spent([*events, {"event": "submitted"}], 20) is None
    assert budget.spent([*events, {"event": "submitted", "takeover": True}], 20)


def test_a_stop_between_two_idle_attempts_does_not_hide_them() -> None:
    assert budget.spent([ended(RETRYABLE), ended(PREEMPTED), ended(RETRYABLE)], 20)


def test_how_far_a_run_is(tmp_path: Path) -> None:
    assert budget.reached(tmp_path, 0) == budget.Reached(0, 0)
    for step, whole in [(5, True), (10, False)]:
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if whole:
            (folder / "COMPLETE").touch()
    ledger.record(tmp_path, "first_step", attempt=2, step=6)
    ledger.beat(tmp_path, 9, 100, "train")  # attempt 0's
    assert budget.reached(tmp_path, 2) == budget.Reached(6, 5)
    assert budget.reached(tmp_path, 0) == budget.Reached(9, 5)


@pytest.mark.parametrize(
    ("before", "step", "kept", "wanted"),
    [
        ([], 1, 0, True),
        ([], 0, 0, False),
        ([(9, 5)], 8, 5, False),
        ([(9, 5)], 8, 6, True),
        ([(9, 5)], 10, 5, True),
    ],
)
def test_progress(before: list[tuple[int, int]], step: int, kept: int, wanted: bool) -> None:
    events = [{"event": "ended", "step": s, "kept": k} for s, k in before]
    assert budget.progressed(events, budget.Reached(step, kept)) is wanted


def exits(*ends: tuple[int, float] | tuple[int, float, bool]) -> dict[int, Exit]:
    return {
        rank: Exit(rank, end[0], end[1], f"n{rank}", end[2] if len(end) > 2 else False)  # type: ignore[misc]
        for rank, end in enumerate(ends)
    }


@pytest.mark.parametrize(
    ("ends", "asked", "wanted", "rank"),
    [
        ([(DONE, 1.0), (DONE, 2.0)], False, DONE, 0),
        ([(RETRYABLE, 2.0), (-9, 1.0)], False, RETRYABLE, 1),  # the killed one came first
        ([(FATAL, 1.0), (RETRYABLE, 2.0)], False, FATAL, 0),
        ([(RETRYABLE, 1.0), (FATAL, 2.0)], False, RETRYABLE, 0),  # a peer's traceback after a loss
        ([(-9, 1.0, True), (2, 3.0)], False, 2, 1),  # ours is no cause
        ([(PREEMPTED, 1.0), (PREEMPTED, 2.0)], True, PREEMPTED, 0),
        ([(PREEMPTED, 1.0), (-signal.SIGUSR2, 2.0)], True, PREEMPTED, 0),  # before its handler was there
        ([(-signal.SIGTERM, 1.0), (RETRYABLE, 2.0)], False, RETRYABLE, 0),
        ([(DONE, 1.0), (-9, 130.0, True)], False, DONE, 0),
        ([(-9, 1.0, True), (-9, 1.0, True)], True, RETRYABLE, None),
        ([(DONE, 1.0)], False, DONE, 0),
    ],
)
def test_verdicts(ends: list[Any], asked: bool, wanted: int, rank: int | None) -> None:
    verdict = judge(exits(*ends), 2, asked)
    assert (verdict.code, verdict.rank) == (wanted, rank)


def test_a_supervisor_without_a_word_is_named() -> None:
    verdict = judge({0: Exit(0, -9, 1.0, "n0", True)}, 3, False)
    assert verdict.code == RETRYABLE
    assert "rank 1, 2" in verdict.why

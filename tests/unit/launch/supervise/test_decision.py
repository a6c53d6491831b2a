"""What follows an attempt: another in place, another life, the end, and which nodes are left out."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.exits import BAD_INPUT, DONE, FATAL, PREEMPTED, RETRYABLE
from launch.scheduler import client
from launch.supervise.decide import decision
from launch.supervise.decide.decision import REFUSALS, WINDOW, after_attempt, came_back, suspect
from launch.supervise.decide.verdict import ALONE, Verdict, judge
from launch.supervise.meeting import Exit


def ended(node: str, time: float = 0.0, progress: bool = True) -> dict[str, Any]:
    return {"event": "ended", "code": RETRYABLE, "progress": progress, "node": node, "time": time}


def decide(code: int, events: list[dict[str, Any]], **given: Any) -> decision.Decision:
    asked: dict[str, Any] = {
        "restarts": 20, "nodes": 4, "asked": False, "whole": True, "idle": lambda: {"spare"},
        "others": set,
    }  # fmt: skip
    return after_attempt(Verdict(code, "why"), events, **asked | given)


@pytest.mark.parametrize("code", [DONE, FATAL, BAD_INPUT])
def test_what_would_fail_again_ends_the_job_with_its_code(code: int) -> None:
    assert decide(code, [ended("n1")] * 9) == decision.Decision(False, code, "why", {})


def test_again_in_place_only_where_all_are_there_and_nobody_asked_to_stop() -> None:
    assert decide(RETRYABLE, [ended("")]).again
    for other in ({"whole": False}, {"asked": True}):
        assert not decide(RETRYABLE, [ended("")], **other).again
    assert not decide(PREEMPTED, [ended("")]).again


def test_a_node_that_fails_twice_first_is_left_out_where_another_is_idle() -> None:
    twice = [ended("n1"), ended("n2"), ended("n1")]
    assert decide(RETRYABLE, twice).avoid.keys() == {"n1"}
    assert decide(RETRYABLE, twice).code == RETRYABLE
    assert not decide(RETRYABLE, twice).again
    idle: list[Collection[str]] = [set(), {"n1"}]
    for none in idle:
        assert decide(RETRYABLE, twice, idle=lambda none=none: none).again


def test_a_job_waits_for_another_node_only_where_it_would_end_otherwise() -> None:
    none: dict[str, Any] = {"idle": set, "others": lambda: {"busy"}}
    with_progress = [ended("n1"), ended("n1")]
    assert decide(RETRYABLE, with_progress, **none).again
    without = [ended("n1", progress=False), ended("n1", progress=False)]
    assert decide(RETRYABLE, without, **none).avoid.keys() == {"n1"}
    assert decide(RETRYABLE, without, idle=set).code == FATAL
    assert decide(RETRYABLE, without, idle=set, others=lambda: {"n1"}).code == FATAL


def test_a_node_is_left_out_for_what_it_did_lately_and_since_the_submission() -> None:
    assert suspect([ended("n1", 0.0), ended("n1", WINDOW)], 4) is None
    assert suspect([ended("n1", 1.0), ended("n1", WINDOW)], 4) == "n1"
    submitted = {"event": "submitted"}
    assert suspect([ended("n1"), submitted, ended("n1")], 4) is None
    assert suspect([ended("n1"), submitted | {"takeover": True}, ended("n1")], 4) == "n1"
    assert suspect([ended("n1"), ended("n1"), ended("")], 4) is None  # this time it was not that node


@given(st.lists(st.sampled_from([f"n{k}" for k in range(60)]), max_size=400), st.integers(1, 60))
def test_never_more_than_three_or_a_twentieth_are_left_out(failing: list[str], nodes: int) -> None:
    events: list[dict[str, Any]] = []
    for node in failing:
        events.append(ended(node, 1.0))
        for out in decide(RETRYABLE, events, nodes=nodes, restarts=10**6).avoid:
            assert events.count(ended(out, 1.0)) >= decision.FAULTS
            events.append({"event": "left_out", "node": out, "time": 1.0})
    assert sum(e["event"] == "left_out" for e in events) <= max(3, nodes // 20)


@pytest.mark.parametrize(
    ("ends", "node"),
    [
        ([("a", 0.0, False), ("b", ALONE + 0.1, False)], "a"),
        ([("a", 0.0, False), ("b", ALONE - 0.1, False)], ""),  # all at once, as in a hang
        ([("a", 0.0, False), ("b", 0.1, True)], "a"),  # its supervisor ended it
        ([("a", 0.0, False), ("a", 0.1, False)], ""),  # one node: nothing to compare with
    ],
)
def test_a_node_is_blamed_only_where_it_failed_alone(ends: list[tuple[str, float, bool]], node: str) -> None:
    exits = {k: Exit(k, RETRYABLE, time, name, ours) for k, (name, time, ours) in enumerate(ends)}
    assert judge(exits, len(ends), False).node == node
    assert judge(exits, len(ends) + 1, False).node == ""  # a supervisor is missing: its node may be the cause
    assert judge(exits, len(ends) + 2, False, lambda rank: "c").node == "c"
    assert judge({}, 2, False, lambda rank: "ab"[rank]).node == ""  # more than one is silent


def test_in_a_hang_it_is_the_one_that_does_not_say_so() -> None:
    """SIGSTOP to rank 1: rank 0's watchdog ends it, and rank 1's supervisor ends rank 1."""
    exits = {0: Exit(0, RETRYABLE, 1.0, "a"), 1: Exit(1, -9, 2.0, "b", True), 2: Exit(2, RETRYABLE, 1.1, "c")}
    assert judge(exits, 3, False, waited={0, 2}).node == "b"
    assert judge(exits, 3, False, waited={0, 2}).rank == 1
    assert judge(exits | {2: Exit(2, -9, 2.0, "c", True)}, 3, False, waited={0}).node == ""  # or it was ended
    assert (
        judge(exits | {1: Exit(1, RETRYABLE, 1.2, "b")}, 3, False, waited={0, 1, 2}).node == ""
    )  # all waited
    two = {rank: exits[rank] for rank in (0, 1)}
    assert judge(two, 2, False).node == "a"  # nobody told of a hang: it failed
    assert judge(two, 2, False, waited={0}).node == "b"


def test_nodes_that_a_job_may_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "n1 idle\nn2 alloc\nn2 alloc\nn3 down*\nn4 drain\nn5 drng\nn6 mix\nn7 idle*\nn8 maint\nn9 fail\n"
    monkeypatch.setattr(client, "answer", lambda *asked: shown)
    assert client.up_nodes("p") == ["n1", "n2", "n6"]


def test_the_default_partitions_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "answer", lambda *asked: "n1 low*\nn1 high\nn2 low*\nn3 high\n")
    assert client.nodes_of(None) == ["n1", "n2"]


LEFT_OUT = {"event": "left_out", "node": "n2", "why": "disk", "time": 5.0}
REFUSED = {"event": "refused"}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([LEFT_OUT], {"n2": "disk"}),
        ([LEFT_OUT | {"node": "n9"}], {}),  # not this job's
        ([LEFT_OUT | {"time": 1.0}], {}),  # long ago
        ([LEFT_OUT, {"event": "submitted"}], {}),  # somebody mended something
        ([LEFT_OUT, {"event": "submitted", "takeover": True}], {"n2": "disk"}),
        ([LEFT_OUT, *[REFUSED] * (REFUSALS - 1)], {"n2": "disk"}),
        ([LEFT_OUT, *[REFUSED] * REFUSALS], {}),  # it is tried after all
        ([LEFT_OUT, *[REFUSED] * REFUSALS, ended("n2"), LEFT_OUT], {"n2": "disk"}),
        ([LEFT_OUT, ended("n1")], {"n2": "disk"}),
        ([LEFT_OUT, ended("n2")], {}),  # it was tried again
    ],
)
def test_a_node_that_was_left_out_is_refused(events: list[dict[str, Any]], found: dict[str, str]) -> None:
    assert came_back(events, ["n1", "n2"], 2.0) == found


def test_what_a_preflight_left_out_leaves_room_for_what_fails_later() -> None:
    by_preflight = [LEFT_OUT | {"preflight": True, "time": 1.0, "node": f"n{k}"} for k in range(9)]
    assert suspect([*by_preflight, ended("n1"), ended("n1")], 4) == "n1"
    assert suspect([LEFT_OUT] * 9 + [ended("n1"), ended("n1")], 4) is None

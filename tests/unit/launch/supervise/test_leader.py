"""Rank 0's decisions at the begin of a job's life: bad nodes, missing ranks, other jobs."""

from __future__ import annotations

import fcntl
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbase import ledger
from diffbase.exits import BAD_INPUT, FATAL, PREEMPTED, RETRYABLE
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job import registry
from launch.scheduler import client
from launch.supervise import leader as module
from launch.supervise import takeover
from launch.supervise.environment import Layout
from launch.supervise.leader import Leader
from launch.supervise.limits import Limits
from launch.supervise.meeting import Exit, Meeting, Plan
from launch.supervise.requeue import Answer

Lines = list[str]


@pytest.fixture
def lead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Leader:
    """A leader of two nodes with a rank each, whose life only notes what it is told to say."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(module, "OLD_LIFE", 0.0)
    monkeypatch.setattr(client, "state_of", lambda job: None)  # Slurm does not know other jobs
    live = tmp_path / "run" / "job" / "001" / "live"
    meeting = Meeting(live, "7.0.0")
    meeting.open()
    spec = JobSpec.model_validate(
        {"cluster": Cluster(name="fake"), "job": "j", "nodes": 2, "nodes_min": 2, "tasks_per_node": 1,
         "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60}
    )  # fmt: skip
    life: Any = SimpleNamespace(
        place=None,
        where=Layout("7", "7.0.0", 0, 0, 2, 0, 1, 0, ("n1", "n2")), meeting=meeting,
        run_folder=tmp_path / "run",
        spec=spec, asked=0, said=[], tick=lambda: None, used_up=False,
        limits=Limits(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    life.say = life.said.append
    return Leader(life)


def hello(lead: Leader, *problems: Lines) -> None:
    for rank, found in enumerate(problems):
        lead.meeting.say_hello(rank, f"n{rank + 1}", found)


def test_all_well(lead: Leader) -> None:
    hello(lead, [], [])
    assert lead.muster() is None


def test_one_bad_node_is_named_avoided_and_remembered(lead: Leader) -> None:
    hello(lead, [], ["GPU 3: 2 uncorrected memory errors"])
    plan = lead.muster()
    assert plan is not None
    assert (plan.leave, plan.code, plan.avoid) == (True, RETRYABLE, ["n2"])
    assert "n2: GPU 3" in plan.why
    assert registry.excluded("fake") == {"n2": "GPU 3: 2 uncorrected memory errors"}


def test_what_is_wrong_everywhere_is_no_nodes_fault(lead: Leader) -> None:
    hello(lead, ["run folder /r: No space left on device"], ["run folder /r: No space left on device"])
    plan = lead.muster()
    assert plan is not None
    assert (plan.code, registry.excluded("fake")) == (BAD_INPUT, {})


@pytest.mark.parametrize(
    ("first", "code", "avoid"),
    [
        ([], RETRYABLE, ["n2"]),  # that node reads other data
        (["data.path: /d holds other shards"], BAD_INPUT, []),
        (["data: not read within 60 s"], BAD_INPUT, []),
    ],
)
def test_data_that_only_some_nodes_see_are_those_nodes_fault(
    first: Lines, code: int, avoid: Lines, lead: Leader
) -> None:
    hello(lead, first, ["data.path: /d holds other shards"])
    plan = lead.muster()
    assert plan is not None
    assert (plan.code, list(plan.avoid)) == (code, avoid)


def test_a_disk_that_hangs_everywhere_is_tried_again(lead: Leader) -> None:
    hello(lead, ["data: not read within 60 s"], ["data: not read within 60 s"])
    plan = lead.muster()
    assert plan is not None
    assert (plan.code, plan.avoid, registry.excluded("fake")) == (RETRYABLE, [], {})


def test_a_second_life_without_a_begin_is_the_last(lead: Leader) -> None:
    hello(lead, [])
    first, second = lead.muster(), lead.muster()
    assert first is not None
    assert second is not None
    assert "no supervisor on n2" in first.why
    assert (first.code, second.code) == (RETRYABLE, FATAL)


def test_a_signal_before_the_begin(lead: Leader) -> None:
    lead.life.asked = 15
    plan = lead.muster()
    assert plan is not None
    assert plan.code == PREEMPTED


def test_a_lost_attempt_is_closed_first(lead: Leader) -> None:
    ledger.record(lead.run, "started", attempt=4, job="6", restart=0)
    ledger.beat(lead.run, 9, 100, "train")
    hello(lead, [], [])
    assert lead.muster() is None
    assert lead.attempt == 5
    (ended,) = [event for event in ledger.events(lead.run) if event["event"] == "ended"]
    assert (ended["attempt"], ended["code"]) == (4, RETRYABLE)


def test_a_running_job_is_not_pushed_out(lead: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    running = client.State("RUNNING", 0, "n3", "low")
    monkeypatch.setattr(client, "state_of", lambda job: running)
    lead.meeting.claim("5")
    with (lead.run / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        plan = lead.muster()
    assert plan is not None
    assert (plan.code, lead.meeting.claimed_by()) == (BAD_INPUT, "5")
    assert "job 5 is training" in plan.why


def test_a_job_that_is_gone_is_replaced(lead: Leader) -> None:
    lead.meeting.claim("5")
    hello(lead, [], [])
    assert lead.muster() is None
    assert lead.meeting.claimed_by() == "7"


def test_trouble_of_the_leader_reaches_all(lead: Leader) -> None:
    def fails() -> None:
        raise OSError("network.interface ib9: No such device on n1")

    lead.lead(fails, 0)
    plan = lead.meeting.plan(0)
    assert plan is not None
    assert (plan.leave, plan.code) == (True, BAD_INPUT)
    assert "ib9" in plan.why


def test_what_was_left_out_before_stays_out(lead: Leader) -> None:
    lead.spec = lead.spec.model_copy(update={"exclude": ("n8",)})
    registry.exclude("fake", {"n9": "GPU 0 is gone"}, 1.0)
    hello(lead, [], ["scratch /s: 0.0 GB free, 1 wanted"])
    plan = lead.muster()
    assert plan is not None
    assert plan.avoid == ["n2", "n8", "n9"]


def test_a_lost_attempts_node_is_to_blame_where_slurm_has_it_as_down(
    lead: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "lost_among", lambda nodes: [nodes[-1]])
    ledger.record(lead.run, "started", attempt=0, job="6", restart=0, nodes=["n6", "n7"])
    hello(lead, [], [])
    assert lead.muster() is None
    (ended,) = [event for event in ledger.events(lead.run) if event["event"] == "ended"]
    assert ended["node"] == "n7" and "n7 is down" in ended["why"]


@pytest.mark.parametrize("idle", [["n3"], []])
def test_a_node_that_ends_two_attempts_is_left_out_of_the_next_life(
    idle: list[str], lead: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "state_of", lambda job: client.State("RUNNING", 0, "n[1-2]", "p"))
    monkeypatch.setattr(client, "idle_nodes", lambda partition: idle)
    monkeypatch.setattr(client, "up_nodes", lambda partition: ["n1", "n2", *idle])
    hello(lead, [], [])
    assert lead.muster() is None
    plans: list[Plan | None] = []
    for number in range(2):
        plan = Plan(lead.attempt, address="n1", port=1)
        ledger.record(lead.run, "first_step", attempt=plan.attempt, step=10 * (number + 1))
        lead.meeting.report(number, Exit(1, 75, 100.0, "n2"))
        lead.meeting.report(number, Exit(0, -9, 100.1, "n1", ours=True))
        plans.append(lead.decide(plan))
    first, second = plans
    assert first is None
    if not idle:
        assert second is None  # both got further: on it goes in the same allocation
        return
    assert second is not None
    assert (second.leave, second.code, second.avoid) == (True, RETRYABLE, ["n2"])
    assert registry.excluded("fake").keys() == {"n2"}
    assert [e["node"] for e in ledger.events(lead.run) if e["event"] == "left_out"] == ["n2"]


def test_a_node_without_a_supervisor_is_left_out_where_another_is_idle(
    lead: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "state_of", lambda job: client.State("RUNNING", 0, "n[1-2]", "p"))
    monkeypatch.setattr(client, "idle_nodes", lambda partition: ["n3"])
    hello(lead, [])
    plan = lead.muster()
    assert plan is not None
    assert (plan.leave, plan.code, plan.avoid) == (True, RETRYABLE, ["n2"])


def test_a_rank_that_told_of_a_hang_is_not_to_blame_for_it(lead: Leader) -> None:
    hello(lead, [], [])
    assert lead.muster() is None
    ledger.record(lead.run, "hang", rank=0, step=7, section="train")
    lead.meeting.report(0, Exit(0, RETRYABLE, 100.0, "n1"))
    lead.meeting.report(0, Exit(1, -9, 102.0, "n2", ours=True))
    lead.decide(Plan(0, address="n1", port=1))
    (ended,) = [event for event in ledger.events(lead.run) if event["event"] == "ended"]
    assert (ended["node"], ended["rank"]) == ("n2", 1)


@pytest.mark.parametrize("idle", [["n3"], ["n9"], []])
def test_an_attempts_end_is_the_moment_to_grow_for_a_job_with_fewer_nodes(
    idle: list[str], lead: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "state_of", lambda job: client.State("RUNNING", 0, "n[1-2]", "p"))
    monkeypatch.setattr(client, "idle_nodes", lambda partition: idle)
    monkeypatch.setattr(takeover, "_fitting", lambda place, spec, available: min(available, 3))
    registry.exclude("fake", {"n9": "GPU 0 is gone"}, 1.0)
    lead.spec = lead.spec.model_copy(update={"nodes_wanted": 3})
    hello(lead, [], [])
    assert lead.muster() is None
    lead.meeting.report(0, Exit(0, RETRYABLE, 100.0, "n1"))
    lead.meeting.report(0, Exit(1, -9, 102.0, "n2", ours=True))
    plan = lead.decide(Plan(0, address="n1", port=1))
    if idle != ["n3"]:
        assert plan is None  # on it goes in the same allocation
        return
    assert plan is not None and (plan.leave, plan.code) == (True, RETRYABLE)
    assert plan.why.endswith("; nodes are free that this job lacks")
    lead.leave(plan, lambda avoid, lost: "another goes on")
    assert "another goes on" in lead.life.said  # type: ignore[attr-defined]


def test_a_node_that_slurm_gives_again_is_refused_at_once_and_counts_for_nothing(lead: Leader) -> None:
    hello(lead, [], ["scratch /s: 0.0 GB free, 1 wanted"])
    plans = [lead.muster() for _ in range(5)]
    assert [(plan.code, plan.avoid) for plan in plans[:4] if plan] == [(RETRYABLE, ["n2"])] * 4
    assert ["again" in plan.why for plan in plans[:4] if plan] == [False, True, True, True]
    # The fourth time it is tried all the same: its preflight failed twice in a row.
    assert plans[4] is not None and plans[4].code == FATAL
    kinds = [event["event"] for event in ledger.events(lead.run)]
    assert kinds == ["ended", "left_out", *["refused"] * 3, "ended"]


def test_another_job_is_asked_for_before_the_requeue(lead: Leader, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(
        module.requeue, "requeue", lambda where, avoid: Answer(f"requeued without {[*avoid]}", True)
    )
    plan = Plan(0, leave=True, code=RETRYABLE, why="w", avoid=["n2"])

    def elsewhere(avoid: Collection[str], lost: Collection[str]) -> str | None:
        asked.append(list(avoid))
        return "a smaller job" if len(asked) == 1 else None

    lead.leave(plan, elsewhere)
    lead.leave(plan, elsewhere)
    lead.leave(Plan(0, leave=True, code=PREEMPTED, why="w"), elsewhere)
    assert asked == [["n2"], ["n2"], []]
    said = [line for line in lead.life.said if line != "w"]  # type: ignore[attr-defined]
    assert said == ["a smaller job", "requeued without ['n2']", "requeued without []"]


@pytest.mark.parametrize(
    ("leave_out", "asked", "idle", "avoid"),
    [
        (True, 10, {"n3"}, ["n2"]),
        (False, 10, {"n3"}, []),
        (True, 15, {"n3"}, []),  # SIGTERM: Slurm has queued it again already
        (True, 10, set(), []),  # no other node is to be had
    ],
)
def test_a_slow_node_is_left_out_where_the_profile_says_so(
    leave_out: bool, asked: int, idle: set[str], avoid: Lines, lead: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = lead.spec.cluster.model_copy(update={"leave_out_slow": leave_out})
    lead.spec = lead.spec.model_copy(update={"cluster": cluster})
    monkeypatch.setattr(client, "state_of", lambda job: client.State("RUNNING", 0, "n[1-2]", "p"))
    monkeypatch.setattr(client, "idle_nodes", lambda partition: list(idle))
    hello(lead, [], [])
    assert lead.muster() is None
    ledger.record(lead.run, "started", attempt=0, world=2, nodes=["n1", "n2"])
    for _ in range(3):
        ledger.record(lead.run, "pace", attempt=0, own=[1.0, 2.0], steps=100)
    ledger.record(lead.run, "pace", attempt=0, own=[1.0, 1.0], steps=2)  # the last save's
    lead.life.asked = asked
    for rank in (0, 1):
        lead.meeting.report(0, Exit(rank, PREEMPTED, 100.0, f"n{rank + 1}"))
    plan = lead.decide(Plan(0, address="n1", port=1))
    assert plan is not None
    assert (plan.code, list(plan.avoid)) == (PREEMPTED, avoid)
    assert [e["node"] for e in ledger.events(lead.run) if e["event"] == "left_out"] == avoid

"""What attempts ended with, what went wrong and when, and where the time of failures went."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.formats import jsonl
from launch import jobs
from launch.follow import condition, ends, goodput
from launch.follow.faults import faults, others
from launch.follow.glance import glance, rate_of
from launch.follow.run import Run
from launch.scheduler.query import Job, Known

LIFE = {"job": "5", "restart": 0}


def event(at: float, name: str, attempt: int = 0, /, **fields: Any) -> dict[str, Any]:
    return {"time": at, "event": name, "attempt": attempt, **fields}


def write(folder: Path, events: list[dict[str, Any]], beat: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(jsonl.text(events))
    if beat:
        (folder / "heartbeat.json").write_text(json.dumps(beat))
    return folder


def trained(*after: dict[str, Any], attempt: int = 0) -> list[dict[str, Any]]:
    return [
        event(0, "submitted", job="5", name="x", cluster="box", folder="/x"),
        event(1, "started", attempt, **LIFE),
        event(2, "start", attempt, steps=100),
        event(3, "loaded", attempt, step=0),
        event(4, "first_step", attempt, step=1),
        *after,
    ]


KINDS = [
    ("done", [event(50, "done", step=9), event(51, "ended", code=0, why="done")]),
    ("stopped", [event(50, "ended", code=85, why="stopped by a signal, everything saved")]),
    ("time limit", [event(50, "ended", code=85, timeout=True, why="stopped by a signal")]),
    ("killed", [event(50, "ended", code=75, why="rank 1 on n2: killed by SIGKILL", beat=40)]),
    (
        "hang",
        [event(48, "hang", rank=0, section="train"), event(50, "ended", code=75, why="rank 0", beat=20)],
    ),
    ("lost", [event(50, "ended", code=75, why="killed with its node or by the scheduler", beat=40)]),
    (
        "node lost",
        [event(50, "ended", code=75, why="killed with its node or by the scheduler (n2 is down)", node="n2")],
    ),
    ("bad input", [event(50, "failed", code=2, why="shard"), event(51, "ended", code=2, why="given wrong")]),
    (
        "out of memory",
        [
            event(50, "failed", rank=0, code=1, why="out of memory with micro batch 4"),
            event(51, "ended", code=1),
        ],
    ),
    ("crash", [event(50, "ended", code=75, why="rank 0 on n1: exit code 75: lost a peer")]),
    ("failed", [event(50, "ended", code=1, why="rank 0 on n1: exit code 1")]),
    ("running", []),
]


@pytest.mark.parametrize(("kind", "after"), KINDS, ids=[kind for kind, _ in KINDS])
def test_an_end_has_its_name(kind: str, after: list[dict[str, Any]]) -> None:
    events = trained(*after)
    ((_, own),) = ends.split(events)
    assert ends.kind(own) == kind
    (attempt,) = goodput.account(events)
    assert attempt.outcome == kind
    found = faults(events)
    assert [fault.kind for fault in found] == ([kind] if kind in ends.FAULTS else [])
    # A second of a failure that is no hang is never booked as one.
    assert (attempt.seconds["hang"] > 0) == (kind == "hang")


def test_a_kill_is_no_hang() -> None:
    (attempt,) = goodput.account(trained(event(50, "ended", code=75, why="killed by SIGKILL", beat=40)))
    assert (attempt.seconds["failure"], attempt.seconds["hang"]) == (10, 0)


def test_the_time_with_a_dead_supervisor_is_no_queue() -> None:
    lost = event(201, "ended", code=75, why="killed with its node or by the scheduler", beat=40)
    again = event(200, "started", 1, job="5", restart=1)
    for queued, failure in ((None, 0.0), (190, 150.0), (10, 0.0), (999, 160.0)):
        more = {} if queued is None else {"queued": queued}
        _, second = goodput.account(trained(lost, again | more))
        assert (second.seconds["failure"], second.seconds["queue"]) == (failure, 160 - failure)


def by_hand(*pauses: float) -> list[dict[str, Any]]:
    """Attempts of 10 s that are killed, with such pauses between them; the last one gets to its end."""
    lines, now = [], 100.0
    for i, pause in enumerate([*pauses, 0.0]):
        lines += [event(now, "start", steps=100), event(now + 1, "loaded", step=10 * i)]
        lines += [event(now + 2, "first_step", step=10 * i + 1), event(now + 10, "saved", step=10 * i + 10)]
        now += 10 + pause
    return [*lines, event(now, "done", step=100)]


@given(st.lists(st.floats(1, 1e5), max_size=5))
def test_runs_by_hand_are_told_by_their_starts(pauses: list[float]) -> None:
    attempts = goodput.account(by_hand(*pauses))
    assert [a.number for a in attempts] == list(range(len(pauses) + 1))
    assert [a.outcome for a in attempts] == ["lost"] * len(pauses) + ["done"]
    assert sum(a.total for a in attempts) == pytest.approx(10.0 * len(attempts))  # a pause is nobody's time


def test_a_run_that_nobody_submitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", by_hand(30.0, 40.0))
    jobs.main(["status", "--json", str(run)])
    told = json.loads(capsys.readouterr().out)
    assert (told["job"], told["cluster"], told["condition"]) == (None, "by hand", "done")
    assert (told["attempts"], told["failed"], told["step"]) == (3, 2, 100)
    jobs.main(["goodput", str(run)])
    assert "goodput: " in capsys.readouterr().out
    jobs.main(["status", str(run)])
    assert "by hand: COMPLETED" in capsys.readouterr().out


def test_lives_that_ended_in_the_preflight_are_attempts(tmp_path: Path) -> None:
    ended = {"code": 75, "why": "preflight: n2: 0 GB free", "node": "n2", "job": "5"}
    events = [trained()[0], event(5, "ended", 0, **ended), event(9, "ended", 1, **ended)]
    at = glance(Run.read(write(tmp_path / "run", events)), Known())
    assert (at.attempts, at.failed) == (2, 2) and at.fault is not None
    assert (at.fault.kind, at.fault.node) == ("preflight", "n2")


def test_saves_are_not_among_what_happened() -> None:
    events = trained(
        event(10, "saving", step=10),
        event(11, "saved", step=10),
        event(12, "save_failed", step=20, why="full"),
        event(13, "failed", rank=1, code=75, why="lost [n1]"),
        event(14, "failed", rank=0, code=75, why="late"),
        event(15, "ended", code=75, why="rank 1", rank=1, step=22),
    )
    assert [(f.kind, f.why) for f in faults(events)] == [
        ("save_failed", "full"),
        ("crash", "rank 1; lost [n1]"),
    ]
    assert [e["event"] for _, e in others(events)] == [
        "submitted",
        "started",
        "start",
        "loaded",
        "first_step",
    ]


# --- a run at a glance ---


def test_a_job_that_slurm_does_not_know_is_not_pending(tmp_path: Path) -> None:
    run = Run.read(write(tmp_path / "run", trained()[:1]))
    silent, answered = Known(), Known()
    answered.answered = True
    assert glance(run, silent).state == "PENDING"
    at = glance(run, answered)
    assert (at.state, at.condition) == ("UNKNOWN", "unknown") and "not known to Slurm" in str(at.why)
    answered["5"] = Job("PENDING", why="Priority")
    assert glance(run, answered).condition == "waiting"


def test_the_newest_checkpoint_is_never_ahead_of_the_step(tmp_path: Path) -> None:
    beat = {"time": 10.0, "step": 38, "steps": 100, "attempt": 0, "section": "save"}
    run = write(tmp_path / "run", trained(), beat)
    assert Run.read(run).step == 38
    (run / "checkpoints" / "step-00000040").mkdir(parents=True)
    (run / "checkpoints" / "step-00000040" / "COMPLETE").touch()
    at = glance(Run.read(run), Known())
    assert (at.step, at.checkpoint, at.steps) == (40, 40, 100)


def test_after_a_rollback_the_step_is_the_one_gone_back_to(tmp_path: Path) -> None:
    beat = {"time": 10.0, "step": 38, "steps": 100, "attempt": 0, "section": "train"}
    assert Run.read(write(tmp_path / "a", trained(event(20, "rollback", step=30, lost=8)), beat)).step == 30
    assert Run.read(write(tmp_path / "b", trained(event(9, "rollback", step=30, lost=8)), beat)).step == 38


def test_rate_and_time_left(tmp_path: Path) -> None:
    now = time.time()
    events = [e | {"time": now - 100 + e["time"]} for e in trained()]
    beat = {"time": now, "step": 40, "steps": 100, "attempt": 0, "section": "train"}
    run = write(tmp_path / "run", events, beat)
    assert rate_of(run) is None
    rates = (1.0, 8.0, 8.0, 80.0)  # images a second of batches of 4
    lines = [
        {"step": i + 1, "train/samples": 4 * (i + 1), "train/images_per_second": r}
        for i, r in enumerate(rates)
    ]
    (run / "metrics.jsonl").write_text(jsonl.text([*lines, {"step": 5, "train/samples": None}]))
    at = glance(Run.read(run), Known())
    assert (at.condition, at.rate, at.left, at.spent) == ("running", 2.0, 30.0, None)
    costs = {"spent/images": 20, "spent/flops": 2e9, "spent/cpu_seconds": 3.5}
    (run / "metrics.jsonl").write_text(jsonl.text([*lines, {"step": 5} | costs, {"step": 6}]))
    at = glance(Run.read(run), Known())
    assert at.spent == {"images": 20, "flops": 2e9, "cpu_seconds": 3.5}


@given(st.lists(st.sampled_from(condition.WORST), min_size=1))
def test_exit_codes_of_several_runs(words: list[str]) -> None:
    worst = condition.worst(words)
    assert (condition.CODES[worst] == 0) == (set(words) == {"done"})
    assert ("failed" in words) == (worst == "failed")
    assert not {1, 2} & set(condition.CODES.values())


def test_status_leaves_with_the_states_code(tmp_path: Path) -> None:
    run = write(tmp_path / "run", by_hand())
    with pytest.raises(SystemExit) as left:
        jobs.main(["status", "--exit-code", str(run)])
    assert left.value.code == 0
    failed = write(tmp_path / "failed", trained(event(50, "ended", code=1, job="5")))
    with pytest.raises(SystemExit) as left:
        jobs.main(["status", "--exit-code", str(failed), str(run)])
    assert left.value.code == condition.CODES["failed"]


def test_a_life_that_was_queued_again_has_the_time_in_the_ledger(tmp_path: Path) -> None:
    ledger.Event.model_validate(event(1.0, "started", queued=1.5))

"""What became of runs: Slurm's answers, the run folder's own, and where the time went."""

from __future__ import annotations

import errno
import json
import math
import os
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.formats import jsonl
from launch import jobs
from launch.ask import profile
from launch.follow import goodput, show
from launch.follow.run import FRESH, Run
from launch.job import registry
from launch.scheduler import query
from launch.supervise.decide import pace


def event(at: float, name: str, attempt: int = 0, **fields: Any) -> dict[str, Any]:
    return {"time": at, "event": name, "attempt": attempt, **fields}


def a_crash_and_a_good_end() -> list[dict[str, Any]]:
    life = {"job": "5", "restart": 0}
    return [
        event(0, "submitted", job="5"),
        event(10, "started", **life),
        event(14, "start"),
        event(15, "loaded", step=0),
        event(16, "first_step", step=1),
        event(20, "saved", step=10, seconds=2),
        event(36, "ended", code=75, step=40, beat=32, why="rank 1: killed", **life),
        event(37, "started", 1, **life),
        event(40, "start", 1),
        event(41, "loaded", 1, step=10),
        event(42, "first_step", 1, step=11),
        event(60, "ended", 1, code=0, step=100, beat=60, why="done", **life),
    ]


def test_every_second_of_a_crash_is_accounted_for() -> None:
    first, second = goodput.account(a_crash_and_a_good_end())
    # 20 s after the first step: 4 without a sign of life, 2 saving; of the 14 left, 30 of 40 steps were lost.
    assert first.seconds == {
        "queue": 10, "start": 4, "load": 2, "train": 3.5, "save": 2, "replay": 10.5, "hang": 0, "failure": 4,
    }  # fmt: skip
    assert second.seconds == {
        "queue": 0, "start": 1 + 3, "load": 2, "train": 18, "save": 0, "replay": 0, "hang": 0,
        "failure": 0,
    }  # fmt: skip
    assert first.total + second.total == 60
    assert goodput.share([first, second], waiting=True) == pytest.approx(21.5 / 60)


def test_a_requeue_waits_in_the_queue_again() -> None:
    events = [
        event(0, "submitted", job="5"),
        event(1, "started", job="5", restart=0),
        event(2, "start"),
        event(3, "first_step", step=1),
        event(10, "ended", code=85, step=5, beat=10),
        event(30, "started", 1, job="5", restart=1),
    ]
    _, second = goodput.account(events)
    assert (second.seconds["queue"], second.outcome) == (20, "running")


def test_a_lost_attempt_ends_with_its_last_sign_of_life() -> None:
    why = "killed with its node or by the scheduler"
    events = [
        event(0, "started", job="5", restart=0),
        event(2, "start"),
        event(3, "first_step", step=1),
        event(100, "ended", code=75, step=5, beat=20, why=why),
        event(101, "started", 1, job="5", restart=1),
    ]
    first, second = goodput.account(events)
    assert (first.total, second.seconds["queue"]) == (20, 81)


def test_a_hang_begins_with_the_last_sign_of_life() -> None:
    events = [
        event(0, "started", job="5", restart=0),
        event(0, "start"),
        event(0, "first_step", step=1),
        event(28, "hang", step=20),
        event(30, "ended", code=75, step=20, beat=20),
    ]
    (attempt,) = goodput.account(events)
    assert (attempt.seconds["train"], attempt.seconds["hang"]) == (20, 10)


def test_steps_of_a_rollback_and_before_a_useless_attempt_are_replayed() -> None:
    events = [
        event(0, "started", job="5", restart=0),
        event(0, "start"),
        event(0, "loaded", step=0),
        event(0, "first_step", step=1),
        event(20, "rollback", step=10, lost=10),
        event(40, "saved", step=30, seconds=9, waited=0),
        event(50, "ended", code=75, step=40, beat=50),
        event(50, "started", 1, job="5", restart=0),
        event(60, "ended", 1, code=75, step=0),  # before it had taken up the checkpoint
        event(60, "started", 2, job="5", restart=0),
        event(60, "loaded", 2, step=30),
    ]
    first, *_ = goodput.account(events)
    assert (first.seconds["train"], first.seconds["replay"]) == (30, 20)  # 10 + 10 of 50 steps


def test_no_second_is_lost_when_a_smaller_job_takes_over() -> None:
    events = [
        event(0, "submitted", job="5"),
        event(0, "started", job="5", restart=0),
        event(5, "start"),
        event(5, "first_step", step=1),
        event(40, "submitted", 1, job="6", takeover=True),
        event(45, "ended", code=75, step=5, beat=20, why="killed with its node or by the scheduler"),
        event(50, "started", 1, job="6", restart=0),
        event(60, "ended", 1, code=0, step=5),
    ]
    first, second = goodput.account(events)
    assert (first.total + second.total, second.seconds["queue"]) == (60, 30)


@given(st.lists(st.sampled_from(["start", "loaded", "first_step", "saved", "ended"]), max_size=8), st.data())
def test_nothing_is_negative_or_counted_twice(names: list[str], data: st.DataObject) -> None:
    clock, events = 0.0, [event(0, "submitted", job="1"), event(1, "started", job="1", restart=0)]
    for name in names:
        clock += data.draw(st.floats(0, 50))
        fields = {"step": data.draw(st.integers(0, 9)), "seconds": 3.0, "code": 75, "beat": clock / 2}
        events.append(event(1 + clock, name, **fields))
    (attempt,) = goodput.account(events)
    assert all(value >= 0 for value in attempt.seconds.values())
    assert attempt.total <= 1 + clock + 1e-6


def test_the_picture_is_xml_with_a_bar_an_attempt() -> None:
    picture = goodput.svg(goodput.account(a_crash_and_a_good_end()), "a < b")
    root = ET.fromstring(picture)
    assert len([e for e in root.iter() if e.tag.endswith("title")]) == 7 + 3


# --- Slurm's answers ---


def test_squeue_and_sacct_are_read() -> None:
    text = "12|RUNNING|1:02|n[1-2]|None|a|b\n13_2|PENDING|0:00||Resources|c\nrubbish\n"
    found = query.parse_squeue(text)
    assert found["12"] == query.Job("RUNNING", "1:02", "n[1-2]", "", "a|b")
    assert found["13_2"].why == "Resources"
    text = "12|NODE_FAIL|1|n1|0:0|j\n12|CANCELLED by 0|2|n1|0:15|j\n"
    text += "12.batch|X|1|n1|0:0|j\n9|FAILED|1|n2|2:0|k\n"
    told = query.parse_sacct(text)
    assert (told["12"].state, told["9"].why) == ("CANCELLED", "exit code 2")


def test_all_jobs_are_one_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in [
        ("squeue", "1|RUNNING|1|n1|None|a"),
        ("sacct", "2|COMPLETED|1|n1|0:0|b\n4|FAILED|1|n1|1:0|d"),
    ]:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/asked\necho '{answer}'\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = query.ask({"1": "a", "2": "b", "3": "c", "4": "another cluster's"})
    assert {job: told.state for job, told in found.items()} == {"1": "RUNNING", "2": "COMPLETED"}
    assert (tmp_path / "asked").read_text().split() == ["squeue", "sacct", "squeue"]  # for 3


def test_another_users_jobs_are_known_without_sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = "1|RUNNING|1|n1|None|a", "9_0|PENDING|0||Priority|s\n9_1|PENDING|0||Priority|s"
    script = f"""#!/bin/sh
    echo "$@" >> {tmp_path}/asked
    case "$*" in *--me*) echo '{mine}';; *-j*) echo '{mine}\n{theirs}';; esac
    """
    (tmp_path / "squeue").write_text(script)
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = query.ask({"1": "a", "9": "s", "9_1": "s", "7": "gone"})
    assert found.answered and {job: told.state for job, told in found.items()} == {
        "1": "RUNNING", "9": "PENDING", "9_1": "PENDING",
    }  # fmt: skip
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert "--me" in first and "--me" not in second and second.endswith("-j 9,9_1,7")
    query.ask({"1": "a"})  # nothing is missing
    assert len((tmp_path / "asked").read_text().splitlines()) == 3


def test_an_array_is_told_by_its_elements() -> None:
    found = query.parse_squeue(
        "9_0|RUNNING|1|n1|None|s\n9_1|PENDING|0||Priority|s\n9_2|PENDING|0||Priority|s\n"
    )
    assert query._array("9", found) == query.Job("2 PENDING, 1 RUNNING", name="s")
    assert query._array("8", found) is None


# --- the run folder's own account ---


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm here
    folder = tmp_path / "run"
    (folder / "job" / "001").mkdir(parents=True)
    ledger.record(folder, "submitted", job="5", name="run", cluster="box", folder=str(folder / "job" / "001"))
    registry.remember(folder, "5", "box")
    return folder


def test_states_from_the_folder_alone(run: Path) -> None:
    assert Run.read(run).state(None) == "PENDING"
    ledger.record(run, "started", job="5", restart=0)
    ledger.beat(run, 3, 10, "train")
    assert Run.read(run).state(None) == "RUNNING"
    assert Run.read(run).steps == "3/10"
    ledger.record(run, "ended", job="5", code=0)
    assert Run.read(run).state(None) == "COMPLETED"
    assert Run.read(run).state(query.Job("COMPLETING")) == "COMPLETING"


@pytest.mark.parametrize("ago", [2 * FRESH, -2 * FRESH, -1e9])
def test_a_heartbeat_of_another_time_is_no_sign_of_life(run: Path, ago: float) -> None:
    ledger.record(run, "started", job="5", restart=0)
    ledger.beat(run, 3, 10, "train")
    told = Run.read(run)
    assert told.beat is not None
    told.beat["time"] = time.time() - ago
    assert told.state(None) == "UNKNOWN"


@pytest.mark.parametrize("command", ["list", "status", "goodput", "logs"])
def test_commands_take_the_newest_run(command: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger.record(run, "started", job="5", restart=0)
    ledger.record(run, "ended", job="5", code=75, why="rank 1 on n2: killed by SIGKILL")
    (run / "job" / "001" / "5_0_log.out").write_text("step 1\n")
    jobs.main([command])
    out = capsys.readouterr().out
    assert {"list": "STOPPED", "status": "killed by SIGKILL", "goodput": "goodput.svg", "logs": "step 1"}[
        command
    ] in out


@pytest.mark.parametrize(("factor", "named"), [(1.5, True), (3.0, False)])
def test_slow_ranks_are_named_by_what_the_profile_calls_slow(
    factor: float, named: bool, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.record(run, "started", job="5", restart=0, world=4, nodes=["n1", "n2"], slow_factor=factor)
    for step in range(pace.LATELY):
        ledger.record(run, "pace", step=step, own=[1.0, 1.0, 2.5, 1.0], data=[0.0] * 4, steps=1)
    jobs.main(["status", str(run)])
    said = capsys.readouterr().out
    assert ("rank 2 takes 2.5 times its peers' time" in said) is named
    assert "pace" not in said  # no news of every few minutes
    assert profile.Cluster.model_fields["slow_factor"].default == pace.FACTOR


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_who_may_only_read_is_told_the_goodput_without_a_picture(
    number: int, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.record(run, "started", job="5", restart=0)
    ledger.record(run, "ended", job="5", code=0)

    def refuse(path: Path, _: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(show, "write_atomic", refuse)
    if number == errno.ENOSPC:  # another fault is one
        with pytest.raises(OSError, match="No space"):
            show.goodput_of(Run.read(run))
        return
    assert show.goodput_of(Run.read(run))["picture"] is None
    assert "no picture" in capsys.readouterr().out


def test_a_missing_rank_is_told(run: Path) -> None:
    (run / "job" / "001" / "5_0_log.out").touch()
    with pytest.raises(InputError, match=r"--rank 3: .* there are: ranks 0 to 0"):
        jobs.main(["logs", "--rank", "3", str(run)])
    with pytest.raises(InputError, match="nothing was submitted"):
        jobs.main(["status", str(run.parent)])


def test_a_job_that_slurm_does_not_know_is_not_cancelled(run: Path) -> None:
    with pytest.raises(InputError, match="job 5 is not known to Slurm here"):
        jobs.main(["cancel", str(run)])


# --- damaged records ---


def test_the_number_in_a_folder_that_others_can_change_is_not_killed(run: Path) -> None:
    run.chmod(0o777)
    with pytest.raises(InputError, match="can be written by everybody"):
        jobs.main(["cancel", str(run)])


def test_one_run_never_hides_the_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("damaged", "6"), ("torn", "7"), ("removed", "8"), ("no-folder", "9")):
        registry.remember(run.parent / name, job, "box")
    for name in ("damaged", "torn"):
        (run.parent / name).mkdir()
    (run.parent / "damaged" / "events.jsonl").write_bytes(b"\xff\n")
    line = jsonl.text([event(0, "submitted", job="7", cluster="box", folder="/x")])
    (run.parent / "torn" / "events.jsonl").write_bytes(b'\xff\n{"event": "ended"}\n' + line.encode())
    (run.parent / "no-folder").write_text("")
    (registry.path_of("jobs.jsonl")).open("ab").write(b'\xff\n{"run": 7}\n')
    registry.remember(run, "5", "box")
    jobs.main(["list", "--json"])
    rows = {row["job"]: row for row in json.loads(capsys.readouterr().out)}
    assert {job: row["state"] for job, row in rows.items()} == {
        "6": "UNREADABLE", "7": "PENDING", "9": "UNREADABLE", "5": "PENDING",
    }  # fmt: skip
    assert rows["5"]["damage"] is None and rows["7"]["damage"] == "2 lines of events.jsonl cannot be read"
    assert "1 lines of events.jsonl cannot be read" in rows["6"]["damage"]
    assert rows["9"]["damage"] == "Not a directory"
    jobs.main(["list"])
    assert "UNREADABLE" in capsys.readouterr().out


def test_status_counts_what_cannot_be_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "events.jsonl").open("ab").write(b'\xff\n{"event": "ended", "attempt": 0}\n')
    ledger.record(run, "started", job="5", restart=0)
    (run / "heartbeat.json").write_text('{"time": "x"}')
    jobs.main(["status"])
    out = capsys.readouterr().out
    assert "2 lines of events.jsonl cannot be read" in out and "PENDING" not in out


def test_garbage_among_nodes_left_out_is_set_aside(run: Path) -> None:
    registry.exclude("box", {"n1": "GPU 3"}, 1)
    path = registry.path_of("excluded-box.jsonl")
    before = path.read_bytes() + b'\xff\n{"node": "n2,n3", "until": 9e10}\n{"node": "n4", "until": "x"}\n'
    path.write_bytes(before)
    assert registry.excluded("box") == {"n1": "GPU 3"} == registry.excluded("box")
    [aside] = path.parent.glob("excluded-box.jsonl.damaged-*")
    assert aside.read_bytes() == before and len(path.read_bytes().splitlines()) == 1


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "time": st.floats(0, 1e12),
                "event": st.sampled_from(
                    ["submitted", "started", "start", "loaded", "first_step", "saved", "rollback", "hang",
                     "failed", "done", "preempted", "ended"]
                ),
                "attempt": st.integers(0, 3),
            },
            optional={
                "step": st.none() | st.integers(0, 2**53),
                "lost": st.integers(0, 2**53),
                "seconds": st.floats(0, 1e12),
                "waited": st.floats(0, 1e12),
                "beat": st.none() | st.floats(0, 1e12),
                "restart": st.integers(0, 3),
                "takeover": st.booleans(),
            },
        ),
        max_size=12,
    ),
    st.none() | st.fixed_dictionaries(
        {"time": st.floats(0, 1e12), "step": st.integers(0, 2**53), "steps": st.just(10),
         "attempt": st.integers(0, 3), "section": st.just("train")}
    ),
)  # fmt: skip
def test_whatever_the_clock_did_no_time_is_negative(
    events: list[dict[str, Any]], beat: dict[str, Any] | None
) -> None:
    """A clock that went back, steps that were lost twice: any ledger whose lines are of the schema."""
    known = {"job": "5", "code": 75, "cluster": "box", "folder": "/x"}
    lines = [known | e for e in events]
    for line in lines:
        ledger.Event.model_validate(line)
    attempts = goodput.account(lines, beat)
    assert all(0 <= value < math.inf for a in attempts for value in a.seconds.values())
    assert 0 <= goodput.share(attempts) <= 1 + 1e-9 and ET.fromstring(goodput.svg(attempts, "x")) is not None

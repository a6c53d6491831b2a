"""Supervisors over a training script that fails on demand: who restarts, who ends, with what code."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffbase import ledger
from launch.job.folder import log_of
from tests.integration import fake_job
from tests.integration.fake_job import FakeJob

Start = Callable[..., FakeJob]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    jobs: list[FakeJob] = []

    def begin(acts: dict[str, list[Any]], **settings: Any) -> FakeJob:
        jobs.append(fake_job.make(tmp_path, acts, **settings))
        jobs[-1].start()
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()


def seen(job: FakeJob, attempt: int, rank: int) -> dict[str, str]:
    tree: dict[str, str] = json.loads((job.place.run / f"seen-{attempt}-{rank}.json").read_text())
    return tree


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_good_run_ends_with_0_and_each_rank_knows_its_place(start: Start) -> None:
    job = start({}, world=4, nodes=2)
    codes, output = job.wait()
    assert codes == [0, 0], output
    places = [seen(job, 0, rank) for rank in range(4)]
    assert [(p["LOCAL_RANK"], p["NODE_RANK"], p["WORLD_SIZE"]) for p in places] == [
        ("0", "0", "4"), ("1", "0", "4"), ("0", "1", "4"), ("1", "1", "4"),
    ]  # fmt: skip
    assert len({p["MASTER_PORT"] for p in places}) == 1
    assert job.events("ended")[0]["code"] == 0
    assert [job.log(rank) for rank in range(4)] == [f"attempt 0 of rank {rank}\n" for rank in range(4)]


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_rank_is_tried_again_in_the_allocation_at_another_port(start: Start, nodes: int) -> None:
    job = start({"0.1": ["kill"], "0.0": ["deaf", 3]}, world=2, nodes=nodes)
    began = time.monotonic()
    codes, output = job.wait()
    assert codes == [0] * nodes, output
    assert time.monotonic() - began < 15
    assert "killed by SIGKILL" in job.events("ended")[0]["why"]
    assert [event["code"] for event in job.events("ended")] == [75, 0]
    assert seen(job, 0, 0)["MASTER_PORT"] != seen(job, 1, 0)["MASTER_PORT"]
    assert job.log(1) == "attempt 0 of rank 1\nattempt 1 of rank 1\n"


@pytest.mark.parametrize("code", [1, 2])
def test_what_would_fail_again_ends_the_job_with_its_code(start: Start, code: int) -> None:
    job = start({"0.1": ["exit", 1, code], "0.0": ["deaf"]})
    assert job.wait()[0] == [code, code]
    assert len(job.events("started")) == 1


def test_two_attempts_without_progress_are_enough(start: Start) -> None:
    job = start({str(n): ["exit", 5, 75] for n in range(9)}, world=1)
    codes, output = job.wait()
    assert codes == [1]
    assert "two attempts in a row made no progress" in output
    assert len(job.events("started")) == 3  # the first one got to step 5


def test_the_budget_of_restarts_is_kept(start: Start) -> None:
    job = start({str(n): ["exit", n + 1, 75] for n in range(9)}, world=1, restarts=2)
    codes, output = job.wait()
    assert codes == [1]
    assert job.asked_slurm() == ""
    assert "3 failures within a day, and 2 restarts were allowed" in output


@pytest.mark.parametrize("nodes", [1, 2])
def test_no_rank_is_killed_while_a_checkpoint_is_written(start: Start, nodes: int) -> None:
    job = start({"0.0": ["save", 5, 6.0], "0.1": ["kill"]}, nodes=nodes)
    codes, output = job.wait()
    assert codes == [0] * nodes, output
    assert job.events("ended")[0]["kept"] == 5


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_signal_stops_all_and_asks_for_a_requeue(start: Start, nodes: int) -> None:
    job = start({"0": ["wait", 5]}, world=2, nodes=nodes)
    until(lambda: (job.place.run / "seen-0-1.json").exists() and (job.place.run / "heartbeat.json").exists())
    job.signal(signal.SIGUSR2)
    codes, output = job.wait()
    assert codes == [85] * nodes
    assert job.events("ended")[0]["code"] == 85
    assert job.asked_slurm() == "requeue 7\n", output


def test_the_next_life_goes_on_counting_attempts(start: Start) -> None:
    job = start({"0": ["wait", 5]}, world=1)
    until(lambda: (job.place.run / "heartbeat.json").exists())
    job.signal(signal.SIGTERM)
    assert job.wait()[0] == [85]
    job.processes.clear()
    job.start(restart=1)
    assert job.wait()[0] == [0]
    assert [event["attempt"] for event in job.events("started")] == [0, 1]


def test_an_older_life_ends_when_a_new_one_begins(start: Start) -> None:
    # As after a node failure: the old life's processes live on where Slurm cannot reach them.
    job = start({"0": ["deaf", 5], "1": ["done", 6]}, world=1)
    until(lambda: (job.place.run / "heartbeat.json").exists())
    old = job.processes.pop()
    job.start(restart=1)
    assert job.wait()[0] == [0]
    assert old.wait(timeout=20) == 1
    child = int(seen(job, 0, 0)["pid"])
    until(lambda: not Path(f"/proc/{child}").exists(), 5)
    lost = next(event for event in ledger.events(job.place.run) if event["event"] == "ended")
    assert (lost["attempt"], lost["code"]) == (0, 75)


def test_a_child_never_outlives_its_supervisor(start: Start) -> None:
    job = start({"0": ["deaf", 5]}, world=3, nodes=1)
    until(lambda: all((job.place.run / f"seen-0-{rank}.json").exists() for rank in range(3)))
    until(lambda: all((job.place.run / f"seen-0-{rank}.json").read_text()[-1:] == "}" for rank in range(3)))
    children = [int(seen(job, 0, rank)["pid"]) for rank in range(3)]
    os.kill(job.processes[0].pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 5)


def test_a_lost_leader_is_noticed_by_the_others(start: Start) -> None:
    job = start({"0": ["deaf", 5]}, world=2)
    until(lambda: (job.place.run / "seen-0-1.json").exists() and (job.place.run / "heartbeat.json").exists())
    os.kill(job.processes[0].pid, signal.SIGKILL)
    assert job.processes[1].wait(timeout=50) == 75  # not after the minutes that a silent leader has


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_node_is_noticed_by_the_leader(start: Start, number: int) -> None:
    job = start(
        {"0.0": ["deaf", 5], "0.1": ["deaf"], "0.2": ["kill" if number == signal.SIGSTOP else "deaf"]},
        world=3,
    )
    until(lambda: all((job.place.run / f"seen-0-{rank}.json").exists() for rank in range(3)))
    until(lambda: (job.place.run / "heartbeat.json").exists())
    job.processes[1].send_signal(number)
    codes = [job.processes[node].wait(timeout=90) for node in (0, 2)]
    assert codes == [75, 75] and job.asked_slurm() == "requeue 7\n"


def test_a_log_that_is_a_link_is_not_written_through(start: Start, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("precious")
    job = fake_job.make(tmp_path, {}, world=1)
    log_of(job.place.folder, "7", 0).symlink_to(kept)
    job.start()
    codes, output = job.wait()
    assert codes == [0] and "attempt 0 of rank 0" in output  # where its supervisor's goes
    assert kept.read_text() == "precious"


def test_ranks_of_a_node_that_slurm_bound_share_its_cores(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_job, "BOUND", {"SLURM_CPU_BIND_TYPE": "mask_cpu:"})
    ranks = len(os.sched_getaffinity(0))
    job = start({}, world=ranks, nodes=1)
    assert job.wait()[0] == [0]
    cores = [
        json.loads((job.place.run / f"seen-0-{rank}.json").read_text())["cores"] for rank in range(ranks)
    ]
    assert sorted(cores) == [[core] for core in sorted(os.sched_getaffinity(0))]


def test_a_full_disk_everywhere_is_the_users_to_mend(start: Start) -> None:
    job = start({}, world=1, preflight={"run_gb": 1e9})
    codes, output = job.wait()
    assert codes == [2]
    assert "GB free" in output


def test_the_timed_all_reduce_comes_before_the_first_step(start: Start) -> None:
    job = start({}, preflight={"mode": "full"})
    began = time.monotonic()
    codes, output = job.wait()
    assert codes == [0, 0], output
    assert time.monotonic() - began < 30
    assert re.search(r"all-reduce over 2 ranks: [\d.]+ GB/s", output)
    assert [job.log(rank) for rank in range(2)] == [f"attempt 0 of rank {rank}\n" for rank in range(2)]


def test_who_was_in_the_all_reduce_trains_once(start: Start) -> None:
    job = start({"0.1": ["exit", 1, 75]}, preflight={"mode": "full"})
    codes, output = job.wait(90)
    assert codes == [0, 0], output
    started = {(a, r): seen(job, a, r)["started"] for a in range(2) for r in range(2)}
    script = f"{job.place.code}/diffcore/train.py --config {job.place.config}"
    assert all(words.endswith(f" {script}") for words in started.values())
    assert ["probe.rank" in started[0, rank] for rank in range(2)] == [True, True]
    assert ["probe.rank" in started[1, rank] for rank in range(2)] == [False, False]  # another attempt


def test_neighbours_are_timed_side_by_side(start: Start) -> None:
    job = start({}, world=4, nodes=4, preflight={"mode": "full"})
    codes, output = job.wait(90)
    assert codes == [0] * 4, output
    [path] = job.place.live.glob("*/speed-0.json")
    pairs = json.loads(path.read_text())["pairs"]
    assert sorted(pairs) == ["n1 n2", "n2 n3", "n3 n4", "n4 n1"] and all(s > 0 for s in pairs.values())


def test_an_all_reduce_below_the_floor_ends_the_life_of_the_job(start: Start) -> None:
    job = start({}, preflight={"mode": "full", "floor_gbps": 1e6})
    codes, output = job.wait()
    assert codes == [75, 75]
    assert "1e+06 wanted" in output
    assert job.asked_slurm() == "requeue 7\n"
    assert not job.events("started")
    assert "preflight" in job.events("ended")[0]["why"]


def test_scratch_is_the_jobs_own_and_gone_with_it(start: Start, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = start({}, cluster={"scratch": str(scratch)})
    assert job.wait()[0] == [0, 0]
    assert seen(job, 0, 1)["SLURM_TMPDIR"] == str(scratch / f"diffcore-{os.getuid()}-7")
    assert list(scratch.iterdir()) == []

"""launch/submit.py on a real Slurm, with a training script that needs no torch: what is submitted and how."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.box.checkout import Checkout, make_checkout
from tests.integration.box.conftest import RunningBox, wait_for


@pytest.fixture
def checkout(box: RunningBox, packed: Path, tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path / "checkout", box, packed)


TWO = ("--nodes", "2", "--gpus-per-node", "2")


def test_what_is_printed_is_what_is_submitted(checkout: Checkout) -> None:
    printed = checkout.submit(*TWO, "--dry-run")
    assert not checkout.run.exists()
    job = checkout.job(*TWO)
    assert checkout.until_over(job) == "COMPLETED"
    assert (checkout.run / "job" / "001" / f"{job}_submission.sh").read_text() == printed
    shown = checkout.box.run("scontrol", "show", "job", "-o", job)
    assert all(word in shown for word in ("NumNodes=2", "Requeue=1", "Partition=low")), shown
    for path in (checkout.run / "job" / "001").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize("preflight", ["quick", "full"])
def test_a_run_is_called_what_its_user_likes(preflight: str, checkout: Checkout) -> None:
    profile = yaml.safe_load((checkout.folder / "slurm/profiles/box.yaml").read_text())
    profile["preflight"]["mode"] = preflight
    (checkout.folder / "own.yaml").write_text(yaml.safe_dump(profile | {"name": "box"}))
    run = checkout.folder / 'naïve-été 100%j:1 "it\'s" [a]$x' / "%%5j"
    cluster = ["--cluster", str(checkout.folder / "own.yaml"), "--run", str(run)]
    job = checkout.job("--tasks-per-node", "1", "--nodes", "2", *cluster, "--name", "naïve:été 100%j [1]")
    assert checkout.until_over(job) == "COMPLETED", list(run.rglob("*"))
    assert checkout.box.run("squeue", "-h", "-t", "all", "-o", "%j", "-j", job) == "naïve:été 100%j [1]"
    assert [event["code"] for event in checkout.events("ended", run)] == [0]
    assert "attempt 0 of rank 1" in (run / f"job/001/{job}_1_log.out").read_text()


def test_every_rank_knows_its_place_and_its_gpus(checkout: Checkout) -> None:
    job = checkout.job(*TWO)
    assert checkout.until_over(job) == "COMPLETED"
    seen = [json.loads((checkout.folder / f"seen-0-{rank}.json").read_text()) for rank in range(4)]
    places = [(s["RANK"], s["LOCAL_RANK"], s["NODE_RANK"], s["LOCAL_WORLD_SIZE"]) for s in seen]
    assert places == [("0", "0", "0", "2"), ("1", "1", "0", "2"), ("2", "0", "1", "2"), ("3", "1", "1", "2")]
    assert {s["CUDA_VISIBLE_DEVICES"] for s in seen} == {"0,1"}
    assert {s["PYTHONPATH"].split(":")[0] for s in seen} == {str(checkout.run / "job" / "001" / "code")}


def test_a_killed_rank_is_tried_again_in_the_allocation(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["deaf", 5])
    job = checkout.job(*TWO)
    os.kill(int(checkout.until_trained(4)[3]["pid"]), signal.SIGKILL)
    assert checkout.until_over(job) == "COMPLETED"
    assert checkout.events("ended")[0]["why"] == "rank 3 on n2: killed by SIGKILL"
    assert [event["restart"] for event in checkout.events("started")] == [0, 0]


@pytest.mark.parametrize("how", ["USR2", "requeue"])
def test_a_stopped_job_is_queued_again_and_goes_on(checkout: Checkout, how: str) -> None:
    checkout.acts(attempt_0=["wait", 5])
    job = checkout.job(*TWO)
    checkout.until_trained(4)
    command = ("scontrol", "requeue", job) if how == "requeue" else ("scancel", "--signal=USR2", job)
    checkout.box.run(*command)
    wait_for(lambda: len(checkout.events("started")) == 2)
    assert checkout.until_over(job) == "COMPLETED"
    assert [event["code"] for event in checkout.events("ended")] == [85, 0]
    ports = {json.loads((checkout.folder / f"seen-{n}-0.json").read_text())["MASTER_PORT"] for n in (0, 1)}
    assert len(ports) == 2


def test_a_cancelled_job_saves_and_stays_cancelled(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["wait", 5])
    job = checkout.job(*TWO)
    checkout.until_trained(4)
    command = [sys.executable, "-m", "launch.jobs", "cancel", str(checkout.run)]
    subprocess.run(command, cwd=checkout.folder, env=checkout.env, check=True)
    assert checkout.until_over(job) == "CANCELLED"
    assert checkout.events("ended")[0]["code"] == 85
    time.sleep(3)
    assert checkout.box.state(job) == "CANCELLED"


def test_bad_input_ends_the_job_with_its_code(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["exit", 1, 2])
    job = checkout.job(*TWO)
    assert checkout.until_over(job) == "FAILED"
    assert "ExitCode=2:0" in checkout.box.run("scontrol", "show", "job", "-o", job)


def test_a_killed_supervisor_of_rank_0_does_not_end_the_run(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["deaf", 5])
    job = checkout.job("--tasks-per-node", "1")
    child = int(checkout.until_trained(1)[0]["pid"])
    supervisor = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: len(checkout.events("started")) == 2)
    assert checkout.until_over(job) == "COMPLETED"
    assert not Path(f"/proc/{child}").exists()


def test_a_sweep_is_one_array_with_a_bound(checkout: Checkout) -> None:
    sweep = checkout.folder / "sweep.yaml"
    sweep.write_text("optimizer.lr: [1.0e-4, 2.0e-4, 3.0e-4]\n")
    text = checkout.submit("--sweep", str(sweep), "--parallel", "2", "--tasks-per-node", "1")
    runs = [checkout.run / f"{i:03d}" for i in range(3)]
    wait_for(lambda: all(checkout.events("ended", run) for run in runs))
    assert "3 x" in text
    rates = [yaml.safe_load((run / "job/001/config.yaml").read_text())["optimizer"]["lr"] for run in runs]
    assert rates == [1e-4, 2e-4, 3e-4]
    jobs = [checkout.events("submitted", run)[0]["job"] for run in runs]
    assert [job.split("_")[1] for job in jobs] == ["0", "1", "2"]
    assert "%2" in (checkout.run / "job/001" / f"{jobs[0].split('_')[0]}_submission.sh").read_text()


def test_inside_an_allocation_the_steps_run_at_once(checkout: Checkout) -> None:
    command = [
        "salloc",
        "-Q",
        "-N2",
        "--ntasks-per-node=2",
        *checkout.command("--nodes", "2", "--tasks-per-node", "2"),
    ]
    done = subprocess.run(
        [*command, "--follow"], cwd="/", env=checkout.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempt 0: 4 ranks meet" in done.stdout
    assert checkout.events("ended")[0]["code"] == 0


def test_inside_a_shell_of_srun_the_steps_share_what_it_holds(checkout: Checkout) -> None:
    outer = ["srun", "-N1", "-n1", "--cpus-per-task=2", "--gres=gpu:2"]
    done = subprocess.run(
        [*outer, *checkout.command("--gpus-per-node", "2", "--follow")],
        cwd="/", env=checkout.env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [json.loads((checkout.folder / f"seen-0-{rank}.json").read_text()) for rank in range(2)]
    assert [s["CUDA_VISIBLE_DEVICES"] for s in seen] == ["0,1", "0,1"]


def test_one_job_after_another(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["wait", 5])
    first = checkout.job("--tasks-per-node", "1")
    checkout.until_trained(1)
    second = checkout.job("--tasks-per-node", "1", "--after", first)
    assert checkout.box.state(second) == "PENDING"
    checkout.box.run("scancel", first)
    assert checkout.until_over(second) == "COMPLETED"
    assert [event["job"] for event in checkout.events("started")] == [first, second]


def test_two_jobs_of_one_run_do_not_both_write(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["wait", 5], attempt_1=["wait", 6])
    first = checkout.job("--tasks-per-node", "1")
    checkout.until_trained(1)
    told = subprocess.run(
        checkout.command("--tasks-per-node", "1"), cwd="/", env=checkout.env, capture_output=True, text=True
    )
    assert told.returncode == 2
    assert f"job {first} of this run is RUNNING" in told.stderr
    checkout.box.run("scancel", first)
    checkout.until_over(first)


def test_after_a_lost_node_a_smaller_job_goes_on(checkout: Checkout) -> None:
    checkout.acts(attempt_0=["deaf", 5])
    job = checkout.job("--nodes", "1-2", "--tasks-per-node", "1")
    pid = int(checkout.until_trained(2)[0]["pid"])
    checkout.box.box("kill-node", "n2", "--with-jobs")
    # What collectives do when a peer is gone: rank 0 has ended long before Slurm notices.
    os.kill(pid, signal.SIGKILL)
    try:
        wait_for(lambda: len(checkout.events("submitted")) == 2)
        heir = checkout.events("submitted")[1]
        assert (heir["nodes"], heir["ranks"], heir["takeover"]) == (1, 1, True)
        assert checkout.until_over(heir["job"]) == "COMPLETED"
        assert [event["world"] for event in checkout.events("started")] == [2, 1]
        # The same code, though another submission.
        code = json.loads((checkout.folder / "seen-1-0.json").read_text())["PYTHONPATH"].split(":")[0]
        assert code == str(checkout.run / "job" / "001" / "code")
    finally:
        checkout.box.box("start-node", "n2")
    wait_for(lambda: checkout.box.state(job) == "CANCELLED")


@pytest.mark.parametrize("how", ["time limit", "crash"])
def test_a_smaller_job_grows_again_where_training_stops(checkout: Checkout, how: str) -> None:
    checkout.acts(attempt_0=["deaf", 5], attempt_1=["wait", 5])
    job = checkout.job("--nodes", "1-2", "--tasks-per-node", "1")
    pid = int(checkout.until_trained(2)[0]["pid"])
    checkout.box.box("kill-node", "n2", "--with-jobs")
    os.kill(pid, signal.SIGKILL)
    try:
        wait_for(lambda: (checkout.folder / "seen-1-0.json").exists())
    finally:
        checkout.box.box("start-node", "n2")
    smaller = checkout.events("submitted")[1]["job"]
    wait_for(lambda: checkout.box.state(job) == "CANCELLED")
    wait_for(lambda: "n2" in checkout.box.run("sinfo", "-h", "-t", "idle", "-N", "-o", "%N"))
    if how == "crash":
        seen = json.loads((checkout.folder / "seen-1-0.json").read_text())
        os.kill(int(seen["pid"]), signal.SIGKILL)
    else:
        checkout.box.run("scancel", "--signal=USR2", smaller)
    wait_for(lambda: len(checkout.events("submitted")) == 3)
    heir = checkout.events("submitted")[2]
    assert (heir["nodes"], heir["ranks"], heir["takeover"]) == (2, 2, True)
    assert checkout.until_over(heir["job"]) == "COMPLETED"
    assert [event["world"] for event in checkout.events("started")] == [2, 1, 2]
    assert [event["code"] for event in checkout.events("ended")][1:] == [75 if how == "crash" else 85, 0]
    wait_for(lambda: checkout.box.state(smaller) == "CANCELLED")

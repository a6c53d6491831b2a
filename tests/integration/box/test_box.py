"""slurm/box.py: a whole Slurm, what clusters do to jobs, and nothing left of it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from launch.box import processes

from .conftest import RunningBox, box_py, wait_for, why_not


def test_ranks_on_two_nodes_see_their_gpus(box: RunningBox) -> None:
    script = 'echo "$SLURM_PROCID $(hostname) $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"'
    seen = box.run("srun", "-N2", "--gres=gpu:2", "--ntasks-per-node=2", "bash", "-c", script)
    assert sorted(seen.splitlines()) == ["0 n1 n1 0,1", "1 n1 n1 0,1", "2 n2 n2 0,1", "3 n2 n2 0,1"]


def test_node_names_resolve_inside_a_job(box: RunningBox) -> None:
    assert box.run("srun", "-N1", "getent", "ahostsv4", "n2").split()[0] == "127.0.0.1"


def test_a_job_ends_in_the_accounting(box: RunningBox) -> None:
    job = box.sbatch("srun hostname; exit 3", "-N1")
    wait_for(lambda: box.state(job) == "FAILED")
    assert (box.folder / f"{job}.out").read_text() == "n1\n"
    row = ["sacct", "-XnP", "-j", job, "-o", "state,exitcode"]
    wait_for(lambda: box.run(*row) == "FAILED|3:0")


def test_everything_listens_on_loopback(box: RunningBox) -> None:
    rows = re.findall(r"pid (\d+)", box.box("status"))
    assert len(rows) == 6
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    ours = [
        line.split()[3] for line in listening.splitlines() if set(re.findall(r"pid=(\d+)", line)) & set(rows)
    ]
    assert len(ours) == 4  # slurmctld, slurmdbd, two slurmd; munge and MariaDB have Unix sockets only
    assert all(address.startswith("127.0.0.1:") for address in ours), ours


def test_secrets_are_the_owners(box: RunningBox) -> None:
    for name in ("munge/key", "etc/daemons/slurmdbd.conf", "mariadb"):
        assert not (box.folder / name).stat().st_mode & 0o077, name


def test_up_again_changes_nothing(box: RunningBox) -> None:
    before = box.box("status")
    assert f"export SLURM_CONF={box.folder}/etc/slurm.conf" in box.box("up")
    assert box.box("env") == f"export SLURM_CONF={box.folder}/etc/slurm.conf\n"
    pids = re.compile(r"pid \d+")
    assert pids.findall(box.box("status")) == pids.findall(before)
    assert "take it down first" in box_py("up", "--nodes", "3", "--dir", str(box.folder), code=2)


def test_preemption_signals_every_rank_and_the_job_comes_back(box: RunningBox, tmp_path: Path) -> None:
    # Ranks leave files, which are there at once; srun hands on what they print a little later.
    rank = tmp_path / "rank.sh"
    rank.write_text(
        f"cd {tmp_path}\n"
        "trap '' USR2\n"  # the signal goes to children too: a rank must not end because its sleep did
        "sleep 60 &\n"
        "trap 'touch told-$SLURM_PROCID-${SLURM_RESTART_COUNT:-0}; kill $!; exit 0' USR2\n"
        "touch on-$SLURM_PROCID-${SLURM_RESTART_COUNT:-0}\n"
        "wait $!\n"
    )
    # What a launcher does: every rank saves and leaves, then one of them asks for the job's requeue.
    script = f'srun bash {rank}; [ -n "$SLURM_RESTART_COUNT" ] || scontrol requeue $SLURM_JOB_ID; sleep 30'
    low = box.sbatch(script, "-N2", "--ntasks-per-node=2", "--gres=gpu:2", "--signal=USR2@25", "--time=10")

    def left(what: str, life: int) -> list[str]:
        return sorted(path.name for path in tmp_path.glob(f"{what}-*-{life}"))

    wait_for(lambda: len(left("on", 0)) == 4)
    high = box.sbatch("sleep 1", "-N2", "--gres=gpu:2", "--partition=high")
    wait_for(lambda: box.state(high) == "COMPLETED")
    assert left("told", 0) == [f"told-{rank}-0" for rank in range(4)]
    wait_for(lambda: len(left("on", 1)) == 4)  # it runs again by itself
    box.run("scancel", low)
    wait_for(lambda: box.state(low) == "CANCELLED")


def test_a_lost_node_fails_the_job_which_is_requeued(box: RunningBox) -> None:
    job = box.sbatch("srun sleep 300", "-N2", "--ntasks-per-node=1")
    wait_for(lambda: box.state(job) == "RUNNING")
    wait_for(lambda: len(on_node(box, "n2")) > 2)  # slurmd, slurmstepd, sleep
    box.box("kill-node", "n2", "--with-jobs")
    assert on_node(box, "n2") == []
    lost = wait_for(lambda: box.state(job) != "RUNNING")
    box.box("start-node", "n2")
    back = wait_for(lambda: box.state(job) == "RUNNING")
    print(f"node lost: noticed after {lost:.0f} s, job runs again {back:.0f} s later")
    box.run("scancel", job)
    # With its duplicates: the first run of this job.
    states = box.run("sacct", "-XnPD", "-j", job, "-o", "state")
    assert "NODE_FAIL" in states


def on_node(box: RunningBox, name: str) -> list[int]:
    keeper = processes.running(box.folder / f"run/{name}-host.pid")
    assert keeper
    return processes.sharing_host_name(keeper)


@pytest.mark.parametrize("plain", [False, True], ids=["namespaces", "plain"])
def test_down_leaves_nothing(tmp_path: Path, plain: bool) -> None:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path / "box"
    options = ["--nodes", "1", "--gpus", "1", "--no-accounting", *(["--plain"] if plain else [])]
    try:
        box_py("up", *options, "--dir", str(folder))
        other = RunningBox(folder)
        mark = tmp_path / "pids"
        # In a session of its own, as a launcher's children may be.
        job = other.sbatch(f"setsid --fork sleep 4321; pgrep -f -x 'sleep 4321' > {mark}; sleep 4321")
        wait_for(lambda: mark.exists() and mark.read_text().split())
        tasks = [int(pid) for pid in mark.read_text().split()]
        assert job and all(processes.start_time(pid) for pid in tasks)
        daemons = [int(pid) for pid in re.findall(r"pid (\d+)", other.box("status"))]
    finally:
        box_py("down", "--dir", str(folder))
    assert not folder.exists()
    assert not [pid for pid in [*daemons, *tasks] if processes.start_time(pid)]
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    inside = [pid for pid in processes.everything() if str(folder).encode() in environment(pid)]
    assert inside == []
    box_py("down", "--dir", str(folder))  # nothing to do is fine


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() if pid != os.getpid() else b""
    except OSError:
        return b""

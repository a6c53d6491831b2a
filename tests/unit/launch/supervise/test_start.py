"""The pickle that a job loads: its owner's alone, or it is not loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from diffbase.files import REPOSITORY

STRANGER = 65534


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder with what submitit left: a task that makes a file."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "run" / "job" / "001"
    folder.mkdir(parents=True, mode=0o700)
    task = DelayedSubmission(os.mkdir, str(tmp_path / "done"))
    task.set_timeout(10, 1)
    task.dump(folder / "7_submitted.pkl")
    (folder / "7_submitted.pkl").chmod(0o600)
    return folder


def start(job: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7", "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_LOCALID": "0", "PYTHONPATH": str(REPOSITORY),
    }  # fmt: skip
    command = [sys.executable, "-m", "launch.supervise.start", str(job), *more]
    return subprocess.run(
        command, env=os.environ | given | variables, capture_output=True, text=True, timeout=60
    )


def test_a_job_of_ones_own_is_run(job: Path) -> None:
    done = start(job)
    assert done.returncode == 0, done.stderr
    assert (job.parents[2] / "done").is_dir()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("the file is a stranger's", "7_submitted.pkl belongs to nobody"),
        ("all may write the file", "7_submitted.pkl can be written by everybody"),
        ("the file is a link", "7_submitted.pkl: not a plain file"),
        ("all may write the folder", "001 can be written by everybody"),
        ("the folder is a stranger's", "001 belongs to nobody"),
        ("a folder above is a stranger's", "run above it belongs to nobody"),
        ("all may write a folder above", "job above it can be written by everybody"),
        ("there is none", "no such folder"),
    ],
)
def test_what_somebody_else_could_have_changed_is_not_loaded(job: Path, fault: str, said: str) -> None:
    pickle = job / "7_submitted.pkl"
    match fault:
        case "all may write the file":
            pickle.chmod(0o622)
        case "the file is a link":
            pickle.rename(job / "real.pkl")
            pickle.symlink_to(job / "real.pkl")
        case "all may write the folder":
            job.chmod(0o777)
        case "all may write a folder above":
            job.parent.chmod(0o777)
        case "there is none":
            job = job.parent / "002"
        case _ if os.geteuid():
            pytest.skip("only root gives files away")
        case "the file is a stranger's":
            os.chown(pickle, STRANGER, STRANGER)
        case "the folder is a stranger's":
            os.chown(job, STRANGER, STRANGER)
        case "a folder above is a stranger's":
            os.chown(job.parents[1], STRANGER, STRANGER)
    done = start(job)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (job.parents[2] / "done").exists()


def test_the_group_is_trusted_where_the_run_says_so(job: Path) -> None:
    os.chown(job.parent, -1, 65533) if os.geteuid() == 0 else pytest.skip("only root gives files away")
    job.parent.chmod(0o770)
    assert "can be written by the group 65533" in start(job).stderr
    assert start(job, "--group").returncode == 0


@pytest.mark.parametrize(("task", "log"), [(0, "7_0_log.out"), (2, "7_8_log.out")])
def test_a_nodes_own_words_are_in_its_first_ranks_log(job: Path, task: int, log: str) -> None:
    slurm = {
        "SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7", "SLURM_PROCID": str(task),
        "SLURM_NODEID": str(task), "SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "1(x3)",
        "SLURM_JOB_NUM_NODES": "3", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "n[1-3]",
    }  # fmt: skip
    done = start(job, "--ranks", "4", **slurm)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    [written] = job.glob("*_log.out")
    assert written.name == log and "completed successfully" in written.read_text()
    assert written.stat().st_mode & 0o077 == 0

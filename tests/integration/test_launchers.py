"""Ranks under the launchers that people have, and what each of them leaves to the ranks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffbase import exits, ledger
from diffcore.runs import checkpoint
from tests.integration.conftest import TRAIN, Train, free_port, run

PATIENCE = 120
BIN = Path(sys.executable).parent


def launcher(name: str) -> list[str]:
    """The command that starts two ranks here, up to the program."""
    port = str(free_port())
    if name == "deepspeed":
        return [sys.executable, str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port]
    if name == "torchrun":
        return [sys.executable, str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", port]
    pytest.importorskip("accelerate")
    cli = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    usual = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*cli, *usual, "--num_processes", "2", "--main_process_port", port]


def with_argument(argument: str) -> dict[int, str]:
    """The processes that have ``argument``, by number: their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if argument in words:
                found[int(folder.name)] = " ".join(words)
    return found


@pytest.mark.parametrize("name", ["torchrun", "accelerate"])
def test_settings_need_no_dashes_before_them(name: str, small: Path) -> None:
    folder = small.parent / "other"
    given = ["--config", str(small), "--run_folder", str(folder), "--train.steps", "1"]
    finished = run([*launcher(name), str(TRAIN), *given], cwd=small.parent, timeout=PATIENCE)
    assert finished.code == 0, finished.err[-3000:]
    assert "2 ranks on cpu" in finished.out and checkpoint.complete(folder)


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_ranks_whose_launcher_was_killed_leave(name: str, small: Path) -> None:
    """Having saved, but for torchrun's, which takes the store with it in which they would agree on it."""
    folder = small.parent / "run"
    given = ["--config", str(small), "--train.steps", "100000", "--train.checkpoint_every", "100000"]
    command = [*launcher(name), str(TRAIN), *given]
    # fmt: off
    started = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    # fmt: on
    try:
        until = time.monotonic() + PATIENCE
        while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
            assert started.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        assert len(with_argument(str(small))) >= 3  # a launcher and two ranks
        started.kill()
        started.wait(PATIENCE)
        while left := with_argument(str(small)):
            assert time.monotonic() < until, left
            time.sleep(0.2)
    finally:
        started.kill()
        for pid in with_argument(str(small)):
            os.kill(pid, signal.SIGKILL)
    ends = [event["event"] for event in ledger.events(folder)]
    saved = list(map(checkpoint.step_of, checkpoint.complete(folder)))
    if name == "deepspeed":
        assert ends[-1] == "preempted" and len(saved) == 1
    else:
        assert "done" not in ends and len(saved) <= 1


def rank_of_two(rank: int, small: Path, *overrides: str, port: int) -> tuple[int, str]:
    """Exit code and errors of one rank of two, the other of which never comes."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(TRAIN), "--config", str(small), *overrides]
    env = os.environ | place | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stderr


def test_two_tasks_of_sruns_are_one_run_and_not_two(small: Path) -> None:
    """By the variables that srun sets; tests/integration/box/test_srun.py has a real one."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    step |= {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_PORT")} | step
    command = [sys.executable, str(TRAIN), "--config", str(small), "--train.steps", "1"]
    tasks = [
        subprocess.Popen(
            command, env=env | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [task.communicate(timeout=PATIENCE) for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], said
    assert "2 ranks on cpu" in said[0][0] and said[1][0] == ""
    assert "2 ranks, as srun or mpirun says" in said[0][1]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["--data.path", "/nowhere"], "/nowhere"),
        (["--batch.size", "7"], "a batch.size of 6 or 8"),
        (["--model.channels", "16,32,64,128,256,512"], "multiples of 32"),
    ],
)
def test_bad_input_is_found_before_the_others_are_waited_for(
    small: Path, overrides: list[str], told: str
) -> None:
    code, said = rank_of_two(0, small, *overrides, port=free_port())
    assert code == exits.BAD_INPUT and told in said
    assert not (small.parent / "run").exists()


def test_another_experiments_folder_is_found_before_by_any_rank(train: Train, small: Path) -> None:
    train("--train.steps", "1")
    code, said = rank_of_two(1, small, "--optimizer.lr", "0.5", port=free_port())
    assert code == exits.BAD_INPUT and "optimizer.lr was 0.001, now 0.5" in said


def test_a_port_that_another_run_has_is_named(small: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, said = rank_of_two(0, small, port=port)
    assert code == exits.RETRYABLE
    assert f"port {port} of 127.0.0.1" in said and "is taken" in said and "--master_port" in said

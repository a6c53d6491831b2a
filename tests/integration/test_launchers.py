"""Ranks under the launchers that people have, and what each of them leaves to the ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diffbase import exits
from tests.integration.conftest import TRAIN, Train, free_port

PATIENCE = 120


def rank_of_two(rank: int, small: Path, *overrides: str, port: int) -> tuple[int, str]:
    """Exit code and errors of one rank of two, the other of which never comes."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, str(TRAIN), "--config", str(small), *overrides]
    env = os.environ | place | {"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stderr


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

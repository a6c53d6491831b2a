"""The timed all-reduce's processes: what becomes of them, and what is said of it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from launch.doctor import allreduce
from launch.doctor.finding import Finding

WRITE = """
import json, os, pathlib, sys
if os.environ["RANK"] == "0":
    pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text(
        json.dumps({"backend": "gloo", "gbps": 1.2345, "pairs": {}}))
"""


@pytest.fixture(autouse=True)
def no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allreduce, "count_gpus", lambda: 0)


def timed(program: str, seconds: float = 30) -> Finding:
    (line,) = allreduce.all_reduce(seconds, [sys.executable, "-c", program])
    return line


def test_a_speed() -> None:
    assert timed(WRITE) == Finding("ok", "all-reduce", "2 processes with gloo: 1.23 GB/s")


@pytest.mark.parametrize(
    ("gpus", "text"), [(1, "1 process with gloo works"), (3, "3 processes with gloo: 1.23 GB/s")]
)
def test_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch, gpus: int, text: str) -> None:
    monkeypatch.setattr(allreduce, "count_gpus", lambda: gpus)
    assert timed(WRITE).found.startswith(text)


def test_the_ranks_are_told_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    program = f"""
import json, os, pathlib
pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(json.dumps(dict(os.environ)))
{WRITE}"""
    assert timed(program).status == "ok"
    import json

    first, second = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert (first["WORLD_SIZE"], second["LOCAL_RANK"], first["MASTER_ADDR"]) == ("2", "1", "127.0.0.1")
    assert first["MASTER_PORT"] == second["MASTER_PORT"]
    assert "TORCHELASTIC_USE_AGENT_STORE" not in first


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    program = f"""
import os, pathlib, sys, time
pathlib.Path({str(tmp_path)!r}, os.environ["RANK"]).write_text(str(os.getpid()))
if os.environ["RANK"] == "1":
    while not pathlib.Path({str(tmp_path)!r}, "0").exists():
        time.sleep(0.01)
    sys.exit("RuntimeError: connect refused")
time.sleep(600)
"""
    began = time.monotonic()
    line = timed(program, 60)
    assert line.status == "bad"
    assert line.found == "2 processes: exit code 1 (RuntimeError: connect refused)"
    assert line.todo
    assert time.monotonic() - began < 50
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


def test_ranks_that_hang_are_ended_in_time() -> None:
    line = timed("import time; time.sleep(600)", 0.5)
    assert line.status == "bad"
    assert line.found == "2 processes: no result within 0.5 s"


def test_no_result_is_told() -> None:
    with pytest.raises(FileNotFoundError):
        timed("pass")

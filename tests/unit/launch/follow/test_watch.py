"""``--watch``: the whole terminal until q or Ctrl-C, plain lines in a pipe, and Slurm asked seldom."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from diffbase import ledger
from diffbase.files import REPOSITORY
from launch import jobs
from launch.follow import watch
from launch.scheduler.query import Known


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "lr[a]"
    folder.mkdir()
    ledger.record(folder, "start", steps=10, pid=1, host="elsewhere")
    ledger.record(folder, "failed", rank=1, code=75, why="[n1] \x1b[31mred [/bold]")
    ledger.record(folder, "start", steps=10, pid=1, host="elsewhere")
    ledger.beat(folder, 3, 10, "train")
    return folder


def test_a_pipe_gets_a_line_for_each_change(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks: list[int] = []

    def sleep(seconds: float) -> None:
        looks.append(1)
        if len(looks) == 2:
            ledger.beat(run, 4, 10, "train")
        if len(looks) == 4:
            ledger.record(run, "done", step=10)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    with pytest.raises(SystemExit) as left:
        jobs.main(["status", "--watch", "--exit-code", str(run)])
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert [line.split("  ")[1:3] for line in lines] == [
        ["RUNNING", "step 3/10"], ["RUNNING", "step 4/10"], ["COMPLETED", "step 10/10"],
    ]  # fmt: skip
    assert left.value.code == 0 and all(line.startswith(f"{run}  ") for line in lines)


@pytest.mark.parametrize(("how", "code"), [("q", 0), ("interrupt", 0), ("end", 128 + signal.SIGTERM)])
def test_a_terminal_is_as_before(run: Path, how: str, code: int) -> None:
    mine, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "launch.jobs", "status", "--watch", str(run)]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    child = subprocess.Popen(
        command, cwd=REPOSITORY, env=env, stdin=theirs, stdout=theirs, stderr=theirs,
        # Where the tests run in the background a shell has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        shown = read(mine, b"q: leave")
        assert b"what failed" in shown and b"\\x1b[31mred [/bold]" in shown and b"\x1b[31mred" not in shown
        if how == "q":
            os.write(mine, b"q")
        else:
            child.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGTERM)
        after = read(mine, b"\x1b[?1049l")  # the other screen is left
        assert child.wait(30) == code and b"Traceback" not in after
        assert termios.tcgetattr(theirs) == before
    finally:
        child.kill()
        child.wait()
        os.close(mine)
        os.close(theirs)


def read(descriptor: int, until: bytes, seconds: float = 60.0) -> bytes:
    data, end = b"", time.monotonic() + seconds
    while until not in data:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
        assert ready, data
        data += os.read(descriptor, 1 << 16)
    return data


def test_slurm_is_not_asked_with_every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def ask(runs: Any) -> Known:
        asked.append(runs)
        return Known()

    monkeypatch.setattr(watch.ways, "ask", ask)
    ask_seldom = watch.seldom(1e9)
    for _ in range(5):
        ask_seldom([])
    assert len(asked) == 1
    gone = watch.seldom(0.0)
    gone([]), gone([])
    assert len(asked) == 3

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
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbase import ledger
from diffbase.files import REPOSITORY
from launch import jobs
from launch.follow import watch
from launch.job import registry
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


def with_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """The last of these answers is Slurm's from now on; a controller that is down says nothing."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name, script in (("squeue", answer), ("sacct", "exit 1")):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def submitted(folder: Path, job: str) -> Path:
    (folder / "job" / "001").mkdir(parents=True)
    ledger.record(folder, "submitted", job=job, name="s", cluster="box", folder=str(folder / "job" / "001"))
    registry.remember(folder, job, "box")
    return folder


def looks(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> list[int]:
    """How often it looked again; ``change`` is made at the second time, and the tenth is one too many."""
    times: list[int] = []

    def sleep(_: float) -> None:
        times.append(1)
        if len(times) == 2:
            change()
        assert len(times) < 10

    clock = SimpleNamespace(sleep=sleep, strftime=time.strftime, monotonic=time.monotonic)  # not subprocess's
    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "ASK_EVERY", 0.0)
    return times


def test_a_pipe_ends_with_a_job_that_slurm_forgot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_slurm(tmp_path, monkeypatch, "echo '12|RUNNING|1|n1|None|s'")
    runs = [str(submitted(tmp_path / name, job)) for name, job in (("a", "11"), ("b", "12"))]
    looked = looks(monkeypatch, lambda: with_slurm(tmp_path, monkeypatch, "true"))
    jobs.main(["status", "--watch", *runs])
    assert len(looked) == 2  # b ran
    states = [line.split("  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert states == ["UNKNOWN", "RUNNING", "UNKNOWN"]


def test_a_pipe_waits_where_slurm_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_slurm(tmp_path, monkeypatch, "exit 1")
    run = submitted(tmp_path / "run", "11")
    ledger.record(run, "started", job="11", restart=0)
    looked = looks(monkeypatch, lambda: ledger.record(run, "ended", job="11", code=0))
    jobs.main(["status", "--watch", str(run)])
    assert len(looked) == 2


def test_a_run_that_cannot_be_read_holds_no_list_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_slurm(tmp_path, monkeypatch, "exit 1")
    (submitted(tmp_path / "damaged", "11") / "events.jsonl").write_bytes(b"\xff\n")
    run = submitted(tmp_path / "run", "12")
    looked = looks(monkeypatch, lambda: ledger.record(run, "ended", job="12", code=0))
    jobs.main(["list", "--watch"])
    assert len(looked) == 2 and "UNREADABLE" in capsys.readouterr().out


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

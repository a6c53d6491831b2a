"""Launchers above a rank are known for what they are, and missed when they are gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diffcore.config.tree import Guards
from diffcore.training.guards import watchdog
from diffcore.training.guards.launchers import Process, gone, launchers
from diffcore.training.guards.stopping import StopFlag


def process(proc: Path, pid: int, parent: int, *command: str, begun: int = 7, state: str = "S") -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in command))
    fields = [state, str(parent), *["0"] * 17, str(begun), "0"]
    (folder / "stat").write_text(f"{pid} (a ) b) {' '.join(fields)}\n")


@pytest.mark.parametrize(
    ("above", "watched"),
    [
        ([["python", "-u", "-m", "deepspeed.launcher.launch", "x"], ["python", "/bin/deepspeed", "x"]], 2),
        ([["/v/python3", "/v/bin/torchrun", "--standalone", "t.py"], ["bash"]], 1),
        ([["python", "-m", "torch.distributed.run", "t.py"], ["torchrun"]], 2),
        ([["python", "-m", "torch.distributed.launch", "t.py"]], 1),
        ([["python", "-m", "accelerate.commands.launch", "t.py"]], 1),
        ([["python", "-m", "accelerate.commands.accelerate_cli", "launch", "t.py"]], 1),
        ([["python", "-X", "faulthandler", "/v/bin/torchrun", "t.py"], ["python", "-Xdev", "/bin/ds"]], 2),
        ([["python", "-W", "ignore", "-um", "torch.distributed.run", "t.py"]], 1),
        ([["python", "--check-hash-based-pycs", "never", "-mtorch.distributed.run", "t.py"]], 1),
        ([["bash", "-c", "deepspeed t.py"], ["python", "/bin/deepspeed"]], 0),
        ([["python", "-c", "pass", "torchrun"]], 0),
        ([["python", "mine.py", "-m", "accelerate"]], 0),
        ([["python", "-m", "accelerated.x"]], 0),
        ([["python", "-X"]], 0),
        ([["python", "/mine/deepspeed_all.py"]], 0),
        ([["python", "-m"]], 0),
        ([], 0),
    ],
)
def test_launchers_are_told_from_shells(above: list[list[str]], watched: int, tmp_path: Path) -> None:
    process(tmp_path, 100, 101 if above else 1, "python", "train.py")
    for place, command in enumerate(above):
        process(tmp_path, 101 + place, 102 + place if place + 1 < len(above) else 1, *command)
    found = launchers(100, tmp_path)
    assert found == [Process(101 + place, "7") for place in range(watched)]
    assert not gone(found, tmp_path)
    for place in range(watched):
        process(tmp_path, 101 + place, 1, "python", state="Z")
        assert gone(found, tmp_path)  # dead, and not waited for
        process(tmp_path, 101 + place, 1, "python", begun=8)
        assert gone(found, tmp_path)  # another process of that number
        process(tmp_path, 101 + place, 1, "python")
    assert not gone(found, tmp_path)


def test_a_real_launcher_is_found_and_missed(tmp_path: Path) -> None:
    program = tmp_path / "deepspeed"
    program.write_text(
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], start_new_session=True)\n"
    )
    code = (
        "import sys, time\n"
        "from diffcore.training.guards.launchers import gone, launchers\n"
        "watched = launchers()\n"
        "print(len(watched), gone(watched), flush=True)\n"
        "sys.stdin.readline()\n"
        "print(gone(watched), flush=True)\n"
    )
    command = [sys.executable, str(program), code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as started:
        assert started.stdin and started.stdout
        assert started.stdout.readline() == "1 False\n"
        started.kill()
        started.wait(20)
        started.stdin.write("\n")
        started.stdin.flush()
        assert started.stdout.readline() == "True\n"


def test_a_rank_whose_launcher_is_gone_asks_for_the_end_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = StopFlag()
    try:
        monkeypatch.setattr(watchdog, "EVERY", 0.01)
        monkeypatch.setattr(watchdog, "launchers", lambda: [Process(os.getpid(), "another start")])
        asked: list[int] = []
        watching = watchdog.Watchdog(tmp_path, 0, 10, Guards(), lambda: (asked.append(1), stop.ask())[0])
        watching.beat(3)
        with watching:
            while not stop.signal:
                pass
            watching.beat(4)
        assert stop.signal == signal.SIGTERM and asked == [1]
        assert "the launcher of this run has ended" in capsys.readouterr().err
    finally:
        stop.restore()

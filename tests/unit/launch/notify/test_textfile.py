"""A run's figures for node_exporter: what it reads, whole, and no longer than the run's supervisor lives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffbase import ledger
from diffbase.files import REPOSITORY
from launch.ask import profile
from launch.notify import textfile
from launch.supervise.news import News
from tests.support.a_life import life_of, write_profile


def test_the_textfile_is_what_node_exporter_reads(tmp_path: Path) -> None:
    run = tmp_path / 'a "b" \\ c'
    run.mkdir()
    ledger.record(run, "start", steps=10, pid=1, host="x")
    ledger.beat(run, 3, 10, "train")
    line = {"step": 3, "train/samples": 12, "train/images_per_second": 8.0, "memory/process_mib": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    out = tmp_path / "x.prom"
    command = [sys.executable, "-m", "launch.notify.textfile", str(run), "--out", str(out), "--name", "n"]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=dict(os.environ))
    try:
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        figures = parse(out.read_text())
        assert out.stat().st_mode & 0o777 == 0o644
        assert {name: value for name, _, value in figures} == {
            "diffcore_step": 3.0, "diffcore_steps": 10.0, "diffcore_steps_per_second": 2.0,
            "diffcore_goodput_ratio": 0.0, "diffcore_memory_bytes": 2.0 * 2**20,
            "diffcore_checkpoint_step": 0.0, "diffcore_failed_attempts": 0.0,
            "diffcore_heartbeat_timestamp_seconds": figures[-1][2],
        }  # fmt: skip
        assert all(labels == {"run": str(run), "name": "n", "job": ""} for _, labels, _ in figures)
        child.terminate()
        assert child.wait(30) == 0 and not out.exists() and [p.name for p in tmp_path.iterdir()] == [run.name]
    finally:
        child.kill()
        child.wait()


def parse(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Prometheus' text format, strictly: HELP, TYPE, sample of one name after the other, a line end each."""
    lines = text.split("\n")
    assert lines.pop() == "" and len(lines) % 3 == 0
    found = []
    for i in range(0, len(lines), 3):
        name = lines[i].split(" ")[2]
        assert lines[i].startswith(f"# HELP {name} ") and lines[i + 1] == f"# TYPE {name} gauge"
        sample, value = lines[i + 2].rsplit(" ", 1)
        assert sample.startswith(name + "{") and sample.endswith("}")
        # Labels are quoted as JSON quotes, for these characters.
        pairs = sample[len(name) + 1 : -1].replace('",', '"\n').split("\n")
        found.append(
            (name, {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in pairs)}, float(value))
        )
    return found


ENDS_AT_ONCE = """
import os, subprocess, sys
from launch.supervise.news import _outlive_signals
flags = ["--out", sys.argv[2], "--seconds", "0.1", "--parent", str(os.getpid())]
command = [sys.executable, "-m", "launch.notify.textfile", sys.argv[1], *flags]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(subprocess.Popen(command, preexec_fn=_outlive_signals, **quiet).pid)
"""


def test_the_writer_ends_with_a_parent_that_ends_before_it_has_begun(tmp_path: Path) -> None:
    ledger.record(tmp_path, "start", steps=10)
    command = [sys.executable, "-c", ENDS_AT_ONCE, str(tmp_path), str(tmp_path / "x.prom")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120)
    pid = int(done.stdout)
    try:
        deadline = time.monotonic() + 60
        while runs(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runs(pid) and not (tmp_path / "x.prom").exists()
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def runs(pid: int) -> bool:
    """Whether it does; whoever takes up orphans need not wait for them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_folder_that_is_not_there_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            sys.exit(0)

    monkeypatch.setattr(textfile.time, "sleep", sleep)
    monkeypatch.setattr(textfile, "die_with_parent", lambda number: None)  # it is not this process's
    monkeypatch.setattr(textfile.signal, "signal", lambda number, handler: None)
    with pytest.raises(SystemExit):
        textfile.main([str(tmp_path), "--out", str(tmp_path / "none" / "x.prom"), "--seconds", "2"])
    said = capsys.readouterr().err
    assert looks == [2.0] * 3 and said.count("launch: prometheus: ") == 1 and "No such file" in said


def test_the_supervisor_starts_it_once_and_ends_it(tmp_path: Path) -> None:
    text = f"prometheus: {{folder: {tmp_path}, seconds: 1}}"
    life = life_of(tmp_path, profile.load(write_profile(tmp_path, text)))
    ledger.record(life.run_folder, "start", steps=10)
    out = tmp_path / "diffcore-site-7.prom"
    news = News(life)
    news.show_figures()
    child = news._figures
    news.show_figures()
    assert child is not None and news._figures is child
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "diffcore_step" in out.read_text()
    news.close()
    assert child.poll() == 0 and not out.exists()

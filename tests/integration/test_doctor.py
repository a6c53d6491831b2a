"""The doctor on this machine, as its user starts it; and a disk that is really full."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import REPOSITORY
from tests.support.faults.kit import can_mount, tiny_disk

COMMAND = [sys.executable, "-m", "launch.doctor"]


def doctor(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags, "--patience", "120"],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=400,
    )


def lines_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The first line of each name; the JSON is all there is on stdout."""
    tree = json.loads(done.stdout)
    assert set(tree) == {"version", "checks", "status"}
    assert (tree["version"], done.stderr) == (1, "")
    assert (tree["status"] == "bad") == (done.returncode == 1)
    assert done.returncode in (0, 1)
    found: dict[str, dict[str, Any]] = {}
    for line in tree["checks"]:
        assert set(line) == {"name", "status", "found", "todo"}
        assert (line["todo"] is None) == (line["status"] == "ok"), line
        assert "could not be checked" not in line["found"], line
        found.setdefault(line["name"], line)
    return found


def test_this_machine(packed: Path, tmp_path: Path) -> None:
    home = tmp_path / "people" / "zoe"
    home.mkdir(parents=True)
    secret = "a-value-that-nobody-may-see"
    env = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home), "HUB_TOKEN": secret}
    done = doctor(
        "--json", "--data", str(packed), "--cluster", "local", "--run", str(tmp_path / "new"), **env
    )
    lines = lines_of(done)
    for name in (
        "torch build",
        "communication",
        "engine.offload",
        "DeepSpeed",
        "data",
        "shard files",
        "reading",
    ):
        assert lines[name]["status"] == "ok", lines[name]
    assert lines["all-reduce"]["status"] == "ok", lines["all-reduce"]
    assert "GB/s" in lines["all-reduce"]["found"] or "1 process" in lines["all-reduce"]["found"]
    assert lines["disk: run"]["found"].startswith(f"{tmp_path}/new (not there yet)")
    assert lines["disk: temporary"]["found"].startswith("~: ")
    assert lines["disk: shard cache"]["found"].startswith("~/cache/diffcore/shards (not there yet)")
    assert str(home) not in done.stdout
    assert secret not in done.stdout
    for private in {getpass.getuser(), socket.gethostname()} - {"root", "localhost"}:
        words = done.stdout.replace("/", " ").replace('"', " ").split()
        assert private not in words
    # Nothing of ours is left behind; torch may make a folder for its compiler.
    assert [path for path in home.iterdir() if not path.name.startswith("torch")] == []


def test_faults_are_told_together(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(packed, copy)
    (copy / "train-000000.tar").unlink()
    lines = lines_of(
        doctor("--json", "--data", str(copy), "--cluster", "nowhere", "--run", str(copy / "index.json"))
    )
    assert lines["shard files"]["found"] == "train-000000.tar: missing"
    bad = {name for name, line in lines.items() if line["status"] == "bad"}
    assert bad >= {"shard files", "reading", "profile", "disk: run"}
    assert lines["all-reduce"]["status"] == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if not can_mount():
        pytest.skip("may not mount")
    with tiny_disk(tmp_path / "disk", 1) as disk:
        yield disk


def test_a_full_disk(small_disk: Path) -> None:
    from launch.doctor.disks import disk
    from launch.doctor.machine import SHARED_LOW, shared_memory

    (line,) = disk("disk", small_disk, 1.0, "make room")
    assert (line.status, line.found) == ("bad", f"{small_disk}: 0.0 GB free")
    (small_disk / "checkpoint").write_bytes(bytes(1 << 20))
    (line,) = disk("disk", small_disk / "run", 1.0, "make room")
    assert (line.status, line.found) == ("bad", f"cannot write in {small_disk}: No space left on device")
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint"]
    assert SHARED_LOW > 1 << 20
    (line,) = shared_memory(small_disk)
    assert line.status == "warn"  # bad where there are GPUs


def test_a_full_disk_in_the_report(small_disk: Path) -> None:
    (small_disk / "checkpoint").write_bytes(bytes(1 << 20))
    done = doctor("--run", str(small_disk))
    assert done.returncode == 1
    assert f"cannot write in {small_disk}: No space left on device" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 bad")

"""The fault kit does what it says, to real processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.faults import kit
from tests.support.faults.kit import (
    CALLS,
    NOBODY,
    Faults,
    as_stranger,
    clock,
    closed,
    fail,
    few_descriptors,
    low_memory,
    root,
    short,
    slow,
    tiny_disk,
    why_not,
    without_home,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"LEFT OUT: {why_not()}; make system-test")


def python(code: str, **how: object) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


TRY = """
import fcntl, mmap, os, sys
path, call = sys.argv[1:]
file = os.open(path, os.O_RDWR) if call not in ("open", "list") else -1
def one():
    match call:
        case "open": os.close(os.open(path, os.O_RDONLY))
        case "read": return len(os.pread(file, 8, 0))
        case "write": return os.write(file, b"12345678")
        case "sync": os.fsync(file)
        case "stat": os.stat(path)
        case "lstat": os.lstat(path)
        case "fstat": os.fstat(file)
        case "room": os.posix_fallocate(file, 0, 8)
        case "map": mmap.mmap(file, 8)
        case "list": os.listdir(os.path.dirname(path) + "/" + os.path.basename(path) + ".d")
        case "rename": os.rename(path, path)
        case "lock": fcntl.flock(file, fcntl.LOCK_EX)
    return 8
out = []
for _ in range(4):
    try:
        out.append(one())
    except OSError as error:
        out.append(-error.errno)
print(out)
"""


KINDS = {"lstat": "stat", "fstat": "stat", "room": "write"}
"""Calls that a rule for another one is for."""


@pytest.mark.parametrize("call", [*CALLS, *KINDS])
def test_chosen_calls_on_chosen_files_fail_and_pass(tmp_path: Path, call: str) -> None:
    for name in ("this.bin", "that.bin"):
        (tmp_path / name).write_bytes(b"x" * 100)
        (tmp_path / f"{name}.d").mkdir()
    rule = fail(KINDS.get(call, call), errno.ESTALE, "this.bin", after=1, times=2)
    env = os.environ | Faults(tmp_path).env(rule)
    found = {
        name: subprocess.run(
            [sys.executable, "-c", TRY, str(tmp_path / name), call], env=env, capture_output=True, text=True
        ).stdout.strip()
        for name in ("this.bin", "that.bin")
    }
    bad = -errno.ESTALE
    assert found == {"this.bin": str([8, bad, bad, 8]), "that.bin": str([8] * 4)}


def test_short_writes_and_reads(tmp_path: Path) -> None:
    (tmp_path / "this.bin").write_bytes(b"x" * 100)
    for call in ("write", "read"):
        env = os.environ | Faults(tmp_path).env(short(call, "this.bin", times=1))
        command = [sys.executable, "-c", TRY, str(tmp_path / "this.bin"), call]
        assert subprocess.run(command, env=env, capture_output=True, text=True).stdout == "[4, 8, 8, 8]\n"


def test_a_slow_disk(tmp_path: Path) -> None:
    (tmp_path / "this.bin").write_bytes(b"x" * 100)
    code = (
        "import os,time; f=os.open(r'%s',0); t=time.monotonic(); os.pread(f,1,0); print(time.monotonic()-t)"
    )
    env = os.environ | Faults(tmp_path).env(slow("read", 0.3, "this.bin"))
    assert float(python(code % (tmp_path / "this.bin"), env=env)) >= 0.3


def test_the_wall_clock_jumps_alone(tmp_path: Path) -> None:
    code = "import time; print(time.time(), time.monotonic())"
    wall, steady = (float(word) for word in python(code).split())
    env = os.environ | Faults(tmp_path).env(clock(86400))
    later, still = (float(word) for word in python(code, env=env).split())
    assert later - wall >= 86400 and still - steady < 80000


def test_limits_of_a_process() -> None:
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[0], r.getrlimit(r.RLIMIT_AS)[0] >> 20)"
    assert python(code, preexec_fn=few_descriptors(40)).split()[0] == "40"
    assert python(code, preexec_fn=low_memory(500)).split()[1] == "500"


def test_closed_output() -> None:
    code = "import os, sys; sys.exit(3 * (sys.stdout is None) + 4 * (sys.stderr is None))"
    assert subprocess.run(closed([sys.executable, "-c", code], 1)).returncode == 3
    assert subprocess.run(closed([sys.executable, "-c", code], 1, 2)).returncode == 7


@pytest.mark.skipif(not root(), reason="only root is other users")
def test_a_stranger_and_one_without_a_home() -> None:
    env = without_home(dict(os.environ))
    done = subprocess.run(
        ["sh", "-c", 'id -u; echo "[$HOME]"'],
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        **as_stranger(),
    )
    assert done.stdout == "65534\n[]\n"
    code = """
import os, pwd
try:
    print(pwd.getpwuid(os.getuid()))
except KeyError:
    print("nobody knows", os.getuid())
"""
    command = ["/usr/bin/env", "python3", "-c", code]
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, **as_stranger(NOBODY))
    assert done.stdout == f"nobody knows {NOBODY}\n", done.stderr


def test_without_a_compiler_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kit._built.cache_clear()
    assert why_not() == "no C compiler (cc)"
    (tmp_path / "cc").write_text("#!/bin/sh\necho no stdio.h >&2\nexit 1\n")
    (tmp_path / "cc").chmod(0o755)
    kit._built.cache_clear()
    assert why_not() == "cc cannot build the shim: no stdio.h"
    kit._built.cache_clear()


@pytest.mark.skipif(not root(), reason="only root mounts disks")
def test_a_tiny_disk_is_soon_full(tmp_path: Path) -> None:
    try:
        with tiny_disk(tmp_path / "disk", 0.5) as disk, pytest.raises(OSError, match="No space left"):
            (disk / "x").write_bytes(bytes(1 << 20))
    except OSError as error:
        pytest.skip(f"LEFT OUT: no disk can be mounted here ({error})")
    assert not list((tmp_path / "disk").iterdir())

"""Disks, shared memory, locale, limits, compiler and DeepSpeed: well, and each of its faults."""

from __future__ import annotations

import errno
import locale
import os
import resource
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from diffcore.engine import operators
from launch.doctor import engine, machine
from launch.doctor.disks import disk, temporary_folder
from launch.doctor.finding import Finding
from launch.supervise import preflight

GB = 10**9
Usage = namedtuple("Usage", "total used free")


def free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GB, 0, size))


def looked_at(folder: Path) -> Finding:
    (line,) = disk("disk", folder, 2.0, "make room")
    return line


@pytest.mark.parametrize(
    ("size", "status"), [(50 * GB, "ok"), (2 * GB, "ok"), (GB, "warn"), (GB // 20, "bad"), (0, "bad")]
)
def test_free_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int, status: str) -> None:
    free(monkeypatch, size)
    line = looked_at(tmp_path)
    assert line.status == status
    assert f"{size / 1e9:.1f} GB free" in line.found
    assert line.todo == (None if status == "ok" else "make room")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_a_file_is_bad(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    free(monkeypatch, 50 * GB)
    monkeypatch.setattr(preflight.os, "fsync", full)
    line = looked_at(tmp_path)
    assert line.status == "bad"
    assert line.found == f"cannot write in {tmp_path}: Disk quota exceeded"


def test_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    line = looked_at(tmp_path / "runs" / "new")
    assert line.status in ("ok", "warn")
    assert f"{tmp_path}/runs/new (not there yet)" in line.found
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_bad(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    line = looked_at(tmp_path / "runs")
    assert line.status == "bad"
    assert "Not a directory" in line.found


def test_the_temporary_folder_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    # tempfile would answer with another one where this one is full or missing.
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    assert temporary_folder() == Path("/no/such/folder")
    monkeypatch.delenv("TMPDIR")
    assert temporary_folder() == Path("/tmp")


@pytest.mark.parametrize(
    ("size", "gpus", "status"),
    [
        (8 * GB, 8, "ok"),
        (200_000_000, 2, "warn"),
        (64 << 20, 0, "warn"),
        (64 << 20, 1, "warn"),
        (64 << 20, 2, "bad"),
    ],
)
def test_shared_memory(monkeypatch: pytest.MonkeyPatch, size: int, gpus: int, status: str) -> None:
    free(monkeypatch, size)
    monkeypatch.setattr(machine, "count_gpus", lambda: gpus)
    (line,) = machine.shared_memory()
    assert line.status == status
    if status != "ok":
        assert "NCCL" in line.found
        assert "--shm-size" in str(line.todo)


def test_no_shared_memory_is_bad(tmp_path: Path) -> None:
    (line,) = machine.shared_memory(tmp_path / "none")
    assert line.status == "bad"


@pytest.mark.parametrize(
    ("encoding", "status"),
    [("UTF-8", "ok"), ("utf8", "ok"), ("ANSI_X3.4-1968", "warn"), ("ISO-8859-1", "warn")],
)
def test_locale(monkeypatch: pytest.MonkeyPatch, encoding: str, status: str) -> None:
    monkeypatch.setattr(locale, "getpreferredencoding", lambda _: encoding)
    (line,) = machine.text_encoding()
    assert line.status == status


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int = -1) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))


@pytest.mark.parametrize(
    ("soft", "status"), [(-1, "ok"), (1024, "ok"), (512, "warn"), (128, "bad"), (0, "bad")]
)
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, status: str) -> None:
    limited(monkeypatch, soft, 2000)
    (line,) = machine.open_files()
    assert line.status == status
    if status != "ok":
        assert line.todo == "ulimit -n 2000"  # no more than may be asked for
        assert "keeps 128 open" in line.found


@pytest.mark.parametrize(
    ("soft", "adapters", "status"),
    [(8 << 20, 0, "ok"), (8 << 20, 1, "warn"), (-1, 1, "ok"), (2 * GB, 1, "ok"), (-1, 0, "ok")],
)
def test_locked_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, soft: int, adapters: int, status: str
) -> None:
    monkeypatch.setattr(machine, "INFINIBAND", tmp_path)
    for i in range(adapters):
        (tmp_path / f"mlx5_{i}").mkdir()
    limited(monkeypatch, soft)
    (line,) = machine.locked_memory()
    assert line.status == status


@pytest.mark.parametrize(("soft", "status"), [(-1, "ok"), (4096, "ok"), (200, "warn")])
def test_processes(monkeypatch: pytest.MonkeyPatch, soft: int, status: str) -> None:
    limited(monkeypatch, soft)
    (line,) = machine.processes()
    assert line.status == status


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (line,) = engine.compiler()
    assert (line.status, line.found) == ("warn", "no g++; engine.compile needs one; all else works")
    command(tmp_path, "g++", "exit 0")
    (line,) = engine.compiler()
    assert line.status == "ok"
    command(tmp_path, "g++", "echo 'x.cc:1:10: fatal error: Python.h: No such file or directory' >&2; exit 1")
    (line,) = engine.compiler()
    assert line.status == "warn"
    assert "fatal error: Python.h" in line.found
    assert "python3-dev" in str(line.todo)


def test_another_compiler_with_words_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command(tmp_path, "wrapper", 'echo "$@" > ' + str(tmp_path / "called"))
    monkeypatch.setenv("CXX", f"{tmp_path / 'wrapper'} real++")
    (line,) = engine.compiler()
    assert line.status == "ok"
    assert (tmp_path / "called").read_text().startswith("real++ -x c++ -fsyntax-only")


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_the_compiler_of_this_machine_reads_the_headers_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(engine.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    (line,) = engine.compiler()
    assert "Python.h" in line.found
    (tmp_path / "Python.h").write_text("int well;\n")
    (line,) = engine.compiler()
    assert line.status == "ok"


def test_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {line.name: line for line in engine.deepspeed()}
    assert [line.status for line in lines.values()] == ["ok", "ok"]
    assert "cpu_adam" in lines["DeepSpeed"].found or not shutil.which("g++")

    def no_kernel(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("`fused=True` requires")

    monkeypatch.setitem(operators.PARTITIONED, "adamw", no_kernel)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    lines = {line.name: line for line in engine.deepspeed()}
    assert [line.status for line in lines.values()] == ["bad", "bad"]
    assert "`fused=True` requires" in lines["engine.offload"].found
    assert "cannot be imported" in lines["DeepSpeed"].found


def test_the_offloaded_step_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through the optimizer that the engine takes under ZeRO, in the form that it takes."""
    asked = []

    class Watched(torch.optim.AdamW):
        def step(self, closure: object = None) -> None:
            before = self.param_groups[0]["params"][0].detach().clone()
            super().step()
            asked.append((self.defaults["fused"], bool((before != self.param_groups[0]["params"][0]).all())))

    monkeypatch.setitem(operators.PARTITIONED, "adamw", Watched)
    operators.offloaded_step()
    assert asked == [(True, True)]
    assert os.environ["DS_ACCELERATOR"] == "cpu"

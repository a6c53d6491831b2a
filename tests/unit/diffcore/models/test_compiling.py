"""engine.compile: what auto becomes on which machine, and what a machine that cannot compile is told."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor
from torch.utils import _triton

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure, tree
from diffcore.engine.ranks import World
from diffcore.models import compiling

DEMO = REPOSITORY / "configs" / "demo.yaml"
CPU, GPU = (World(0, 1, 0, torch.device(kind)) for kind in ("cpu", "cuda"))


def config(compile_: str, zero: int = 1) -> tree.Config:
    return configure.load(DEMO, {"engine": {"compile": compile_, "zero": zero}})


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine that looks like one with a GPU and all that compiling for it needs."""
    tmp_path.chmod(0o700)
    for name in ("gcc", "g++"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name).chmod(0o700)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_triton, "has_triton", lambda: True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with inductor.patch({"cpp.cxx": (str(tmp_path / "g++"),)}):
        yield monkeypatch


def test_auto_is_on_where_there_is_a_gpu_and_all_that_it_needs(able: pytest.MonkeyPatch) -> None:
    settled, lines = models.settled(config("auto"), GPU)
    assert (settled, lines) == (config("on"), ["engine.compile auto is on"])


def test_auto_is_off_on_a_cpu_whatever_it_can_do(able: pytest.MonkeyPatch) -> None:
    settled, lines = models.settled(config("auto"), CPU)
    assert (settled, lines) == (config("off"), ["engine.compile auto is off (rank 0: there is no GPU)"])


@pytest.mark.parametrize(
    ("lacking", "why"),
    [
        ("zero", "ZeRO-3 cannot be compiled"),
        ("triton", "Triton is not there"),
        ("CC", "there is no C compiler"),
        ("gcc", "there is no C compiler"),
        ("g++", r"there is no C\+\+ compiler"),
        ("Python.h", r"Python\.h of Python's development files is missing"),
        ("cache", r"rank 0: \S*cache "),
    ],
)
def test_auto_is_off_where_anything_is_lacking(
    lacking: str, why: str, able: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if lacking == "triton":
        able.setattr(_triton, "has_triton", lambda: False)
    elif lacking == "CC":
        able.setenv("CC", "no-such-compiler")
    elif lacking == "cache":
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(0o777)
    elif lacking != "zero":
        (tmp_path / lacking).unlink()
    zero = 3 if lacking == "zero" else 1
    settled, (line,) = models.settled(config("auto", zero), GPU)
    assert settled == config("off", zero)
    assert line.startswith("engine.compile auto is off (rank 0: ")
    assert re.search(why, line)


def test_one_rank_that_cannot_compile_has_all_do_without(able: pytest.MonkeyPatch) -> None:
    able.setattr(compiling, "gather", lambda mine, world: [mine, None, "there is no C compiler"])
    settled, lines = models.settled(config("auto"), GPU)
    assert settled == config("off")
    assert lines == ["engine.compile auto is off (rank 2: there is no C compiler)"]


@pytest.mark.parametrize("given", ["on", "off"])
def test_what_is_said_is_neither_changed_nor_asked_of_others(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "gather", None)
    assert models.settled(config(given), GPU) == (config(given), [])


def test_on_without_a_compiler_is_one_line() -> None:
    missing = inductor.patch({"cpp.cxx": ("no-such-compiler",)})
    with missing, pytest.raises(InputError, match=r"engine\.compile: there is no C\+\+ compiler"):
        models.prepare(nn.Linear(1, 1), tree.Engine(compile="on"))

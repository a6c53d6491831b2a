"""Tiny Cartoon Sets: a few dozen 12 x 12 avatars, made and packed in milliseconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import pytest

from diffbase.cli import run
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.sources.cartoon_csv import format_csv
from tests.support.tiny_set import Command, labels_of, png_of


class MakeSource(Protocol):
    def __call__(self, folder: Path, keys: Iterable[int], *, nested: bool = False) -> Path: ...


@pytest.fixture(scope="session")
def make_source() -> MakeSource:
    """``make_source(folder, numbers)`` writes csN.png and csN.csv for each number."""

    def make(folder: Path, keys: Iterable[int], *, nested: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number in keys:
            place = folder / str(number % 10) if nested else folder
            place.mkdir(exist_ok=True)
            (place / f"cs{number}.png").write_bytes(png_of(f"cs{number}"))
            (place / f"cs{number}.csv").write_text(format_csv(labels_of(f"cs{number}")))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Settings]:
    """Settings that suit the 12 x 12 avatars."""
    return lambda **given: Settings(**{"size": 4, "crop": 8, "shard_size": 7, "val": 0.2, **given})


@pytest.fixture(scope="session")
def packed(
    tmp_path_factory: pytest.TempPathFactory, make_source: MakeSource, tiny: Callable[..., Settings]
) -> Path:
    """Forty avatars packed, for tests that only read."""
    folder = tmp_path_factory.mktemp("packed")
    pack(make_source(folder / "source", range(40)), folder / "out", tiny())
    return folder / "out"


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    """The packed avatars, to damage."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """``command(main, *arguments)`` runs a command line here: exit code, stdout and stderr."""

    def call(main: Callable[[list[str]], None], *arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            run(lambda: main([str(argument) for argument in arguments]))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        told = capsys.readouterr()
        return code, told.out, told.err

    return call

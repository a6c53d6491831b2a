"""Saving where the disk fails: told, tried again, and never lost in silence."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffbase import ledger
from diffcore.engine.ranks import World
from diffcore.runs import saver
from diffcore.runs.checkpoint import State
from diffcore.runs.saver import Saver


def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: list[BaseException | None]) -> Saver:
    """A saver of one rank whose writes end so, one after the other."""
    monkeypatch.setattr(saver, "side_group", lambda: None)
    made = Saver(tmp_path, 2, World(0, 1, 0, torch.device("cpu")))

    def write(folder: Path, *_: Any) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "half").touch()
        if (error := failing.pop(0)) is not None:
            raise error
        return {}

    monkeypatch.setattr(saver, "write_shard", write)
    monkeypatch.setattr(saver, "finish", lambda *_: None)
    return made


class Empty:
    def masters(self) -> list[torch.Tensor]:
        return []

    def moments(self) -> dict[str, list[torch.Tensor]]:
        return {}

    def parts(self, shards: object) -> Iterator[Any]:
        return iter(())


def begin(made: Saver, step: int) -> None:
    empty: Any = Empty()
    empty.shards = []
    made.save(State(step, step, step, {}, {}, 1, 1, "fp32", "unknown", {}), empty, empty)


FULL = OSError(errno.ENOSPC, "No space left on device", "shard")


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_third_in_a_row_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = saves(tmp_path, monkeypatch, [FULL, FULL, None, FULL, FULL, FULL])
    settled = []
    for step in range(1, 6):
        begin(made, step)
        settled.append(made.settle())
    assert settled == [True, True, False, True, True]
    begin(made, 6)
    with pytest.raises(OSError, match="No space left"):
        made.settle()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "checkpoint of step 1 not written (1 in a row): shard: No space left on device (checkpoint, rank 0)"
    )
    failed = [e["step"] for e in ledger.events(tmp_path) if e["event"] == "save_failed"]
    assert failed == [1, 2, 4, 5, 6] and len(said) == 5
    assert not list((tmp_path / "checkpoints").glob(".step-0000000[12456].tmp"))  # they take room


def test_the_last_checkpoint_is_never_lost_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saves(tmp_path, monkeypatch, [FULL])
    begin(made, 1)
    with pytest.raises(OSError, match="No space left"):
        made.wait()


def test_what_is_no_disks_fault_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saves(tmp_path, monkeypatch, [ZeroDivisionError("a bug")])
    begin(made, 1)
    with pytest.raises(ZeroDivisionError):
        made.settle()

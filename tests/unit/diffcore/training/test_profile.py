"""The memory snapshot of chosen steps, with torch's two functions replaced: there is no GPU here."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.engine.ranks import World
from diffcore.training.meters.step_profile import MOST_ENTRIES, StepProfile

DEMO = REPOSITORY / "configs" / "demo.yaml"


class Allocator:
    """torch.cuda.memory, as far as it records: what it was asked for, and whether it records still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recording, self.began = False, list[dict[str, Any]]()
        self.full = False
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", self.record)
        monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", self.dump)

    def record(self, enabled: str | None = "all", **options: Any) -> None:
        self.recording = enabled is not None
        if self.recording:
            self.began.append(options)

    def dump(self, file: str) -> None:
        assert self.recording  # its history is gone once it records no more
        if self.full:
            raise OSError(28, "No space left on device")
        Path(file).write_bytes(b"history")


def profile(run: Path, steps: list[int] | None, device: str = "cuda", rank: int = 0) -> StepProfile:
    config = configure.load(DEMO, {"run": str(run), "train": {"memory_snapshot": steps}})
    return StepProfile(config, World(rank, 2, rank, torch.device(device)))


@given(first=st.integers(1, 5), length=st.integers(0, 4), start=st.integers(1, 8), end=st.integers(1, 12))
def test_the_chosen_steps_and_no_others_are_recorded(
    tmp_path_factory: pytest.TempPathFactory, first: int, length: int, start: int, end: int
) -> None:
    """Of a sitting from step ``start`` to ``end``, both included."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        allocator, run = Allocator(monkeypatch), tmp_path_factory.mktemp("run")
        steps, recorded, lines = profile(run, [first, first + length]), [], list[str]()
        for step in range(start, end + 1):
            steps.before(step)
            if allocator.recording:
                recorded.append(step)
            lines += steps.after(step)
        lines += steps.close()
        assert not allocator.recording
    wanted = list(range(first, min(first + length, end) + 1)) if start <= first <= end else []
    assert recorded == wanted
    files = [run / "profile" / f"memory-{wanted[0]}-{wanted[-1]}.pickle"] if wanted else []
    assert sorted(run.rglob("*.pickle")) == files
    assert [line.split()[1] for line in lines] == [str(file) for file in files]


def test_a_snapshot_is_its_owners_alone_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, steps = Allocator(monkeypatch), profile(tmp_path, [1, 1])
    steps.before(1)
    (line,) = steps.after(1)
    assert allocator.began == [{"stacks": "python", "max_entries": MOST_ENTRIES}]
    file = tmp_path / "profile" / "memory-1-1.pickle"
    assert line == f"profile: {file} (https://pytorch.org/memory_viz shows it)"
    assert file.read_bytes() == b"history" and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_full_disk_ends_the_recording_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, steps = Allocator(monkeypatch), profile(tmp_path, [1, 2])
    steps.before(1)
    allocator.full = True
    with pytest.raises(OSError, match="No space left"):
        steps.close()
    assert not allocator.recording
    assert steps.close() == []


def test_a_step_without_memory_has_its_snapshot_up_to_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Allocator(monkeypatch)
    steps = profile(tmp_path, [3, 9])
    for step in (3, 4):
        steps.before(step)
        steps.after(step)
    steps.before(5)  # which never ends
    (line,) = steps.close()
    assert "memory-3-4.pickle" in line


def test_a_cpu_is_told_that_it_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator, steps = Allocator(monkeypatch), profile(tmp_path, [1, 1], device="cpu")
    (note,) = steps.notes
    assert note.startswith("train.memory_snapshot: ")
    steps.before(1)
    assert not steps.after(1) and not steps.close() and not allocator.began
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize(("steps", "rank"), [(None, 0), ([1, 1], 1)])
def test_others_record_nothing_and_say_nothing(
    steps: list[int] | None, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocator, quiet = Allocator(monkeypatch), profile(tmp_path, steps, rank=rank)
    quiet.before(1)
    assert not quiet.after(1) and not quiet.close() and not quiet.notes and not allocator.began
    assert profile(tmp_path, steps, "cpu", rank).notes == []

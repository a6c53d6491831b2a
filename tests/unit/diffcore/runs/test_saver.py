"""Saving where the disk fails: told, tried again, and never lost in silence."""

from __future__ import annotations

import errno
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase import ledger
from diffbase.cli import InputError
from diffcore.engine.ranks import World
from diffcore.runs import checkpoint, saver
from diffcore.runs.saver import Saver
from diffcore.runs.stored.record import KINDS, State
from diffcore.runs.stored.shards import Shards
from tests.support.ranks import run_ranks


def saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: list[BaseException | None]) -> Saver:
    """A saver of one rank whose writes end so, one after the other."""
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
    parameters = 0

    def masters(self) -> list[torch.Tensor]:
        return []

    def moments(self) -> dict[str, list[torch.Tensor]]:
        return {}

    def averages(self) -> dict[str, list[torch.Tensor]]:
        return {"ema": self.shards}

    def parts(self, shards: object) -> Iterator[Any]:
        return iter(())


def begin(made: Saver, step: int, after: Callable[[], None] = lambda: None) -> None:
    empty: Any = Empty()
    empty.shards = []
    made.save(State(step, step, step, {}, {}, 1, 1, "fp32", "unknown", {}), empty, empty, None, after)


def test_what_comes_after_a_checkpoint_holds_nothing_up_and_is_left_out_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, go, called = saves(tmp_path, monkeypatch, [None, FULL, None]), threading.Event(), list[int]()
    for step in (1, 2, 3):

        def after(step: int = step) -> None:
            assert go.wait(60)
            called.append(step)

        go.clear()
        begin(made, step, after)
        assert step not in called  # and yet the loop is back
        go.set()
        assert made.settle() == (step == 2)
    assert called == [1, 3]


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


def test_nothing_is_completed_in_a_folder_that_is_another_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = saves(tmp_path, monkeypatch, [None, None])
    finished: list[State] = []
    monkeypatch.setattr(saver, "finish", lambda run, state, manifest: finished.append(state))
    begin(made, 1)
    made.wait()

    def followed() -> None:
        raise InputError("followed by another")

    monkeypatch.setattr(made, "_still_ours", followed)
    begin(made, 2)
    with pytest.raises(InputError, match="followed by another"):
        made.settle()
    assert [state.step for state in finished] == [1]


def test_what_is_no_disks_fault_is_raised_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saves(tmp_path, monkeypatch, [ZeroDivisionError("a bug")])
    begin(made, 1)
    with pytest.raises(ZeroDivisionError):
        made.settle()


# --- neighbours in one file ---

SIZES = {"a": 37, "b": 5, "c": 64}


def parts_of(world: int, *, flat: bool) -> list[dict[str, tuple[int, int]]]:
    """(start, count) by parameter of every rank: ranges of all parameters in a row, as under ZeRO-1 and 2, or
    equal parts of each, as under ZeRO-3."""
    found: list[dict[str, tuple[int, int]]] = [{} for _ in range(world)]
    begin, share = 0, -(-sum(SIZES.values()) // world)
    for name, size in SIZES.items():
        for rank in range(world):
            step = share if flat else -(-size // world)
            low, high = rank * step - begin * flat, (rank + 1) * step - begin * flat
            if (low := max(low, 0)) < (high := min(high, size)):
                found[rank][name] = low, high - low
        begin += size
    return found


@settings(max_examples=30)
@given(world=st.integers(1, 12), together=st.integers(1, 12), flat=st.booleans())
def test_neighbours_write_one_file_that_has_all_their_parts(
    tmp_path_factory: pytest.TempPathFactory, world: int, together: int, flat: bool
) -> None:
    run = tmp_path_factory.mktemp("run")
    values = {
        key: torch.randn(size) for kind in KINDS for name, size in SIZES.items() for key in [f"{kind}/{name}"]
    }
    manifest: dict[str, Any] = {}
    for rank, tensors, starts in together_of(parts_of(world, flat=flat), together, values):
        place = World(rank // together, -(-world // together), 0, torch.device("cpu"))
        manifest |= saver.write_shard(saver.temporary_of(run, 5), place, tensors, starts)
    state = State(
        5, 20, 5, {}, {}, world, 1, "fp32", "unknown", {name: [size] for name, size in SIZES.items()}
    )
    saver.finish(run, state, manifest)
    folder = checkpoint.folder_at(run, 5)
    assert len(list(folder.glob("shard-*"))) == -(-world // together) and checkpoint.check(folder) is None
    for key, value in values.items():
        assert torch.equal(Shards(folder).read(*key.split("/"), 0, len(value)), value)


def together_of(
    places: list[dict[str, tuple[int, int]]], together: int, values: dict[str, torch.Tensor]
) -> Iterator[tuple[int, dict[str, torch.Tensor], dict[str, int]]]:
    """(rank, tensors, starts) of those that write, in one process: the others have sent before they ask."""
    sent: dict[int, queue.SimpleQueue[bytes]] = defaultdict(queue.SimpleQueue)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saver, "receive_bytes", lambda source, _: bytearray(sent[source].get_nowait()))
        for rank in sorted(range(len(places)), key=lambda rank: rank % together == 0):
            patch.setattr(saver, "send_bytes", lambda data, to, _, rank=rank: sent[rank].put(bytes(data)))
            mine = {f"{kind}/{name}": at for kind in KINDS for name, at in places[rank].items()}
            tensors = {
                key: values[key][start : start + count].clone() for key, (start, count) in mine.items()
            }
            starts = {key: start for key, (start, _) in mine.items()}
            world = World(rank, len(places), 0, torch.device("cpu"))
            if (found := saver.collected(tensors, starts, world, together, None)) is not None:
                yield rank, *found
    assert all(box.empty() for box in sent.values())


@given(size=st.integers(0, 1 << 40), world=st.integers(1, 10_000))
def test_files_are_as_few_as_fill(size: int, world: int) -> None:
    together = saver.ranks_a_file(size, world)
    assert 1 <= together <= world
    assert together == world or together * size >= saver.FILL * world
    assert together == 1 or (together - 1) * size < saver.FILL * world  # one rank less does not fill it


class Part(Empty):
    """Of one of some ranks under ZeRO-3: its equal part of everything."""

    def __init__(self, world: World) -> None:
        self.places = parts_of(world.size, flat=False)[world.rank]
        self.parameters = sum(SIZES.values())
        self.shards = self.of("ema")

    def of(self, kind: str) -> list[torch.Tensor]:
        return [whole(kind, name)[at : at + count] for name, (at, count) in self.places.items()]

    def masters(self) -> list[torch.Tensor]:
        return self.of("weights")

    def moments(self) -> dict[str, list[torch.Tensor]]:
        return {kind: self.of(kind) for kind in KINDS[2:]}

    def parts(self, shards: Any) -> Iterator[Any]:
        for (name, (start, _)), shard in zip(self.places.items(), shards, strict=True):
            yield name, start, shard


def whole(kind: str, name: str) -> torch.Tensor:
    return torch.arange(SIZES[name]) + 1000.0 * KINDS.index(kind)


def save_twice(rank: int, ranks: int, run: Path) -> None:
    """One of the processes: its first save fails on the last rank that writes, the second is whole."""
    saver.FILL = 4 * 4 * sum(SIZES.values()) // 2  # two files
    where = f"file://{run}/meet"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=ranks)
    words = torch.distributed.FileStore(f"{run}/words", ranks)
    world = World(rank, ranks, rank, torch.device("cpu"), words)
    made, part, write = Saver(run, 2, world), Part(world), saver.write_shard
    outcomes = []
    for step in (1, 2):

        def failing(folder: Path, place: World, *given: Any, step: int = step) -> dict[str, Any]:
            if step == 1 and place.rank == 1:
                raise FULL
            return write(folder, place, *given)

        saver.write_shard = failing
        shapes = {name: [size] for name, size in SIZES.items()}
        any_part: Any = part
        made.save(State(step, step, step, {}, {}, ranks, 3, "fp32", "unknown", shapes), any_part, any_part)
        outcomes.append(made.settle())
    (run / f"{rank}").write_text(str(outcomes))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_write_two_files_and_all_hear_of_one_that_cannot(tmp_path: Path) -> None:
    ranks = 3
    run_ranks(save_twice, range(ranks), ranks, tmp_path, seconds=240)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(ranks)] == ["[True, False]"] * ranks
    [folder] = checkpoint.complete(tmp_path)
    assert folder.name == "step-00000002" and checkpoint.check(folder) is None
    assert len(list(folder.glob("shard-*-of-00002.safetensors"))) == 2
    for kind in KINDS:
        for name, value in checkpoint.read_weights(folder, kind).items():
            assert torch.equal(value, whole(kind, name))

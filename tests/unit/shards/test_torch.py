"""What a PyTorch loop sees: the reader's stream, whatever the ranks, the workers and the resumes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from diffbase.cli import InputError
from shards.order import ORDERS, TAILS
from shards.packing.packer import pack
from shards.positions.flip import flip
from shards.read import ShardReader
from shards.remote.cache import Cache
from shards.torch import ShardBatch, ShardDataset, ShardStream

BATCH = 12


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"):
        monkeypatch.delenv(name, raising=False)


def keys(batches: Any, count: int) -> list[list[str]]:
    return [list(batch.keys) for batch in islice(batches, count)]


def state_of(stream: ShardStream, step: int) -> dict[str, Any]:
    """The state of an iteration that is there."""
    return stream.state_at(step) | {"origin": step}


def dealt(stream: ShardStream, workers: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[ShardBatch]:
    """What a DataLoader of ``workers`` workers hands out, each being a copy that knows its number."""

    class Worker:
        num_workers = workers

        def __init__(self, number: int) -> None:
            self.id = number

    parts = []
    for number in range(workers):
        with monkeypatch.context() as patch:
            patch.setattr("shards.torch.get_worker_info", lambda number=number: Worker(number))
            parts.append(iter(stream))
    while True:
        yield from map(next, parts)


# --- the stream ---


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ranks_workers_and_resumes_share_out_the_readers_stream(packed: Path, data: st.DataObject) -> None:
    """Every step once, in the reader's order, where each leg of a run has another world and other workers."""
    order, tail = data.draw(st.sampled_from(list(ORDERS)), "order"), data.draw(st.sampled_from(TAILS), "tail")
    seed = data.draw(st.integers(0, 2**64 - 1), "seed")
    mirrored = data.draw(st.booleans(), "flip")
    made: dict[str, Any] = {"batch": BATCH, "seed": seed, "order": order, "tail": tail}
    begin, state = 0, None
    with ShardReader(packed, **made) as reader, pytest.MonkeyPatch.context() as monkeypatch:
        for _ in range(3):
            world = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]), "world")
            workers = data.draw(st.integers(0, 4), "workers")
            steps = data.draw(st.integers(0, 5), "steps")
            streams = [
                ShardStream(
                    packed, **made, flip=mirrored, ahead=data.draw(st.integers(0, 3)), rank=r, world=world
                )
                for r in range(world)
            ]
            if state is not None:
                for stream in streams:
                    stream.load_state_dict(state)
            ranks = [dealt(s, workers, monkeypatch) if workers else iter(s) for s in streams]
            for step in range(begin, begin + steps):
                parts = [next(rank) for rank in ranks]
                expected = reader.read(range(step * BATCH, (step + 1) * BATCH))
                if mirrored:
                    flip(expected.images, seed, expected.positions)
                images = torch.cat([part.images for part in parts])
                assert images.dtype == torch.uint8 and images.shape == (BATCH, 3, 4, 4)
                assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected.images)
                assert torch.cat([part.labels for part in parts]).tolist() == expected.labels.tolist()
                assert [key for part in parts for key in part.keys] == expected.keys
                assert torch.cat([part.positions for part in parts]).tolist() == expected.positions.tolist()
            begin += steps
            if not workers:
                assert all(s.state_dict() == state_of(streams[0], begin) for s in streams)
            state = json.loads(json.dumps(streams[-1].state_at(begin)))


def test_an_iteration_begins_where_the_stream_was_put(packed: Path) -> None:
    stream = ShardStream(packed, batch=BATCH)
    first = keys(stream, 5)
    assert keys(stream, 5) == first
    assert stream.state_dict() == state_of(stream, 5)
    stream.load_state_dict(stream.state_at(2))
    assert stream.state_dict() == state_of(stream, 2)
    assert keys(stream, 2) == first[2:4] == keys(stream, 2)
    stream.load_state_dict(stream.state_dict())  # where that iteration is: the next one goes on
    assert stream.state_dict() == state_of(stream, 4)
    assert keys(stream, 1) == first[4:]
    assert keys(stream, 3) == first[2:] == keys(stream, 3)


@pytest.mark.parametrize("encoding", ["png", "webp", "npy"])
def test_batches_in_any_encoding_are_the_same(
    tmp_path: Path, make_source: Any, tiny: Any, encoding: str, packed: Path
) -> None:
    pack(make_source(tmp_path / "source", range(40)), tmp_path / "out", tiny(image=encoding))
    for one, other in zip(
        islice(ShardStream(tmp_path / "out", batch=BATCH, flip=True), 3),
        islice(ShardStream(packed, batch=BATCH, flip=True), 3),
        strict=True,
    ):
        assert torch.equal(one.images, other.images) and one.keys == other.keys


def test_a_state_of_another_stream_is_refused(packed: Path) -> None:
    stream = ShardStream(packed, batch=BATCH)
    stream.load_state_dict(stream.state_at(7))
    state = stream.state_at(3)
    for changed, told in (
        ({"seed": 1}, "its seed is 1, here it is 0"),
        ({"batch": 24}, "its batch is 24, here it is 12"),
        ({"order": "block"}, "its order is 'block'"),
        ({"index": "0" * 64}, "its index is"),
        ({"split": "val"}, "its split is 'val'"),
        ({"flip": True}, "its flip is True, here it is False"),
        ({"position": 37}, "not a stream's state"),
        ({"position": -12}, "not a reader's state"),
        ({"position": "36"}, "not a reader's state"),
        ({"position": 12 * 2**60}, "not a stream's state"),
        ({"origin": 4}, "not a stream's state"),
        ({"origin": "3"}, "not a stream's state"),
        ({"origin": 0}, "the state of one worker"),
        ({"more": 1}, "not a reader's state"),
        ({1: 2}, "not a reader's state"),
    ):
        with pytest.raises(InputError, match=told):
            stream.load_state_dict(state | changed)
    for lacking in state:
        with pytest.raises(InputError):
            stream.load_state_dict({name: value for name, value in state.items() if name != lacking})
    for nothing in ({}, [], None, "x"):
        with pytest.raises(InputError):
            stream.load_state_dict(nothing)
    assert stream.state_dict() == state_of(stream, 7)  # as it was


def test_a_share_that_there_cannot_be_is_refused(packed: Path) -> None:
    for given_, told in (
        ({"batch": 0}, "batch is 0 for 1 rank; allowed: a multiple of 1"),
        ({"batch": 12, "rank": 0, "world": 5}, "batch is 12 for 5 ranks; allowed: a multiple of 5"),
        ({"batch": 12, "rank": 2, "world": 2}, "rank is 2 of world 2; allowed: 0 to 1"),
        ({"batch": 12, "rank": 2}, "rank is 2 and world None; allowed: both, or none"),
        ({"batch": 12, "rank": 0, "world": 0}, "world is 0; allowed: 1 or more"),
        ({"batch": 12, "rank": 0.0, "world": 1}, "rank is 0.0; allowed: whole numbers"),
        ({"batch": True}, "batch is True; allowed: whole numbers"),
        ({"batch": 4.0}, "batch is 4.0; allowed: whole numbers"),
        ({"batch": "4"}, "batch is '4'; allowed: whole numbers"),
        ({"batch": 12, "seed": None}, "seed is None; allowed: whole numbers"),
        ({"batch": 99, "tail": "drop"}, "tail drop"),
        ({"batch": 12, "split": "test"}, "allowed: train, val"),
    ):
        with pytest.raises(InputError, match=told):
            ShardStream(packed, **given_)
    with pytest.raises(ValueError, match="ahead is -1"):
        ShardStream(packed, batch=12, ahead=-1)
    with pytest.raises(
        TypeError, match="unexpected setting 'foo'; beside its own a stream has cache, on_error"
    ):
        ShardStream(packed, batch=12, foo=1)  # type: ignore[call-arg]
    for step, told in (
        (-1, "step is -1; allowed: 0 to 384307168202282324"),
        (1 << 62, "step is 4611686018427387904; allowed: 0 to "),
        (3.0, "step is 3.0; allowed: whole numbers"),
    ):
        with pytest.raises(InputError, match=told):
            ShardStream(packed, batch=12).state_at(step)  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_plain_ones_in_a_state(packed: Path, tmp_path: Path) -> None:
    one, two = np.int64(1), torch.tensor(2)
    stream = ShardStream(packed, batch=np.int64(12), seed=one, rank=one, world=two, flip=np.bool_(True))  # type: ignore[arg-type]
    plain = ShardStream(packed, batch=12, seed=1, rank=1, world=2, flip=True)
    for step in (np.int64(3), torch.tensor(3)):
        state = stream.state_at(step)  # type: ignore[arg-type]
        assert json.dumps(state) == json.dumps(plain.state_at(3))
        torch.save(state, tmp_path / "state.pt")
        stream.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert keys(stream, 2) == keys((plain.read(step) for step in (3, 4)), 2)


@pytest.mark.parametrize(
    "names", [("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")]
)
def test_the_share_is_sruns_or_mpiruns(
    names: tuple[str, str], packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(names, ("2", "3"), strict=True):
        monkeypatch.setenv(name, value)
    stream = ShardStream(packed, batch=12)
    assert (stream.rank, stream.world) == (2, 3)
    monkeypatch.setenv("WORLD_SIZE", "1")  # one alone, in a step of several
    stream = ShardStream(packed, batch=12)
    assert (stream.rank, stream.world) == (0, 1)


def test_the_share_is_the_launchers(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    stream = ShardStream(packed, batch=12)
    assert (stream.rank, stream.world) == (2, 3)
    assert stream.positions(5).tolist() == [68, 69, 70, 71]
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(InputError, match="RANK is '3'"):
        ShardStream(packed, batch=12)
    monkeypatch.delenv("RANK")
    with pytest.raises(InputError, match="RANK is missing: allowed are whole numbers from 0 to 2"):
        ShardStream(packed, batch=12)
    # torch.distributed knows better.
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert (ShardStream(packed, batch=12).rank, ShardStream(packed, batch=12).world) == (0, 1)
    finally:
        torch.distributed.destroy_process_group()


def test_a_pickled_stream_is_the_same_one(packed: Path, tmp_path: Path) -> None:
    stream = ShardStream(packed, batch=BATCH, rank=1, world=2, seed=5, flip=True, cache=Cache(tmp_path))
    stream.load_state_dict(stream.state_at(4))
    expected = keys(stream, 3)
    other = pickle.loads(pickle.dumps(stream))
    assert other.state_dict() == stream.state_dict() and (other.rank, other.world) == (1, 2)
    assert keys(other, 3) == expected
    assert len(pickle.loads(pickle.dumps(ShardDataset(packed)))) == len(ShardDataset(packed))


# --- by number ---


def test_samples_by_number(packed: Path) -> None:
    dataset = ShardDataset(packed, "train", threads=2)
    with ShardReader(packed, order="sequential") as reader:
        expected = reader.read(range(len(reader)))
    assert len(dataset) == len(expected.keys) and dataset.size == 4 and len(dataset.schema) == 18
    found = list(dataset)  # ends by IndexError
    assert [sample.key for sample in found] == expected.keys
    assert np.array_equal(torch.stack([s.image for s in found]).permute(0, 2, 3, 1).numpy(), expected.images)
    assert [s.labels.tolist() for s in found] == expected.labels.tolist()
    image, labels, key = dataset[np.int64(3)]
    assert key == dataset[3 - len(dataset)].key == expected.keys[3]
    assert image.dtype == torch.uint8 and labels.dtype == torch.int64
    for beyond in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[beyond]


def test_a_shuffled_loader_meets_every_sample_once(packed: Path) -> None:
    dataset = ShardDataset(packed)
    batches = list(DataLoader(dataset, batch_size=10, shuffle=True))
    assert batches[0].image.shape == (10, 3, 4, 4) and batches[0].labels.shape == (10, 18)
    assert sorted(key for batch in batches for key in batch.key) == sorted(sample.key for sample in dataset)


# --- torch's loaders, in processes ---


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_change_nothing(packed: Path, start: str) -> None:
    stream = ShardStream(packed, batch=BATCH, rank=1, world=2, flip=True)
    stream.load_state_dict(stream.state_at(3))
    expected = list(islice(stream, 7))
    for workers in (1, 2) if start == "fork" else (2,):
        loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=start)
        for batch, wanted in zip(islice(loader, 7), expected, strict=True):
            assert torch.equal(batch.images, wanted.images) and torch.equal(batch.labels, wanted.labels)
            assert batch.keys == wanted.keys and torch.equal(batch.positions, wanted.positions)


@pytest.mark.slow
def test_samples_by_number_from_workers(packed: Path) -> None:
    dataset = ShardDataset(packed)
    loader = DataLoader(dataset, batch_size=10, num_workers=2)
    assert [key for batch in loader for key in batch.key] == [sample.key for sample in dataset]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "start"), [(0, None), (2, "fork"), (2, "spawn")])
def test_a_stateful_loader_goes_on_at_any_step_and_world(
    packed: Path, workers: int, start: str | None
) -> None:
    """Steps 0 to 4 of two ranks, then the rest of one: together the reader's stream, each sample once."""

    def stream(rank: int, world: int) -> ShardStream:
        return ShardStream(packed, batch=BATCH, rank=rank, world=world, seed=9)

    def loader(stream: ShardStream) -> StatefulDataLoader:
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=start)

    with ShardReader(packed, batch=BATCH, seed=9) as reader:
        expected = [reader.read(range(k * BATCH, (k + 1) * BATCH)).keys for k in range(9)]
    for stop in (5,) if start == "spawn" else (0, 1, 4, 5):
        first, again = loader(stream(0, 2)), loader(stream(0, 1))
        parts = keys(first, stop), keys(stream(1, 2), stop)
        seen = [one + other for one, other in zip(*parts, strict=True)]
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + keys(again, 9 - stop) == expected


@pytest.mark.parametrize(
    ("workers", "persistent"),
    [(0, False), *(pytest.param(w, p, marks=pytest.mark.slow) for w in (1, 2) for p in (False, True))],
)
def test_a_loaders_state_is_for_its_next_iteration(packed: Path, workers: int, persistent: bool) -> None:
    """Then they begin where the stream was put, whatever the workers."""

    def loader() -> StatefulDataLoader:
        stream = ShardStream(packed, batch=BATCH)
        stream.load_state_dict(stream.state_at(1))
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers, persistent_workers=persistent)

    def steps(found: Any, count: int) -> list[int]:
        return [int(batch.positions[0]) // BATCH for batch in islice(found, count)]

    first, again, third = loader(), loader(), loader()
    assert steps(first, 2) == [1, 2]
    again.load_state_dict(first.state_dict())
    assert steps(again, 4) == [3, 4, 5, 6]
    third.load_state_dict(again.state_dict())  # once more, of a resumed iteration
    assert steps(third, 3) == [7, 8, 9]
    for _ in range(2):
        assert steps(again, 4) == [1, 2, 3, 4] == steps(third, 4)

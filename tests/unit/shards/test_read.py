"""The reader: an order that nothing but seed, epoch and position can change, and typed errors."""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards import order
from shards.codec.decode import BadSample, decode_image
from shards.codec.fast_decode import decoder
from shards.order import TAILS, ReaderState
from shards.packing.packer import pack
from shards.positions import streams
from shards.prefetch import prefetch
from shards.read import CorruptSampleError, ShardReader
from shards.schema import CARTOON_SET
from shards.table import Index
from tests.support.tiny_set import labels_of, png, row_of


@pytest.fixture(scope="session")
def packs(tmp_path_factory: pytest.TempPathFactory, make_source, tiny) -> list[Path]:
    """Fifty avatars in shards of several sizes."""
    folder = tmp_path_factory.mktemp("packs")
    source = make_source(folder / "source", range(50))
    for size in (1, 3, 8, 100):
        pack(source, folder / str(size), tiny(shard_size=size, val=0.0))
    return [folder / str(size) for size in (1, 3, 8, 100)]


# Order.


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_order_is_a_function_of_position(make_source, tiny, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 24), "count")
    world = data.draw(st.integers(1, 8), "world")
    micro = data.draw(st.integers(1, 4), "micro")
    seed = data.draw(st.integers(0, 2**64 - 1), "seed")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "out"
        chosen = tiny(shard_size=data.draw(st.integers(1, 9), "shard size"), val=0.0)
        pack(make_source(Path(name) / "source", range(count)), folder, chosen)
        with ShardReader(folder, seed=seed) as reader:
            stream = reader.read(range(3 * count)).keys
            everything = Counter(f"cs{n}" for n in range(count))
            for epoch in range(3):
                assert Counter(stream[epoch * count : (epoch + 1) * count]) == everything

            # Any world, any micro batch, from any resume point: by position, the same stream.
            resume = data.draw(st.integers(0, 2 * count), "resume")
            found: dict[int, str] = {}
            for rank in range(world):
                with ShardReader(folder, seed=seed) as other:
                    mine = np.arange(resume + rank, 3 * count, world)
                    for first in range(0, len(mine), micro):
                        batch = other.read(mine[first : first + micro])
                        found.update(zip(batch.positions.tolist(), batch.keys, strict=True))
            assert [found[position] for position in range(resume, 3 * count)] == stream[resume:]


def test_epochs_and_seeds_differ(packed: Path) -> None:
    orders = set()
    for seed in (0, 1):
        with ShardReader(packed, seed=seed) as reader:
            n = len(reader)
            orders |= {tuple(reader.sample_of(range(e * n, (e + 1) * n)).tolist()) for e in (0, 1, 5, 2**40)}
    assert len(orders) == 8


def test_sequential(packed: Path) -> None:
    with ShardReader(packed, "val", order="sequential") as reader:
        n = len(reader)
        batch = reader.read(range(2 * n))
        assert batch.keys[:n] == batch.keys[n:] == [reader.split.key(number) for number in range(n)]


def test_batch(packed: Path) -> None:
    with ShardReader(packed) as reader:
        assert reader.schema == CARTOON_SET and reader.size == 4
        assert reader.fingerprint == Index.load(packed).fingerprint
        batch = reader.read([5, 2, 1000, 5])
        assert batch.images.shape == (4, 4, 4, 3) and batch.images.dtype == np.uint8
        assert batch.labels.shape == (4, 18) and batch.labels.dtype == np.int64
        assert batch.positions.tolist() == [5, 2, 1000, 5]
        for key, row in zip(batch.keys, batch.labels.tolist(), strict=True):
            assert row == list(labels_of(key).values())
        assert (batch.images[0] == batch.images[3]).all()
        empty = reader.read([])
        assert empty.images.shape == (0, 4, 4, 3) and empty.keys == []


@pytest.mark.parametrize("positions", [[-1], [0.5], ["a"], [True], [[1]], [2**63], [2**70]])
def test_bad_positions(packed: Path, positions: list[object]) -> None:
    with ShardReader(packed) as reader, pytest.raises(ValueError, match="position"):
        reader.read(positions)


def test_bad_arguments(packed: Path, make_source, tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allowed: full, block, shards, sequential"):
        ShardReader(packed, order="random")
    with pytest.raises(ValueError, match="seed"):
        ShardReader(packed, seed=-1)
    with pytest.raises(InputError, match="allowed: train, val"):
        ShardReader(packed, "test")
    pack(make_source(tmp_path / "source", range(3)), tmp_path / "out", tiny(val=0.0))
    with pytest.raises(InputError, match="'val' holds no samples"):
        ShardReader(tmp_path / "out", "val")


# Damage.


def test_truncated_shard(copy: Path) -> None:
    shard, key, row = row_of(copy, 3)
    shard.write_bytes(shard.read_bytes()[: row["image_offset"] + 20])
    with ShardReader(copy, order="sequential") as reader:
        assert len(reader.read([0, 1, 2]).keys) == 3  # the ones before the cut are whole
        with pytest.raises(CorruptSampleError, match=f"{shard.name}: sample {key}: .*truncated") as caught:
            reader.read([0, 3])
    assert (caught.value.shard, caught.value.key) == (shard.name, key)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # crosses worker processes


def test_flipped_bit(copy: Path) -> None:
    shard, key, row = row_of(copy, 2)
    data = bytearray(shard.read_bytes())
    data[row["image_offset"] + row["image_bytes"] // 2] ^= 1
    shard.write_bytes(data)
    with (
        ShardReader(copy, order="sequential") as reader,
        pytest.raises(CorruptSampleError, match=f"{key}: damaged .*checksum"),
    ):
        reader.read([2])


def test_raw_pixels(make_source, tiny, tmp_path: Path) -> None:
    """They are read where they belong; what is wrong with them is told all the same."""
    source = make_source(tmp_path / "source", range(9))
    for encoding in ("png", "npy"):
        pack(source, tmp_path / encoding, tiny(image=encoding, val=0.0))
    with ShardReader(tmp_path / "png") as other, ShardReader(tmp_path / "npy", threads=2) as raw:
        np.testing.assert_array_equal(raw.read(range(30)).images, other.read(range(30)).images)
    shard, key, row = row_of(tmp_path / "npy", 5)
    whole = shard.read_bytes()
    for place in (row["image_offset"] + 9, row["image_offset"] + row["image_bytes"] - 1):  # head, pixels
        data = bytearray(whole)
        data[place] ^= 1
        shard.write_bytes(data)
        with (
            ShardReader(tmp_path / "npy", order="sequential") as reader,
            pytest.raises(CorruptSampleError, match=f"{key}: damaged .*checksum"),
        ):
            reader.read(range(9))
    shard.write_bytes(whole[: row["image_offset"] + 100])
    with (
        ShardReader(tmp_path / "npy", order="sequential") as reader,
        pytest.raises(CorruptSampleError, match=f"{key}: .*truncated"),
    ):
        reader.read([5])


def test_missing_shard(copy: Path) -> None:
    shard, key, _ = row_of(copy, 2)
    shard.unlink()
    with (
        ShardReader(copy, order="sequential") as reader,
        pytest.raises(CorruptSampleError, match=f"{shard.name}: sample {key}: cannot open"),
    ):
        reader.read([2])


def test_image_of_other_dimensions_or_mode() -> None:
    out = np.empty((4, 4, 3), np.uint8)
    for pixels, told in (
        (np.zeros((4, 5, 3), np.uint8), "not a PNG of 4 x 4 pixels"),
        (np.zeros((8, 8, 3), np.uint8), "not a PNG of 4 x 4 pixels"),
        (np.zeros((4, 4), np.uint8), "not an RGB image"),
        (np.zeros((4, 4, 4), np.uint8), "not an RGB image"),
    ):
        with pytest.raises(BadSample, match=told):
            decode_image(png(pixels), out)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_mutated_image_is_told_or_decoded(packed: Path, data: st.DataObject) -> None:
    shard, _, row = row_of(packed, 0)
    whole = shard.read_bytes()[row["image_offset"] :][: row["image_bytes"]]
    place = data.draw(st.integers(0, len(whole) - 1))
    mutated = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 6)) :]
    out = np.empty((4, 4, 3), np.uint8)
    with contextlib.suppress(BadSample):
        decode_image(mutated, out)


def test_opencv_sees_what_pillow_sees(packed: Path) -> None:
    pytest.importorskip("cv2")
    decode, out, expected = decoder("png"), np.empty((4, 4, 3), np.uint8), np.empty((4, 4, 3), np.uint8)
    for number in range(5):
        shard, _, row = row_of(packed, number)
        data = shard.read_bytes()[row["image_offset"] :][: row["image_bytes"]]
        decode(data, out)
        decode_image(data, expected)
        np.testing.assert_array_equal(out, expected)
        with pytest.raises(BadSample, match="damaged"):
            decode(data[:40], out)
    for pixels in (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        with pytest.raises(BadSample, match=r"not a PNG of 4 x 4|not an RGB"):
            decode(png(pixels), out)


def test_block_order_reads_ahead(packs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK", 4)
    monkeypatch.setattr(order, "WINDOW", 16)
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: asked.append(given))
    with ShardReader(packs[3], order="block") as reader:
        for position in range(16):
            reader.read([position])
        assert 2 <= len(asked) <= 2 * 6  # this window's runs and the next one's, once
        reader.read([16])
        assert len(asked) <= 3 * 6


def test_streams_read_ahead_what_is_their_own(packs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks' reads ask for all bytes of the epoch together, and for none of them both."""
    monkeypatch.setattr(streams, "WINDOW", 1)
    asked: list[set[int]] = [set(), set()]
    for rank, mine in enumerate(asked):
        with ShardReader(packs[1], order="streams", batch=10, tail="drop") as reader:
            advised = []
            monkeypatch.setattr(reader._images, "advise", lambda numbers, to=advised: to.append(numbers))
            for step in range(5):
                reader.read(np.arange(5) + step * 10 + rank * 5)
                before = len(advised)
                reader.read(np.arange(5) + step * 10 + rank * 5)
                assert len(advised) == before  # nothing is asked for again
            numbers = np.concatenate(advised).tolist()
            mine |= set(numbers)
            # The last spans are followed by the next epoch's first ones, of the same samples.
            assert len(numbers) <= 2 * len(mine)
    assert asked[0] == set(range(25)) and asked[1] == set(range(25, 50))


def test_auto_is_full_for_a_small_set(packs: list[Path]) -> None:
    with ShardReader(packs[1], order="auto", batch=10) as reader:
        assert reader.order.name == "full" == reader.state(0).order


def test_a_system_without_reading_ahead(packs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise")  # macOS
    with ShardReader(packs[3], order="block") as reader:
        assert len(reader.read([0, 1]).keys) == 2


# Replacement.


def flip(folder: Path, number: int) -> str:
    """Damage one sample's image; its key."""
    shard, key, row = row_of(folder, number)
    data = bytearray(shard.read_bytes())
    data[row["image_offset"] + 30] ^= 1
    shard.write_bytes(data)
    return key


@pytest.mark.parametrize("threads", [1, 3])
def test_replace(copy: Path, threads: int) -> None:
    with ShardReader(copy, order="sequential") as whole:
        n = len(whole)
        good = whole.read([4, 10, 0])
    bad = [flip(copy, number) for number in (2, 3, 9, n - 1)]
    told: list[str] = []
    with ShardReader(
        copy, order="sequential", on_error="replace", report=told.append, threads=threads
    ) as reader:
        for _ in range(3):
            batch = reader.read(range(n))
            assert [batch.keys[i] for i in (2, 3, 9, n - 1)] == [good.keys[i] for i in (0, 0, 1, 2)]
            np.testing.assert_array_equal(batch.images[[2, 3, 4]], good.images[[0, 0, 0]])
            np.testing.assert_array_equal(batch.labels[9], good.labels[1])
        assert reader.replaced == {2: 4, 3: 4, 9: 10, n - 1: 0}
    assert len(told) == 4  # once a sample, not once a read
    assert all(key in line and "checksum" in line for key, line in zip(bad, told, strict=True))


def test_replace_is_the_same_for_every_world(copy: Path) -> None:
    for number in (0, 5, 6, 20):
        flip(copy, number)
    streams = []
    for world in (1, 3):
        found = {}
        for rank in range(world):
            with ShardReader(copy, seed=4, on_error="replace", report=lambda line: None) as reader:
                for position in range(rank, 2 * len(reader), world):
                    found[position] = reader.read([position]).keys[0]
        streams.append([found[position] for position in sorted(found)])
    assert streams[0] == streams[1]


def test_replace_up_to_a_limit(copy: Path) -> None:
    for number in (1, 3, 5):
        flip(copy, number)
    with ShardReader(copy, order="sequential", on_error="replace", replace_limit=2) as reader:
        reader.read([1, 3])
        with pytest.raises(InputError, match="more samples to replace than the limit, 2"):
            reader.read([1, 3, 5])
    for number in range(20):
        if number not in (1, 3, 5):
            flip(copy, number)
    with (
        ShardReader(copy, order="sequential", on_error="replace") as reader,
        pytest.raises(InputError, match="none of the 16 samples after it is good"),
    ):
        reader.read([0])


def test_bad_settings(packed: Path) -> None:
    for wrong, told in (
        ({"on_error": "skip"}, "allowed: raise, replace"),
        ({"threads": 0}, "threads is 0"),
        ({"tail": "pad"}, "allowed: wrap, drop"),
    ):
        with pytest.raises(ValueError, match=told):
            ShardReader(packed, **wrong)


# State.


def test_resume_from_a_state(packed: Path) -> None:
    with ShardReader(packed, seed=3, tail="drop", batch=4) as reader:
        expected = reader.read(range(40, 80)).keys
        text = reader.state(40).to_json()
    with ShardReader(packed, seed=3, tail="drop", batch=4) as reader:
        position = reader.resume(ReaderState.from_json(text))
        assert reader.read(range(position, position + 40)).keys == expected
    with (
        ShardReader(packed, seed=4, tail="drop", batch=4) as reader,
        pytest.raises(InputError, match="its seed is 3, here it is 4"),
    ):
        reader.resume(ReaderState.from_json(text))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_world_prefetch_and_resume_point(packs: list[Path], data: st.DataObject) -> None:
    """Ranks deal out global batches; together they see each key once an epoch, in the stream's order."""
    folder = data.draw(st.sampled_from(packs), "shard size")
    world = data.draw(st.integers(1, 64), "world")
    micro = data.draw(st.integers(1, 3), "micro")
    tail = data.draw(st.sampled_from(TAILS), "tail")
    with ShardReader(folder, order="sequential") as all_of_it:
        everything = all_of_it.read(range(len(all_of_it))).keys
    batch = world * micro
    if batch > len(everything):
        tail = "wrap"
    name = data.draw(st.sampled_from(["full", "block", "shards"]), "order")
    stream_is = {"order": name, "seed": data.draw(st.integers(0, 2**64 - 1), "seed")}
    stream_is |= {"tail": tail, "batch": batch}
    with ShardReader(folder, **stream_is) as reader:
        length = reader.order.length
        steps = -(-2 * length // batch)
        stream = reader.read(range(steps * batch)).keys
        for epoch in range(2):
            seen = stream[epoch * length : (epoch + 1) * length]
            assert len(set(seen)) == length and set(seen) <= set(everything)

    resume = data.draw(st.integers(0, steps - 1), "resume")
    depth = data.draw(st.integers(1, 8), "prefetch")
    threads = data.draw(st.integers(1, 3), "threads")
    found: dict[int, str] = {}
    with ShardReader(folder, **stream_is, threads=threads) as reader:
        for rank in range(world):
            first = [k * batch + rank * micro for k in range(resume, steps)]
            for part in prefetch(reader.read, (range(p, p + micro) for p in first), depth):
                found.update(zip(part.positions.tolist(), part.keys, strict=True))
    assert sorted(found) == list(range(resume * batch, steps * batch))
    assert [found[position] for position in sorted(found)] == stream[resume * batch :]

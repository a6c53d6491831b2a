"""Work done ahead: in order, bounded, and nothing left of it when the consumer is done."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.prefetch import prefetch
from shards.read import CorruptSampleError, ShardReader
from tests.support.tiny_set import descriptors, row_of


def test_prefetch(packed: Path) -> None:
    before, threads = descriptors(), threading.active_count()
    with ShardReader(packed) as reader:
        requests = [range(first, first + 4) for first in range(0, 80, 4)]
        keys = [key for batch in prefetch(reader.read, requests) for key in batch.keys]
        assert keys == reader.read(range(80)).keys
        assert threading.active_count() == threads
    assert descriptors() == before


def test_prefetch_closed_early(packed: Path) -> None:
    threads = threading.active_count()
    asked = []

    def endless() -> Iterator[list[int]]:
        for position in itertools.count():
            asked.append(position)
            yield [position]

    with ShardReader(packed) as reader:
        for _ in range(50):
            batches = prefetch(reader.read, endless(), depth=3)
            for position, batch in zip(range(4), batches, strict=False):
                assert batch.positions.tolist() == [position]
            batches.close()
            assert threading.active_count() == threads
            # Four taken, one asked for by zip at most, three ahead and one in the making.
            assert len(asked) <= 9
            asked.clear()
        prefetch(reader.read, endless()).close()  # never started: no thread, nothing to end


def test_prefetch_passes_errors_on(copy: Path) -> None:
    threads = threading.active_count()
    shard, key, row = row_of(copy, 9)
    shard.write_bytes(shard.read_bytes()[: row["image_offset"]])
    with ShardReader(copy, order="sequential") as reader:
        batches = prefetch(reader.read, ([position] for position in range(20)))
        seen = []
        with pytest.raises(CorruptSampleError, match=key):
            for batch in batches:
                seen += batch.positions.tolist()
        assert seen == list(range(9))

        def fails() -> Iterator[list[int]]:
            yield [0]
            raise RuntimeError("of the caller's")

        batches = prefetch(reader.read, fails())
        next(batches)
        with pytest.raises(RuntimeError, match="of the caller's"):
            next(batches)
        with pytest.raises(ValueError, match="depth"):
            prefetch(reader.read, [], depth=0)
    assert threading.active_count() == threads

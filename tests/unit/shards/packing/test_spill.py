"""A pack's memory does not grow with its samples, and what it writes is what it wrote with all rows in hand."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.header import Shard
from shards.packing import packer
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.packing.spill import Samples, Spill
from shards.schema import UNKNOWN, Attribute
from shards.sources import Sample
from shards.table import Index
from shards.tables import write
from shards.tables.rows import Row

SCHEMA = (Attribute("class", 300), Attribute("side", 2))
ROW = st.tuples(
    st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True),
    *[st.integers(0, 1 << 40)] * 2,
    *[st.integers(1, 1 << 20)] * 2,
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(UNKNOWN, 299), st.integers(UNKNOWN, 1)),
)


@settings(max_examples=60, deadline=None)
@given(shards=st.lists(st.lists(ROW, min_size=1, max_size=5), max_size=6), data=st.data())
def test_what_comes_out_is_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[Row]], data: st.DataObject
) -> None:
    spill = Spill(tmp_path_factory.getbasetemp(), SCHEMA)
    finished = [
        (Shard(name=f"{n}.tar", count=len(rows), bytes=1, sha256="0" * 64), spill.add(rows))
        for n, rows in enumerate(shards)
    ]
    order = data.draw(st.permutations(range(len(shards))))
    chosen = [finished[n] for n in order]
    wanted = [(f"{n}.tar", row) for n in order for row in shards[n]]
    samples = Samples(spill, chosen)
    assert [(shard.name, row) for shard, row in samples] == wanted
    assert [(s.name, row) for s, row in (samples[at] for at in range(len(samples)))] == wanted
    rows = [row for _, row in wanted]
    stream, held = spill.stream(chosen), write.Stream.of(rows, SCHEMA)
    assert (len(stream), stream.width, stream.lacking) == (len(held), held.width, held.lacking)
    tables = [b"".join(write.table_bytes(one, SCHEMA, True)) for one in (stream, held)]
    assert tables[0] == tables[1]
    assert spill.counts == {a.name: Counter(row[-1][at] for row in rows) for at, a in enumerate(SCHEMA)}


class Endless:
    """A source that makes its samples as they are asked for: raw pixels, one by one."""

    kind, name, split_by, notes, crop = "endless", "endless", "key", (), None
    schema = (Attribute("class", 10),)

    def __init__(self, total: int) -> None:
        self.total = total

    def digest(self) -> str:
        return "0" * 64

    def fraction(self) -> float:
        return 0.0

    def samples(self) -> Iterator[Sample]:
        for n in range(self.total):
            yield Sample(f"key-number-{n:09d}", f"no. {n}", bytes(3), 3, {"class": n % 10}, planes=1)


def peak(total: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that Python had at most in a pack of so many samples."""
    monkeypatch.setattr(packer, "detect", lambda *_: Endless(total))
    tracemalloc.start()
    try:
        pack(Path("endless"), out, Settings(size=1, image="npy", shard_size=250, val=0.0))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("listed", [False, True])
def test_memory_does_not_grow_with_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """A row in memory takes 500 bytes and more; what a shard takes (its entry, 4 KiB) is 16 a sample here."""
    if listed:
        monkeypatch.setattr(write, "HELD_SAMPLES", -1)
    peak(500, tmp_path / "first", monkeypatch)  # what is imported and kept once
    few, many = 1000, 9000
    growth = peak(many, tmp_path / "many", monkeypatch) - peak(few, tmp_path / "few", monkeypatch)
    assert growth / (many - few) < 4096 / 250 + 32
    row: Any = ("key-number-000000001", 1, 2, 3, 4, 5, (7,))
    tracemalloc.start()
    rows = [
        (f"{row[0]}{n}", 10**6 + n, 10**6 + n, 10**3 + n, 10**3 + n, 10**8 + n, (n % 10,))
        for n in range(1000)
    ]
    held = tracemalloc.get_traced_memory()[0] / len(rows)
    tracemalloc.stop()
    assert held > 5 * (4096 / 250 + 32)  # the control: rows that are held would be seen
    assert len(Index.load(tmp_path / "many").split("train")) == many


def test_nothing_of_it_is_seen(tmp_path: Path) -> None:
    spill = Spill(tmp_path, SCHEMA)
    spill.add([("a", 1, 2, 3, 4, 5, (6, 1))])
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(spill.read(0, 1)["labels"], [[6, 1]])
    spill.close()

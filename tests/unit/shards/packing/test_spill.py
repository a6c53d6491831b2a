"""A pack's memory does not grow with its samples; what it writes is what rows in memory would give."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import table
from shards.header import Shard
from shards.packing import packer
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.packing.spill import Samples, Spill
from shards.schema import UNKNOWN, Attribute
from shards.sources import Sample
from shards.table import Index
from shards.tables import listed, write
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
    # What is held at any number of samples would hide the rest.
    monkeypatch.setattr(table, "INDEX_CAP", 1 << 18)
    monkeypatch.setattr(table, "PORTION", 256)
    monkeypatch.setattr(listed, "KEPT", 0)
    monkeypatch.setattr(write, "HELD_SAMPLES", -1)
    tracemalloc.start()
    try:
        pack(Path("endless"), out, Settings(size=1, image="npy", shard_size=250, val=0.0))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shard takes (its entry in the index and the journal, 4 KiB) is 16 bytes a sample here."""

    def growth(name: str) -> float:
        few, many = 1000, 9000
        peaks = [peak(total, tmp_path / f"{name}{total}", monkeypatch) for total in (few, many)]
        assert len(Index.load(tmp_path / f"{name}{many}").split("train")) == many
        return (peaks[1] - peaks[0]) / (many - few)

    peak(500, tmp_path / "first", monkeypatch)  # what is imported and kept once
    most = 4096 / 250 + 32
    assert growth("now") < most
    kept: list[Row] = []
    add = Spill.add

    def held(self: Spill, rows: list[Row]) -> object:
        if not self._rows:  # another pack
            kept.clear()
        kept.extend(rows)
        return add(self, rows)

    monkeypatch.setattr(Spill, "add", held)
    assert growth("held") > 4 * most  # the control: rows that are held are seen


def test_nothing_of_it_is_seen(tmp_path: Path) -> None:
    spill = Spill(tmp_path, SCHEMA)
    spill.add([("a", 1, 2, 3, 4, 5, (6, 1))])
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(spill.read(0, 1)["labels"], [[6, 1]])
    spill.close()

"""Rows behind an address come in blocks: what is asked of the server, and what becomes of damage."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.remote import fetch, rows
from shards.remote.cache import Cache, RemoteFolder
from shards.table import Index
from shards.tables import listed, write
from shards.verify import main
from tests.support.shard_server import Server
from tests.support.tiny_set import Command, contents
from tests.unit.shards.tables.test_listed import synthetic

BLOCK = 4
TABLE = "train-samples.npy"


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of every size are of version 4, and too large to be fetched whole."""
    monkeypatch.setattr(write, "HELD_SAMPLES", -1)
    monkeypatch.setattr(rows, "WHOLE", -1)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "BLOCK", BLOCK)
    monkeypatch.setattr(listed, "BLOCK", BLOCK)


@pytest.fixture
def served(small: None, server: Server, make_source, tmp_path: Path) -> Server:
    pack(make_source(tmp_path / "source", range(40)), tmp_path / "out", Settings(4, 8, shard_size=7, val=0.2))
    shutil.rmtree(server.folder)
    server.folder.mkdir()
    for name, data in contents(tmp_path / "out").items():
        (server.folder / name).write_bytes(data)
    return server


def asked_of(server: Server) -> tuple[int, list[int]]:
    """Since the last look: how often a table's head was asked for, and bytes of each other range."""
    heads, sizes = 0, []
    for text in server.ranges:
        first, last = map(int, text.removeprefix("bytes=").split("-"))
        heads += first == 1
        sizes += [last - first + 1] if first > 1 else []
    server.ranges.clear()
    return heads, sizes


def copies(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob(f"*-rows/{TABLE}.*"))


def test_reads_as_the_folder_itself_and_asks_for_each_block_once(served: Server, cache: Cache) -> None:
    for _ in range(2):  # and from the cache
        for split in ("train", "val"):
            here = ShardReader(served.folder, split, seed=1)
            with here, ShardReader(served.url, split, seed=1, cache=cache) as there:
                assert there.read(range(60)).keys == here.read(range(60)).keys
    heads, blocks = asked_of(served)
    index = Index.load(served.folder)
    counts = [-(-len(split) // BLOCK) for split in index.splits.values()]
    assert len(blocks) == sum(counts) and heads == 4 * len(counts)
    assert sum(blocks) == sum(split.samples.nbytes for split in index.splits.values())
    assert not list(cache.folder.glob("*/*-samples.npy"))


def test_of_many_samples_a_batch_asks_for_its_blocks_alone(server: Server, cache: Cache) -> None:
    shutil.rmtree(server.folder)
    table = synthetic(server.folder, 200_000, 2_000)
    whole = server.folder.joinpath(TABLE).stat().st_size
    lists = sum(server.folder.joinpath(f"train-{what}.npy").stat().st_size for what in ("shards", "blocks"))
    far = RemoteFolder(server.url, cache)
    assert asked_of(server) == (1, []) and lists < whole / 100
    some = np.random.default_rng(0).integers(0, len(table), 16)
    found = far.index.split("train").take(some)
    assert np.array_equal(found, table[some])
    blocks = np.unique(some // listed.BLOCK)
    assert asked_of(server) == (0, [listed.BLOCK * found.dtype.itemsize] * len(blocks))
    neighbours = far.index.split("train").take(np.arange(100_000, 100_256))
    assert np.array_equal(neighbours, table[100_000:100_256]) and len(asked_of(server)[1]) <= 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(data=st.data())
def test_any_rows_are_those_of_the_table(served: Server, cache: Cache, data: st.DataObject) -> None:
    table = Index.load(served.folder).split("train").samples
    far = RemoteFolder(served.url, cache).index.split("train")
    numbers = data.draw(st.lists(st.integers(0, len(table) - 1), max_size=20))
    assert np.array_equal(far.take(np.array(numbers, np.int64)), table[numbers])
    first, count = data.draw(st.integers(0, len(table))), data.draw(st.integers(0, 30))
    assert np.array_equal(far.table.part(first, count), table[first : first + count])


@pytest.mark.parametrize("cut", [0, 7])
def test_a_damaged_copy_is_fetched_anew(served: Server, cache: Cache, cut: int) -> None:
    with ShardReader(served.url, cache=cache) as reader:
        keys = reader.read(range(30)).keys
    for copy in copies(cache)[:2]:
        data = copy.read_bytes()
        copy.write_bytes(data[:-cut] if cut else bytes([data[0] ^ 1]) + data[1:])
    asked_of(served)
    del reader  # and with it what it holds of the blocks
    gc.collect()
    with ShardReader(served.url, cache=cache, report=(told := []).append) as reader:
        assert reader.read(range(30)).keys == keys
    assert len(asked_of(served)[1]) == len(told) == 2
    assert all("its copy in the cache was damaged and is fetched anew" in line for line in told)


def test_damage_there_is_named(served: Server, cache: Cache) -> None:
    path = served.folder / TABLE
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with (
        ShardReader(served.url, order="sequential", cache=cache) as reader,
        pytest.raises(
            InputError, match=rf"{TABLE}: bytes \d+ to \d+: their SHA-256 differs from the index's"
        ),
    ):
        reader.read(range(len(reader)))


@pytest.mark.parametrize("trouble", ["drop", "503"])
def test_a_server_in_trouble_is_no_damage(served: Server, cache: Cache, trouble: str) -> None:
    with ShardReader(served.url, cache=cache) as reader:
        served.of_ranges = trouble
        with pytest.raises(TimeoutError, match=TABLE):
            reader.read(range(30))
        served.of_ranges = ""
        assert len(reader.read(range(30)).keys) == 30


def test_a_server_without_ranges_gives_the_table_whole(served: Server, cache: Cache) -> None:
    served.of_ranges = "no range"
    with ShardReader(served.url, seed=1, cache=cache) as there, ShardReader(served.folder, seed=1) as here:
        assert there.read(range(60)).keys == here.read(range(60)).keys
        assert not copies(cache) and (there.index.folder / TABLE).exists()


def test_blocks_make_room_in_a_full_cache(served: Server, cache: Cache) -> None:
    index = Index.load(served.folder)
    shards = index.split("train").shards
    lists = [path for path in served.folder.iterdir() if path.suffix != ".tar" and "samples" not in path.name]
    cache.limit = sum(path.stat().st_size for path in lists) + 2 * max(shard.bytes for shard in shards)
    reader = ShardReader(served.url, order="shards", cache=cache)
    reader.split.table._room = 1  # type: ignore[attr-defined]
    keys = [reader.read([number]).keys[0] for number in [*range(len(reader)), *range(len(reader))]]
    with ShardReader(served.folder, order="shards") as here:
        wanted = [here.read([number]).keys[0] for number in range(len(reader))]
    assert keys == 2 * wanted
    assert sum(path.stat().st_size for path in cache.folder.glob("*/*")) <= cache.limit


def test_verify_of_an_address(served: Server, command: Command) -> None:
    assert command(main, served.url, "--jobs", 1)[0] == 0
    path = served.folder / TABLE
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, out, _ = command(main, served.url, "--jobs", 1)
    assert code == 1 and TABLE in out

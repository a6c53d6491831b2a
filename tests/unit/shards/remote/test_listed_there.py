"""A folder whose index lists its shards beside it (version 4), behind an address."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import pytest

from shards.header import FILE
from shards.packing.outside import pack_to
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.remote import fetch
from shards.remote.cache import Cache
from shards.table import Index
from shards.tables import write
from shards.verify import main
from tests.support.foreign_tars import indexed, write_numbers
from tests.support.shard_server import Server
from tests.support.tiny_set import Command, contents

TINY = Settings(size=4, crop=8, shard_size=7, val=0.2)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(write, "HELD_SAMPLES", -1)
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def served(server: Server, make_source, tmp_path: Path) -> Server:
    """The server, with another folder: the same avatars."""
    pack(make_source(tmp_path / "source", range(40)), tmp_path / "out", TINY)
    for path in server.folder.iterdir():
        path.unlink()
    for name, data in contents(tmp_path / "out").items():
        (server.folder / name).write_bytes(data)
    assert Index.load(server.folder).header.version == 4
    return server


def test_reads_as_the_folder_itself(served: Server, cache: Cache, packed: Path) -> None:
    for _ in range(2):  # and from the cache
        with ShardReader(packed, seed=1) as here, ShardReader(served.url, seed=1, cache=cache) as there:
            assert there.read(range(60)).keys == here.read(range(60)).keys
    assert {served.asked[name] for name in served.asked if name.endswith(".npy")} == {1}


@pytest.mark.parametrize("name", ["train-samples.npy", "train-shards.npy", "train-blocks.npy"])
def test_a_damaged_copy_of_a_list_is_fetched_anew(served: Server, cache: Cache, name: str) -> None:
    with ShardReader(served.url, cache=cache) as reader:
        copy, keys = reader.index.folder / name, reader.read(range(30)).keys
    copy.write_bytes(copy.read_bytes()[:-30])
    with ShardReader(served.url, cache=cache, report=(told := []).append) as reader:
        assert reader.read(range(30)).keys == keys
    assert served.asked[name] == 2 and len(told) == 1


def test_verify_of_an_address(served: Server, command: Command) -> None:
    assert command(main, served.url, "--jobs", 1)[0] == 0
    (served.folder / "train-blocks.npy").unlink()
    code, out, _ = command(main, served.url, "--jobs", 1)
    assert code == 1 and "train-blocks.npy: missing" in out


def test_packed_out_to_an_address(make_source, tmp_path: Path) -> None:
    source, out = make_source(tmp_path / "source", range(40)), tmp_path / "out"
    pack_to(source, f"file://{out}", TINY)
    pack(source, tmp_path / "here", TINY)
    assert contents(out) == contents(tmp_path / "here") and "train-shards.npy" in contents(out)
    assert pack_to(source, f"file://{out}", TINY).complete_before
    (out / "train-000001.tar").unlink()
    with pytest.raises(Exception, match=r"train-000001\.tar: missing or damaged"):
        pack_to(source, f"file://{out}", TINY)


def test_tars_of_others_at_addresses(server: Server, cache: Cache, tmp_path: Path) -> None:
    for number in range(3):
        write_numbers(server.folder / f"x{number}.tar", range(10 * number, 10 * number + 10))
    indexed(tmp_path / "index", f"{server.url}/x{{0..2}}.tar")
    header = Index.load(tmp_path / "index").header
    assert header.version == 4 and header.is_elsewhere
    with ShardReader(tmp_path / "index", order="sequential", cache=cache) as reader:
        assert len(set(reader.read(range(len(reader))).keys)) == len(reader)


def test_an_index_there_names_no_path_of_this_machine(
    server: Server, cache: Cache, command: Command, tmp_path: Path
) -> None:
    write_numbers(tmp_path / "tars" / "0.tar", range(10))
    indexed(tmp_path / "index", str(tmp_path / "tars"))
    for name, data in contents(tmp_path / "index").items():
        (server.folder / name).write_bytes(data)
    assert Counter(server.asked) == Counter()
    with pytest.raises(Exception, match="places: paths of the machine that made it"):
        ShardReader(server.url, cache=cache)
    code, out, _ = command(main, server.url)
    assert code == 1 and "places: paths of the machine" in out and FILE in out


def test_its_tables_stay_in_a_full_cache(served: Server, cache: Cache) -> None:
    """They are read for as long as the reader is open: not dropped to make room, though opened first."""
    shards = Index.load(served.folder).split("train").shards
    tables = sum(path.stat().st_size for path in served.folder.glob("*.npy"))
    cache.limit = tables + (served.folder / FILE).stat().st_size + 2 * max(s.bytes for s in shards)
    reader = ShardReader(served.url, order="shards", cache=cache)
    for number in range(len(reader)):
        reader.read([number])
        assert (reader.index.folder / "train-samples.npy").exists()
    assert sum(served.asked[shard.name] for shard in shards) > len(shards) - 1
    assert len(list(reader.index.folder.glob("train-*.tar"))) < len(shards)  # some had to go
    folder = reader.index.folder
    reader.close()
    del reader
    gc.collect()
    cache._evict(0)
    assert not list(folder.glob("*"))

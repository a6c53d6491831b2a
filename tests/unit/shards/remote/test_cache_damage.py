"""The cache where its copies are damaged, others put things into it, or its disk fails."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diffbase import system_error
from diffbase.cli import InputError
from shards.header import FILE
from shards.read import CorruptSampleError, ShardReader
from shards.remote import fetch
from shards.remote.cache import Cache
from tests.support.shard_server import Server, shards_of
from tests.support.tiny_set import open_in


def flip(path: Path, at: int = -300) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["index.json", "train-samples.npy"])
def test_a_damaged_copy_of_index_or_table_is_fetched_again(
    server: Server, cache: Cache, packed: Path, name: str
) -> None:
    with ShardReader(server.url, cache=cache) as reader:
        wanted = reader.read(range(10)).keys
    flip(next(cache.folder.glob(f"*/{name}")), at=10)
    said: list[str] = []
    with ShardReader(server.url, cache=cache, report=said.append) as reader:
        assert reader.read(range(10)).keys == wanted
    assert said == [f"{server.url}/{name}: its copy in the cache was damaged and is fetched anew"]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_copy_of_a_shard_is_fetched_again_and_no_sample_replaced(
    server: Server, cache: Cache, packed: Path, threads: int
) -> None:
    said: list[str] = []
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        whole = reader.read(range(len(reader)))
        first = reader.split.samples[0]
        name = shards_of(packed)[0]
    flip(next(cache.folder.glob(f"*/{name}")), at=int(first["image_offset"]) + 40)
    with ShardReader(
        server.url, order="sequential", cache=cache, on_error="replace", report=said.append, threads=threads
    ) as reader:
        again = reader.read(range(len(reader)))
        assert again.keys == whole.keys and (again.images == whole.images).all() and not reader.replaced
    assert said == [f"{server.url}/{name}: its copy in the cache was damaged and is fetched anew"]


def test_a_sample_that_is_bad_at_its_source_is_bad(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is what the index says; it is looked at once."""
    monkeypatch.setattr("shards.images.crc32", lambda: lambda data: 0)
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        server.asked.clear()
        for _ in range(2):
            with pytest.raises(CorruptSampleError, match="damaged"):
                reader.read([0])
        assert server.asked[shards_of(packed)[0]] == 1


def test_links_that_somebody_put_into_the_cache_are_not_followed(
    server: Server, cache: Cache, packed: Path, tmp_path: Path
) -> None:
    with ShardReader(server.url, cache=cache) as reader:
        folder = reader.index.folder
    precious = tmp_path / "precious"
    precious.write_text("precious")
    name = shards_of(packed)[0]
    for link in (folder / f".{name}.part", cache.folder / ".lock"):
        link.unlink(missing_ok=True)
        link.symlink_to(precious)
        with (
            ShardReader(server.url, order="sequential", cache=cache) as reader,
            pytest.raises(OSError, match=f"is a link.*{link.name}|symbolic links.*{link.name}"),
        ):
            reader.read([0])
        link.unlink()
        assert precious.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_cache_that_others_may_write_into_is_refused(
    server: Server, packed: Path, tmp_path: Path, mode: int
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    with pytest.raises(InputError, match="shared can be written by everybody"):
        ShardReader(server.url, cache=Cache(tmp_path / "shared"))


def test_threads_that_read_a_damaged_copy_at_once_all_read_the_new_one(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        whole = reader.read(range(7))
        starts = [int(row["image_offset"]) for row in reader.split.samples[:7]]
    [copy] = cache.folder.glob(f"*/{shards_of(packed)[0]}")
    for start in starts:
        flip(copy, at=start + 40)
    drop = Cache.drop_damaged

    def slowly(self: Cache, path: Path, sha256: str, tell: Callable[[], None]) -> bool:
        time.sleep(0.1)  # the others find their samples damaged meanwhile
        dropped = drop(self, path, sha256, tell)
        time.sleep(0.1)
        return dropped

    monkeypatch.setattr(Cache, "drop_damaged", slowly)
    said: list[str] = []
    with ShardReader(
        server.url, order="sequential", cache=cache, threads=7, on_error="replace", report=said.append
    ) as reader:
        again = reader.read(range(7))
        assert again.keys == whole.keys and (again.images == whole.images).all() and not reader.replaced
    assert len(said) == 1


def test_an_index_that_still_loads_with_a_digit_changed_is_fetched_again(
    server: Server, cache: Cache
) -> None:
    with ShardReader(server.url, cache=cache) as reader:
        wanted = reader.fingerprint
    [copy] = cache.folder.glob("*/index.json")
    text = copy.read_text()
    at = text.index('"sha256": "', text.index('"shards"')) + len('"sha256": "')  # of the first shard
    copy.write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    said: list[str] = []
    with ShardReader(server.url, order="sequential", cache=cache, report=said.append) as reader:
        assert reader.fingerprint == wanted and len(reader.read([0]).keys) == 1
    assert said == [f"{server.url}/index.json: its copy in the cache was damaged and is fetched anew"]


def test_copies_that_were_cut_are_told_and_fetched_again(server: Server, cache: Cache) -> None:
    """Whatever kind of file it is; while somebody has it open, and while nobody does."""
    said: list[str] = []
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        whole = reader.read(range(len(reader)))
        names = [FILE, "train-samples.npy", *(shard.name for shard in reader.split.shards)]
        for name in names[2:]:
            os.truncate(reader.index.folder / name, 1000)
        assert (reader.read(range(len(reader))).images == whole.images).all()
    for name in names:
        os.truncate(next(cache.folder.glob(f"*/{name}")), 100)
    with ShardReader(server.url, order="sequential", cache=cache, report=said.append) as reader:
        for _ in range(2):  # epochs
            assert (reader.read(range(len(reader))).images == whole.images).all()
    wanted = [f"{server.url}/{name}: its copy in the cache was damaged and is fetched anew" for name in names]
    assert sorted(said) == sorted(wanted)


def test_a_copy_that_is_damaged_again_is_fetched_again(server: Server, cache: Cache, packed: Path) -> None:
    said: list[str] = []
    name = shards_of(packed)[0]
    with ShardReader(server.url, order="sequential", cache=cache, report=said.append) as reader:
        whole = reader.read(range(7))
        for times in (1, 2, 3):
            os.truncate(reader.index.folder / name, 1000)
            assert (reader.read(range(7)).images == whole.images).all()
            assert len(said) == times and server.asked[name] == times + 1


def test_of_two_that_find_a_copy_damaged_at_once_one_tells(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of two processes: each has its reader, and both have hashed the file when the first removes it."""
    name = shards_of(packed)[0]
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        whole = reader.read(range(7))
        flip(reader.index.folder / name, at=int(reader.split.samples[0]["image_offset"]) + 40)
    both, unlink = threading.Barrier(2, timeout=30), Path.unlink

    def together(self: Path, missing_ok: bool = False) -> None:
        if self.name == name:
            both.wait()
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", together)
    said: list[str] = []

    def read(_: int) -> bool:
        with ShardReader(server.url, order="sequential", cache=cache, report=said.append) as reader:
            return bool((reader.read(range(7)).images == whole.images).all())

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(read, range(2))) == [True, True]
    assert said == [f"{server.url}/{name}: its copy in the cache was damaged and is fetched anew"]


def test_a_copy_that_another_process_fetched_anew_is_opened_by_its_name(
    server: Server, cache: Cache, packed: Path
) -> None:
    said: list[str] = []
    name = shards_of(packed)[0]
    with ShardReader(server.url, order="sequential", cache=cache, report=said.append) as reader:
        whole = reader.read(range(7))
        [copy] = cache.folder.glob(f"*/{name}")
        flip(copy, at=int(reader.split.samples[0]["image_offset"]) + 40)  # of the file that is held
        shutil.copyfile(packed / name, copy.with_name("new"))
        copy.with_name("new").replace(copy)
        assert (reader.read(range(7)).images == whole.images).all()
    assert not said and server.asked[name] == 1


def test_what_else_lies_in_the_cache_is_let_be(server: Server, packed: Path, tmp_path: Path) -> None:
    """A link, a folder, a pipe: making room neither follows nor removes them, nor fails."""
    precious = tmp_path / "precious"
    precious.write_bytes(bytes(1 << 20))
    limit = sum(path.stat().st_size for path in packed.glob("*.tar"))
    cache = Cache(tmp_path / "cache", limit)
    (cache.folder / "x" / "folder").mkdir(parents=True)
    (cache.folder / "x" / "link").symlink_to(precious)
    os.mkfifo(cache.folder / "x" / "pipe")
    (cache.folder / "x" / "old").write_bytes(bytes(limit // 2))
    os.utime(cache.folder / "x" / "old", (0, 0))
    with ShardReader(server.url, order="shards", cache=cache) as reader:
        reader.read(range(len(reader)))
    assert sorted(path.name for path in (cache.folder / "x").iterdir()) == ["folder", "link", "pipe"]
    assert precious.stat().st_size == 1 << 20


@pytest.mark.parametrize("kind", ["hard link", "pipe", "pipe for the file"])
def test_names_that_are_no_plain_files_are_refused(
    server: Server, cache: Cache, packed: Path, tmp_path: Path, kind: str
) -> None:
    with ShardReader(server.url, cache=cache) as reader:
        folder = reader.index.folder
    name = shards_of(packed)[0]
    path = folder / (name if kind == "pipe for the file" else f".{name}.part")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind == "hard link":
        path.hardlink_to(precious)
    else:
        os.mkfifo(path)
    with (
        ShardReader(server.url, order="sequential", cache=cache) as reader,
        pytest.raises(InputError, match=f"{path.name}: not a plain file"),
    ):
        reader.read([0])
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("call", ["flock", "pwrite", "fsync", "posix_fallocate"])
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO, errno.ENOSPC])
def test_a_cache_whose_disk_fails_is_named(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """The file in the cache and the number, after some tries where it may pass; nothing stays open."""
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        folder = reader.index.folder

        def failing(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(fcntl if call == "flock" else os, call, failing)
            with pytest.raises(OSError, match=str(folder)) as caught:
                reader.read([0])
        assert caught.value.errno == number
        assert isinstance(caught.value, system_error.GaveUpError) == (number in system_error.PASSING)
        assert call == "flock" or not list(folder.glob(".*.part"))  # not locked, not ours to remove
        assert reader.read([0]).keys  # when it has passed
        assert open_in(cache.folder)
    assert open_in(cache.folder) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_cache_on_a_disk_without_locks_is_told_what_to_do(
    server: Server, cache: Cache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def none_here(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none_here)
    fault = rf"no flock \({os.strerror(number)}\)"
    said = rf"^{cache.folder}: {fault}; .* data\.cache: a folder of a node's own disk$"
    with (
        pytest.raises(InputError, match=said),
        ShardReader(server.url, order="sequential", cache=cache) as reader,
    ):
        reader.read([0])


def test_writes_that_take_less_are_gone_on_with(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, bytes(data)[:1000], at))
    with ShardReader(packed, seed=1) as here, ShardReader(server.url, seed=1, cache=cache) as there:
        assert there.read(range(len(here))).keys == here.read(range(len(here))).keys
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_too_few_descriptors_for_a_download_are_no_servers_fault(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(
        "socket.create_connection" if scheme == "http" else "fsspec.implementations.local.open",
        failing,
        raising=False,
    )
    url = "http://127.0.0.1:9/data" if scheme == "http" else f"file://{packed}"
    with pytest.raises(OSError, match="Too many open files") as caught:
        fetch.fetch_small(f"{url}/index.json", 1 << 20)
    assert caught.value.errno == errno.EMFILE and not isinstance(caught.value, TimeoutError)

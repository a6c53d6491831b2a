"""The cache: servers that fail, processes that race, a bounded disk, addresses that would run things."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.memory.planning.plan import Data
from shards import order
from shards.read import ShardReader
from shards.remote import cache as cache_module
from shards.remote.cache import Cache, default_folder
from shards.remote.fetch import address, is_url
from shards.table import Index
from tests.support.shard_server import Server, shards_of
from tests.support.tiny_set import open_in


def test_reads_as_the_folder_itself(server: Server, cache: Cache, packed: Path) -> None:
    with ShardReader(packed, seed=1) as here, ShardReader(server.url, seed=1, cache=cache) as there:
        assert there.fingerprint == here.fingerprint
        assert not [name for name in server.asked if name.endswith(".tar")]  # fetched when first needed
        n = len(here)
        assert there.read(range(2 * n)).keys == here.read(range(2 * n)).keys
    with ShardReader(server.url, seed=1, cache=cache) as there:
        there.read(range(n))
    assert {count for name, count in server.asked.items() if name.endswith(".tar")} == {1}
    assert server.asked["train-samples.npy"] == 1
    assert not list(cache.folder.rglob("*.part"))


@pytest.mark.parametrize(
    "trouble",
    [
        ["500", "503"],
        ["drop"] * 3,
        ["drop", "no range"],
        ["drop", "500", "drop"],
        ["wrong"],
        ["long"],
        ["429"],
    ],
    ids=" ".join,
)
def test_trouble_that_passes(server: Server, cache: Cache, packed: Path, trouble: list[str]) -> None:
    for name in ("index.json", "train-samples.npy", shards_of(packed)[0]):
        # Nothing tells that an index is wrong but the tables that it names, so only visible trouble for it.
        server.trouble[name] = [t for t in trouble if name != "index.json" or t not in ("wrong", "long")]
    with ShardReader(packed) as here, ShardReader(server.url, cache=cache) as there:
        assert there.read(range(40)).keys == here.read(range(40)).keys
    if trouble == ["drop"] * 3:
        assert len(server.ranges) >= 6  # went on where it was


def test_trouble_that_stays(server: Server, cache: Cache, packed: Path) -> None:
    name = shards_of(packed)[0]
    server.trouble[name] = ["500"] * 100
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        with pytest.raises(TimeoutError, match=f"HTTP 500 .*gave up after 6 attempts.*{server.url}/{name}"):
            reader.read([0])
        server.trouble[name] = ["wrong"] * 100
        with pytest.raises(InputError, match=r"SHA-256 differs from the index's .*6 attempts"):
            reader.read([0])
        (server.folder / name).unlink()
        server.asked.clear()
        with pytest.raises(InputError, match=f"{name}: HTTP 404"):
            reader.read([0])
        assert server.asked[name] == 1  # that does not pass
    assert not list(cache.folder.rglob(".*.part")) and not list(cache.folder.rglob(name))


def test_no_index_or_another_file(server: Server, cache: Cache) -> None:
    (server.folder / "index.json").write_text("<html>log in</html>")
    with pytest.raises(InputError, match=f"{server.url}/index.json: not JSON"):
        ShardReader(server.url, cache=cache)
    (server.folder / "index.json").unlink()
    with pytest.raises(InputError, match=r"index\.json: HTTP 404"):
        ShardReader(server.url, cache=cache)
    with pytest.raises(TimeoutError, match=r"refused .*gave up after 6"):
        ShardReader("http://127.0.0.1:1/data", cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))  # two threads in each of four: a race lost once in three
def test_one_download_for_many_processes(server: Server, cache: Cache, attempt: int) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from shards.remote.cache import Cache; from shards.read import ShardReader\n"
        "with ShardReader(sys.argv[1], cache=Cache(Path(sys.argv[2])), threads=2) as r:\n"
        "    print(r.read(range(2 * len(r))).keys)"
    )
    command = [sys.executable, "-c", code, server.url, str(cache.folder)]
    racing = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {process.communicate(timeout=60)[0] for process in racing}
    assert len(told) == 1 and all(process.returncode == 0 for process in racing)
    assert {count for name, count in server.asked.items() if name != "index.json"} == {1}


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_bounded_and_never_what_is_open(server: Server, cache: Cache, packed: Path) -> None:
    index = Index.load(packed)
    shards = index.split("train").shards
    small = sum(
        (packed / name).stat().st_size for name in ("index.json", "train-samples.npy", "val-samples.npy")
    )
    cache.limit = small + 2 * max(shard.bytes for shard in shards)
    with (
        ShardReader(server.url, order="shards", cache=cache) as there,
        ShardReader(packed, order="shards") as here,
    ):
        for position in range(2 * len(here)):
            assert there.read([position]).keys == here.read([position]).keys
            assert bytes_in(cache.folder) <= cache.limit
    with pytest.raises(InputError, match=r"order full needs the whole split .*or order shards"):
        ShardReader(server.url, cache=cache)


def test_next_window_is_fetched_ahead(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW", 14)  # two shards of seven
    shards = {shard.name for shard in Index.load(packed).split("train").shards}
    with ShardReader(server.url, order="shards", cache=cache) as there:
        there.read([0])
        deadline = time.monotonic() + 20
        while len(server.asked.keys() & shards) < 4:  # this window's and the next one's
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with ShardReader(packed, order="shards") as here:
            n = len(here)
            assert there.read(range(2 * n)).keys == here.read(range(2 * n)).keys
        assert {server.asked[name] for name in shards} == {1}
    for thread in threading.enumerate():
        if thread.name == "shards-fetch":
            thread.join(20)
    assert open_in(cache.folder) == open_in(packed) == []


def test_a_rank_fetches_the_shards_of_its_own_streams_alone(
    server: Server, cache: Cache, packed: Path
) -> None:
    shards = {shard.name for shard in Index.load(packed).split("train").shards}
    with (
        ShardReader(server.url, order="streams", batch=4, tail="drop", cache=cache) as there,
        ShardReader(packed, order="streams", batch=4, tail="drop") as here,
    ):
        assert there.order.streams is not None and there.order.streams.number == 4
        steps = 2 * there.order.length // 4
        for step in range(steps):
            mine = range(4 * step, 4 * step + 2)  # the first rank's of two
            assert there.read(mine).keys == here.read(mine).keys
        for thread in threading.enumerate():
            if thread.name == "shards-fetch":
                thread.join(20)
        of = there.split.shard_of(np.arange(len(there) // 2))
        own = {there.split.shards[shard].name for shard in np.unique(of).tolist()}
    assert {name: server.asked[name] for name in server.asked.keys() & shards} == dict.fromkeys(own, 1)
    assert len(own) < len(shards)


def test_streams_that_the_cache_cannot_hold(server: Server, cache: Cache, packed: Path) -> None:
    cache.limit = 3 * max(shard.bytes for shard in Index.load(packed).split("train").shards)
    with ShardReader(server.url, order="streams", batch=4, cache=cache) as there:
        assert len(there.read([0, 1]).keys) == 2
        with pytest.raises(InputError, match=r"the 4 streams of this process need \d+ bytes .* order shards"):
            there.read(range(4))


def test_nothing_ahead_where_two_windows_find_no_room(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW", 14)
    cache.limit = 3 * max(shard.bytes for shard in Index.load(packed).split("train").shards)
    with ShardReader(server.url, order="shards", cache=cache) as there:
        there.read([0])
        assert not [thread for thread in threading.enumerate() if thread.name == "shards-fetch"]


def test_full_cache(server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PATIENCE", 0.05)
    shards = Index.load(packed).split("train").shards
    cache.limit = shards[0].bytes + 1

    def get(n: int, make_way: Callable[[], int] = lambda: 0) -> int:
        shard = shards[n]
        place = cache.folder / "x" / shard.name
        return cache.open(f"{server.url}/{shard.name}", place, shard.bytes, shard.sha256, make_way)

    first = get(0)
    with pytest.raises(InputError, match="no room in the cache"):
        get(1)
    second = get(1, lambda: os.close(first) or 1)  # the caller lets go of what it can spare
    assert [path.name for path in (cache.folder / "x").iterdir()] == [shards[1].name]
    os.close(second)
    cache.limit = 10
    with pytest.raises(InputError, match="more than the cache's limit of 10"):
        get(2)


def test_what_a_killed_process_left(server: Server, cache: Cache, packed: Path) -> None:
    shard = Index.load(packed).split("train").shards[0]
    place = cache.folder / "x" / shard.name
    place.parent.mkdir(parents=True)
    place.with_name(f".{shard.name}.part").write_bytes(b"half")
    place.write_bytes(b"cut")  # and a file that somebody cut
    os.close(cache.open(f"{server.url}/{shard.name}", place, shard.bytes, shard.sha256))
    assert [path.name for path in place.parent.iterdir()] == [shard.name]
    with place.open("rb") as file:  # and nobody holds it any more
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_fsspec(packed: Path, cache: Cache) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in packed.iterdir():
        memory.pipe(f"/tiny/{path.name}", path.read_bytes())
    for url in ("memory://tiny", f"file://{packed}"):
        with ShardReader(packed) as here, ShardReader(url, cache=cache) as there:
            assert there.read(range(50)).keys == here.read(range(50)).keys
            assert there.index.folder.is_relative_to(cache.folder)
    with pytest.raises(InputError, match=r"memory://nothing/index\.json: "):
        ShardReader("memory://nothing", cache=cache)


@pytest.mark.parametrize(
    "url", ["pipe:cat x", "PIPE://x", "exec://x", "reference://x", "simplecache::http://x", "dask://x"]
)
def test_refused(url: str, cache: Cache) -> None:
    with pytest.raises(InputError, match="refused"):
        ShardReader(url, cache=cache)
    assert not cache.folder.exists()


def test_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Cache) -> None:
    assert address("https://h/a/?sig=1", "b c.tar") == "https://h/a/b%20c.tar?sig=1"
    assert address("s3://bucket/a/", "b.tar") == "s3://bucket/a/b.tar"
    assert not any(is_url(place) for place in ("data/x", "/data/x", "data:v2", Path("http://x")))
    with pytest.raises(InputError, match="unknown scheme 'nonsense'"):
        ShardReader("nonsense://x", cache=cache)
    with pytest.raises(ValueError, match="limit"):
        Cache(tmp_path, 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    assert default_folder() == tmp_path / "diffcore" / "shards"
    monkeypatch.setenv("SLURM_TMPDIR", "/scratch/7")
    assert default_folder() == Path("/scratch/7/diffcore-shards")


def test_a_plan_asks_the_server_too(server: Server, memory_config: Path) -> None:
    """And says without the address's secrets where it has no answer."""
    index = Index.load(server.folder)
    words = ["--config", str(memory_config), "--data.path"]
    assert Data.of(configure.parse([*words, server.url])) == Data(index.schema, index.size)
    told = Data.of(configure.parse([*words, server.url.replace("/data", "/none?sig=secret")])).assumed
    assert (
        told.startswith(f"{server.url.replace('/data', '/none/index.json')}: HTTP 404") and "assumed" in told
    )
    assert "secret" not in told

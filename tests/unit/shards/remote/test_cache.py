"""The cache: servers that fail, processes that race, a bounded disk, addresses that would run things."""

from __future__ import annotations

import errno
import fcntl
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffbase import system_error
from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from shards import order
from shards.read import CorruptSampleError, ShardReader
from shards.remote import cache as cache_module
from shards.remote import fetch
from shards.remote.cache import Cache, default_folder
from shards.remote.fetch import address, is_url
from shards.table import Index
from tests.support.tiny_set import descriptors


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; ``trouble`` maps a file's name to what goes wrong with its first answers."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.trouble: dict[str, list[str]] = {}
        self.asked: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/data"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked[name] += 1
        path = self.server.folder / name
        if not path.is_file():
            return self.send_error(404)
        trouble = self.server.trouble.get(name, [])
        now = trouble.pop(0) if trouble else ""
        if now.isdigit():
            return self.send_error(int(now))
        data, start = path.read_bytes(), 0
        if now == "wrong":
            data = bytes(len(data))
        if now == "long":
            data += b"more"
        if "Range" in self.headers and now != "no range":
            self.server.ranges.append(self.headers["Range"])
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if now == "drop" else body)
        return None


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    server = Server(Path(shutil.copytree(packed, tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def shards_of(folder: Path) -> list[str]:
    return [shard.name for shard in Index.load(folder).split("train").shards]


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
    before = descriptors()
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
    assert descriptors() == before


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

    def slowly(self: Cache, path: Path, sha256: str) -> bool:
        time.sleep(0.1)  # the others find their samples damaged meanwhile
        dropped = drop(self, path, sha256)
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
    before = descriptors()
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
    assert descriptors() == before


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

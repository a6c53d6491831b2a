"""Shards in the background, ranges of them meanwhile, connections that are kept, the account of a cache."""

from __future__ import annotations

import multiprocessing
import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import images
from shards.read import ShardReader
from shards.remote import ahead, http_client
from shards.remote import cache as cache_module
from shards.remote.cache import Cache
from shards.remote.fetch import fetch_range, fetch_small
from shards.table import Index
from tests.support.shard_server import Server

TRAIN = "train-000000.tar"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' shards count as large ones, and no two of their ranges as near."""
    monkeypatch.setattr(ahead, "SMALL", 1)
    monkeypatch.setattr("shards.read.SMALL", 1)
    monkeypatch.setattr(ahead, "SHARE", 1)
    monkeypatch.setattr(ahead, "GAP", 1)


@pytest.fixture(autouse=True)
def no_kept_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_KEPT", http_client._Kept())


def same(there: ShardReader, here: ShardReader, positions: range | list[int]) -> None:
    far, near = there.read(positions), here.read(positions)
    assert (far.images == near.images).all() and far.keys == near.keys


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("order", ["full", "block", "shards", "sequential"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.usefixtures("small")
def test_a_batch_comes_before_its_shards(
    server: Server, cache: Cache, packed: Path, order: str, threads: int
) -> None:
    server.may_send.clear()
    with (
        ShardReader(server.url, order=order, cache=cache, threads=threads) as there,
        ShardReader(packed, order=order) as here,
    ):
        same(there, here, range(5))
        assert not list(cache.folder.glob("*/*.tar"))
        asked = [r[6:].split("-") for r in server.ranges if r[-1] != "-"]
        brought = sum(int(last) - int(first) + 1 for first, last in asked)
        needed = here.split.samples[here.sample_of(range(5))]["image_bytes"].sum()
        # Neighbours are read in one go, with what lies between them.
        assert needed <= brought <= needed + 4 * images.GAP
        server.may_send.set()
        wait_for(lambda: list(cache.folder.glob("*/*.tar")))
        same(there, here, range(2 * len(here)))


@pytest.mark.parametrize("trouble", ["wrong", "no range", "drop", "503", "404"])
@pytest.mark.usefixtures("small")
def test_where_ranges_fail_the_whole_shard_tells(
    server: Server, cache: Cache, packed: Path, trouble: str
) -> None:
    server.of_ranges = trouble
    with ShardReader(server.url, cache=cache) as there, ShardReader(packed) as here:
        same(there, here, range(2 * len(here)))
        assert not there.replaced


@pytest.mark.usefixtures("small")
def test_a_sample_that_is_bad_everywhere_is_bad(server: Server, cache: Cache, packed: Path) -> None:
    for path in server.folder.glob("*.tar"):
        path.write_bytes(bytes(path.stat().st_size))
    with ShardReader(server.url, cache=cache) as there, pytest.raises(Exception, match="SHA-256 differs"):
        there.read(range(5))


def _read(url: str, folder: Path, there: ShardReader, answer: object) -> None:
    answer.put(there.read(range(8, 16)).keys)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("small")
def test_a_forked_process_has_threads_and_connections_of_its_own(
    server: Server, cache: Cache, packed: Path
) -> None:
    fork = multiprocessing.get_context("fork")
    with ShardReader(server.url, cache=cache) as there, ShardReader(packed) as here:
        same(there, here, range(8))
        answer = fork.SimpleQueue()
        child = fork.Process(target=_read, args=(server.url, cache.folder, there, answer))
        child.start()
        assert answer.get() == here.read(range(8, 16)).keys
        child.join(20)
        assert child.exitcode == 0
        same(there, here, range(16))


def test_small_shards_and_large_parts_of_them_come_whole(server: Server, cache: Cache) -> None:
    with ShardReader(server.url, cache=cache) as there:
        there.read(range(5))
    assert not server.ranges


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 17)), min_size=1))
def test_joined_ranges_hold_all_that_was_asked_for_and_little_more(given: list[tuple[int, int]]) -> None:
    ranges = [(start, start + length) for start, length in given]
    found = ahead.joined(ranges)
    assert all(any(a <= start and end <= b for a, b in found) for start, end in ranges)
    assert all(b + ahead.GAP <= a for (_, b), (a, _) in pairwise(found))
    covered = np.zeros(1 << 21, bool)
    for start, end in ranges:
        covered[start:end] = True
    unasked = sum((b - a) - int(covered[a:b].sum()) for a, b in found)
    assert unasked <= ahead.GAP * (len(ranges) - len(found))


def test_a_connection_is_kept(server: Server) -> None:
    for _ in range(5):
        fetch_small(f"{server.url}/index.json", 1 << 24)
        assert fetch_range(f"{server.url}/{TRAIN}", 5, 25) == (server.folder / TRAIN).read_bytes()[5:25]
    assert server.connections == 1


def test_a_connection_that_the_server_closed_is_made_anew(server: Server) -> None:
    server.of_ranges = "close"  # without a word in its answer
    for _ in range(3):
        assert fetch_range(f"{server.url}/{TRAIN}", 5, 25) == (server.folder / TRAIN).read_bytes()[5:25]
    assert server.connections == 3


def test_an_answer_that_was_not_read_to_its_end_leaves_no_connection(server: Server) -> None:
    server.of_ranges = "no range"
    assert fetch_range(f"{server.url}/{TRAIN}", 5, 25) is None
    assert fetch_range(f"{server.url}/{TRAIN}", 0, 25) == (server.folder / TRAIN).read_bytes()[:25]
    server.of_ranges = ""
    assert fetch_range(f"{server.url}/{TRAIN}", 5, 25) == (server.folder / TRAIN).read_bytes()[5:25]


def test_the_folder_is_looked_at_where_room_is_short(
    server: Server, cache: Cache, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    evict = Cache._evict

    def counted(self: Cache, target: int) -> int:
        nonlocal looks
        looks += 1
        return evict(self, target)

    monkeypatch.setattr(Cache, "_evict", counted)
    shards = Index.load(packed).split("train").shards

    def get(n: int) -> None:
        shard = shards[n]
        os.close(
            cache.open(
                f"{server.url}/{shard.name}", cache.folder / "x" / shard.name, shard.bytes, shard.sha256
            )
        )

    for n in range(3):
        get(n)
    assert looks == 1
    account = cache.folder / ".lock"
    assert int(account.read_text().split()[0]) == sum(
        path.stat().st_size for path in cache.folder.glob("*/*")
    )
    for nonsense in (b"", b"12", b"-5 9", b"\x00\xff", b"1 99999999999999999999 3"):
        account.write_bytes(nonsense)
        (cache.folder / "x" / shards[0].name).unlink()
        before = looks
        get(0)
        assert looks == before + 1
    # What somebody deleted is still counted, until there is no room by the account.
    cache.limit = sum(shards[n].bytes for n in range(3)) + 1
    (cache.folder / "x" / shards[1].name).unlink()
    before = looks
    get(1)
    assert looks == before + 1 and (cache.folder / "x" / shards[0].name).exists()
    monkeypatch.setattr(cache_module, "LOOK_EVERY", 1)
    get(3)
    assert sum(path.stat().st_size for path in cache.folder.glob("*/*")) <= cache.limit


def test_of_many_files_some_more_go_at_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MANY", 20)
    cache.limit = 3200
    (cache.folder / "x").mkdir(parents=True)
    for n in range(32):
        (cache.folder / "x" / f"{n:02}").write_bytes(bytes(100))
        os.utime(cache.folder / "x" / f"{n:02}", (n, n))
    assert cache._evict(3100) == 2900
    assert sorted(path.name for path in (cache.folder / "x").iterdir())[0] == "03"

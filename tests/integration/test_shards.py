"""Processes of the packer and the reader that are killed outright leave nothing behind and nothing broken."""

from __future__ import annotations

import gc
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from shards.codec import png
from shards.header import FILE
from shards.packing.journal import JOURNAL
from shards.read import ShardReader
from shards.remote.cache import Cache
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv
from shards.table import Index
from tests.integration.conftest import REPOSITORY


def children(pid: int) -> dict[int, str]:
    """The command lines of all processes that descend from ``pid``."""
    parents, lines = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            line = (folder / "cmdline").read_text()
        except (OSError, IndexError):
            continue
        if folder.name.isdigit() and status[0] != "Z":
            parents[int(folder.name)], lines[int(folder.name)] = int(status[1]), line
    found, new = set(), {pid}
    while new := {child for child, parent in parents.items() if parent in new} - found:
        found |= new
    return {child: lines[child] for child in found}


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pids: set[int]) -> bool:
    """Whether they have ended; of a zombie, /proc tells no program any more."""
    return not any(Path(f"/proc/{pid}/exe").exists() for pid in pids)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths


# Packing.


@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_killed_packer(tmp_path: Path, victim: str) -> None:
    """kill -9 on a worker is one line; on either, the same command goes on and ends with a sound folder."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    image = avatar()
    for number in range(600):
        (source / f"cs{number}.png").write_bytes(image)
        (source / f"cs{number}.csv").write_text(format_csv(dict.fromkeys([a.name for a in CARTOON_SET], 0)))
    command = [sys.executable, "-m", "shards.pack", source, "--out", out, "--jobs", "2"]
    command += ["--shard-size", "20", "--size", "8"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    until(lambda: (out / JOURNAL).exists() and (out / JOURNAL).read_bytes().count(b"\n") > 2)
    family = children(process.pid)
    # The workers are those that their server has forked: nobody's parent.
    workers = {pid for pid in family if not children(pid) and "resource_tracker" not in family[pid]}
    assert len(workers) >= 2
    os.kill(min(workers) if victim == "worker" else process.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    if victim == "worker":
        assert process.returncode == 2 and err.count("\n") == 1 and "a worker died" in err
        assert not list(out.glob(".*.tmp"))
    until(lambda: gone(set(family)), 20)
    assert not (out / FILE).exists() and (out / JOURNAL).exists()

    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    verify = [sys.executable, "-m", "shards.verify", out, "--jobs", "1"]
    subprocess.run(verify, cwd=REPOSITORY, check=True, capture_output=True)
    assert not (out / JOURNAL).exists() and not list(out.glob(".*"))


def avatar() -> bytes:
    """A PNG of 400 x 400 noisy pixels, RGBA: work for some milliseconds."""
    return png.encode(np.random.default_rng(0).integers(0, 9, (400, 400, 4), np.uint8))


# Reading from a server.


class Slow(http.server.BaseHTTPRequestHandler):
    """Serves files; of a shard, one half and then nothing more until ``go`` is set."""

    folder: Path
    go: threading.Event

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        data = (self.folder / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        half = len(data) // 2 if self.path.endswith(".tar") else 0
        self.wfile.write(data[:half])
        self.wfile.flush()
        if half:
            self.go.wait(60)
        self.wfile.write(data[half:])


@pytest.fixture
def slow(packed: Path) -> Iterator[tuple[str, threading.Event]]:
    """The address of a slow server of the packed set, and its ``go``."""
    go = threading.Event()
    handler = type("Handler", (Slow,), {"folder": packed, "go": go})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/data", go
    go.set()
    server.shutdown()
    thread.join()
    server.server_close()


READ = """
import sys
from pathlib import Path
from shards.remote.cache import Cache
from shards.read import ShardReader
with ShardReader(sys.argv[1], order="sequential", cache=Cache(Path(sys.argv[2]))) as reader:
    print(*reader.read(range(len(reader))).keys)
"""


def test_killed_while_it_downloads(slow: tuple[str, threading.Event], packed: Path, tmp_path: Path) -> None:
    """The one that waited for the dead process's download takes it over; nothing of it stays in the cache."""
    (url, go), cache = slow, tmp_path / "cache"
    command = [sys.executable, "-c", READ, url, cache]
    first = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    until(lambda: list(cache.glob("*/.*.part")))
    second = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    first.kill()
    first.wait()
    go.set()
    keys, _ = second.communicate(timeout=60)
    with ShardReader(packed, order="sequential") as here:
        assert keys.split() == here.read(range(len(here))).keys
    assert second.returncode == 0 and not list(cache.glob("*/.*.part"))


# Reading in the worker processes of a DataLoader.


class Batches(Dataset):
    """Batches of a reader, made in a DataLoader's worker processes."""

    def __init__(self, folder: Path | str, cache: Cache | None = None) -> None:
        self.reader = ShardReader(folder, cache=cache)

    def __len__(self) -> int:
        return 10_000

    def __getitem__(self, number: int) -> list[str]:
        return self.reader.read(range(8 * number, 8 * number + 8)).keys


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_worker_of_a_loader(packed: Path) -> None:
    before = descriptors()
    batches = Batches(packed)
    expected = [batches[number] for number in range(4)]
    others = set(children(os.getpid()))  # of this process too, from earlier tests: a forkserver, say
    loader = iter(DataLoader(batches, batch_size=None, num_workers=2))
    assert [next(loader) for _ in range(4)] == expected
    workers = set(children(os.getpid())) - others
    assert len(workers) == 2
    with pytest.raises(RuntimeError, match=r"worker .*exited unexpectedly|killed by signal"):
        os.kill(max(workers), signal.SIGKILL)  # torch's handler of SIGCHLD may raise at any line from here on
        for _ in loader:
            pass
    del loader
    until(lambda: gone(workers), 20)
    assert [batches[number] for number in range(4)] == expected  # the parent's reader goes on
    batches.reader.close()

    def closed() -> bool:  # the loader's queues are closed by the collector and by threads of theirs
        gc.collect()
        return descriptors() <= before

    until(closed, 20)


LOAD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from torch.utils.data import DataLoader
from tests.integration.test_shards import Batches
for keys in DataLoader(Batches(Path(sys.argv[1])), batch_size=None, num_workers=2):
    print(keys, flush=True)
"""


def test_killed_parent_of_a_loader(packed: Path) -> None:
    """Its workers end by themselves, within the seconds that torch takes to notice."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD, packed, REPOSITORY], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    workers = set(children(process.pid))
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=60)
    until(lambda: gone(workers), 30)
    assert Index.load(packed)

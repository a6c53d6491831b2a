"""Opening the index of a large folder, and reading rows of it, beside another checkout of this repository.

    python benchmarks/index_scale.py [--samples 1000000] [--before ../other] [--rounds 3]

Makes a synthetic index (rows and lists; no shard is there) of so many samples in shards of ``--shard-size``,
as the version that lists its shards beside index.json (4), and with ``--before`` also as one table that is
held in memory (2), which the other checkout reads. Each look is a process of its own, and the sides take
turns: seconds to open, to read the rows of a window of 65,536 neighbours and of 256 samples from all over the
split; what the process holds, MiB, beyond what it held before it opened. The files are in the page cache.
Ratios, before / now, are of the medians. ``far``: the same behind an address, what is asked of its server to
open it, for 256 samples from all over and for 256 neighbours. ``larger`` is arithmetic: what an index of five
billion samples takes, by the measured bytes a shard and the rate of SHA-256 here. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
WINDOW, BATCH, PORTION = 65_536, 256, 1 << 18
LARGER = 5_000_000_000


def held() -> dict[str, float]:
    """What this process holds, MiB: all, and what is its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {
        key: int(value.split()[0])
        for key, _, value in (line.partition(":") for line in lines)
        if "kB" in value
    }
    return {"all": kib["VmRSS"] / 1024, "own": kib["RssAnon"] / 1024}


def look(folder: Path) -> None:
    """One side's look, in a process of its own: a line of JSON."""
    import numpy as np

    from shards.table import Index

    before, began = held(), time.perf_counter()
    split = Index.load(folder).split("train")
    opened, after = time.perf_counter(), held()
    count = len(split)
    take = split.take if hasattr(split, "take") else split.samples.__getitem__
    window = np.arange(count // 2, min(count, count // 2 + WINDOW))
    some = np.random.default_rng(0).integers(0, count, BATCH)
    marks = [time.perf_counter()]
    for numbers in (window, some, some):
        rows = take(numbers)
        assert len(rows["labels"]) == len(numbers)
        marks.append(time.perf_counter())
    now = held()
    found = {
        "open_s": opened - began,
        "open_mib": after["all"] - before["all"],
        "window_ms": 1e3 * (marks[1] - marks[0]),
        "batch_ms": 1e3 * (marks[2] - marks[1]),
        "batch_again_ms": 1e3 * (marks[3] - marks[2]),
        "read_mib": now["all"] - before["all"],
        "own_mib": now["own"] - before["own"],
    }
    print(json.dumps(found))


def synthetic(folder: Path, count: int, per: int) -> None:
    """The index of ``count`` samples of a class each, in shards of ``per``, written in a stream."""
    import numpy as np

    from shards.header import Shard
    from shards.packing.plan import Settings
    from shards.schema import Attribute
    from shards.tables.rows import sample_dtype
    from shards.tables.write import Stream, write_index

    schema = (Attribute("class", 1000),)
    size, room = 5400, 7168  # bytes of an image, and with its labels and headers in the tar
    dtype = sample_dtype(12, schema)

    def portions() -> Iterator[np.ndarray]:
        rows = np.zeros(min(count, PORTION), dtype)
        digits = np.zeros((len(rows), 12), np.uint8)
        for first in range(0, count, PORTION):
            some = np.arange(first, min(first + PORTION, count))
            part, text = rows[: len(some)], digits[: len(some)]
            for place in range(12):
                text[:, place] = 48 + some // 10 ** (11 - place) % 10
            part["key"] = text.view("S12")[:, 0]
            part["image_offset"], part["image_bytes"] = some % per * room + 1536, size
            part["label_offset"], part["label_bytes"] = some % per * room + 512, 12
            part["crc"], part["labels"] = some % (1 << 32), (some % 1000)[:, None]
            yield part

    def shard(number: int) -> Shard:
        name = f"train-{number:06d}.tar"
        here = min(per, count - number * per)
        return Shard(name=name, count=here, bytes=here * room + 10240, sha256=f"{number:064x}")

    about = {
        "preprocessing": Settings().preprocessing(None, "png"),
        "source": {"kind": "synthetic", "name": "synthetic", "digest": "0" * 64},
        "shard_size": per,
        "val": 0.0,
    }
    folder.mkdir()
    stream = Stream(count, 12, frozenset(), portions)
    write_index(folder, schema, about, {"train": ([shard(n) for n in range(-(-count // per))], stream)})


def make(folder: Path, count: int, per: int, beside: bool) -> None:
    """``synthetic`` with the shards listed beside index.json, or in it."""
    from shards.tables import write

    write.HELD_SAMPLES = -1 if beside else sys.maxsize
    synthetic(folder, count, per)


def one(tree: Path, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--look", folder],
        env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
        cwd=tree, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def far(folder: Path) -> dict[str, float]:
    """Behind an address on this machine: what is asked of the server, in MiB, and how often."""
    import numpy as np

    from shards.remote.cache import Cache, RemoteFolder
    from tests.support.shard_server import Server

    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def asked() -> tuple[float, int]:
        spans = [text.removeprefix("bytes=").split("-") for text in server.ranges]
        size = sum(int(last) - int(first) + 1 for first, last in spans)
        count = server.asked.total()
        # What was asked for without a range was the whole of a file.
        size += sum((folder / name).stat().st_size for name in server.asked if "samples" not in name)
        server.ranges.clear()
        server.asked.clear()
        return size / 2**20, count

    with tempfile.TemporaryDirectory() as where:
        began = time.perf_counter()
        split = RemoteFolder(server.url, Cache(Path(where))).index.split("train")
        opened = time.perf_counter()
        opening = asked()
        found = {"open_s": opened - began, "open_mib": opening[0], "open_requests": opening[1]}
        for what, numbers in (
            ("neighbours", np.arange(len(split) // 2, len(split) // 2 + BATCH)),
            ("batch", np.random.default_rng(0).integers(0, len(split), BATCH)),
        ):
            began = time.perf_counter()
            split.take(numbers)
            took, (size, count) = time.perf_counter() - began, asked()
            found |= {f"{what}_s": took, f"{what}_mib": size, f"{what}_requests": count}
    server.shutdown()
    found["rows_mib"] = (folder / "train-samples.npy").stat().st_size / 2**20
    return {name: round(value, 3) for name, value in found.items()}


def larger(folder: Path, per: int) -> dict[str, Any]:
    """By arithmetic: opening hashes the lists and keeps 8 bytes a shard, and one a block."""
    from shards.tables.listed import BLOCK, KEPT

    header = json.loads((folder / "index.json").read_text())
    train = header["splits"]["train"]
    listed = train["listed"]
    data = bytes(1 << 24)
    began = time.perf_counter()
    for _ in range(4):
        hashlib.sha256(data).digest()
    rate = 4 * len(data) / (time.perf_counter() - began)
    shards, blocks = -(-LARGER // per), -(-LARGER // BLOCK)
    lists = shards * listed["file"]["bytes"] / listed["count"] + blocks * 32
    return {
        "samples": LARGER,
        "shards": shards,
        "lists_mib": round(lists / 2**20, 1),
        "sha256_mib_per_s": round(rate / 2**20),
        "open_s_of_hashes": round(lists / rate, 2),
        "kept_mib": round((8 * shards + blocks + KEPT) / 2**20, 1),
        "rows_gib_on_disk": round(LARGER * train["samples"]["bytes"] / train["count"] / 2**30, 1),
        "held_before_gib": round(LARGER * train["samples"]["bytes"] / train["count"] / 2**30, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--shard-size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the index is made, and removed (default: /tmp)")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look:
        look(given.look)
        return
    sys.path.insert(0, str(HERE))
    sides = {"now": HERE} | ({"before": given.before.resolve()} if given.before else {})
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folders = {side: Path(name) / side for side in sides}
        began = time.perf_counter()
        for side, folder in folders.items():
            make(folder, given.samples, given.shard_size, side == "now")
        made = time.perf_counter() - began
        looks: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for turn in range(given.rounds):
            for side in list(sides)[:: 1 if turn % 2 else -1]:
                looks[side].append(one(sides[side], folders[side]))
        found = {
            side: {what: round(statistics.median(row[what] for row in rows), 4) for what in rows[0]}
            for side, rows in looks.items()
        }
        result: dict[str, Any] = {"samples": given.samples, "shards": -(-given.samples // given.shard_size)}
        result |= {"made_s": round(made, 1)} | found
        if given.before:
            result["ratio"] = {
                w: round(found["before"][w] / max(v, 1e-4), 3) for w, v in found["now"].items()
            }
        result["far"] = far(folders["now"])
        result["larger"] = larger(folders["now"], given.shard_size)
        for folder in folders.values():
            shutil.rmtree(folder)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

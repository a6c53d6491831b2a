"""The files of an index of version 4, as shards.verify sees them: a line that says which, and the file.

index.json has the size and hash of what follows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

from shards.header import FILE
from shards.table import Index
from shards.tables import write
from shards.tables.write import write_index
from tests.support.fuzz.examples import packed
from tests.support.fuzz.reading import verified
from tests.support.fuzz.target import Target

LISTS = ("samples", "shards", "blocks")
WORDS = [b"(-1,)", b"(9999999999999,)", b"S80", b"'|O'", b"'<i8'", b"../x", b"\0" * 8, b"\xff" * 8]


@cache
def listed() -> dict[str, bytes]:
    """The files of the example's index, its shards listed beside index.json."""
    before = write.HELD_SAMPLES
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in packed().items():
            (folder / file).write_bytes(data)
        index, tree = Index.load(folder), json.loads(packed()[FILE])
        about = {
            key: tree[key]
            for key in ("preprocessing", "source", "shard_size", "val", "split_by")
            if key in tree
        }
        try:
            write.HELD_SAMPLES = -1
            splits = {name: (split.shards, split.samples) for name, split in index.splits.items()}
            write_index(folder, index.schema, about, splits)
        finally:
            write.HELD_SAMPLES = before
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".npy", ".json")}


def target() -> Target:
    def feed(data: bytes, folder: Path) -> None:
        which, _, data = data.partition(b"\n")
        name = f"train-{LISTS[len(which) % 3]}.npy"
        header = json.loads(listed()[FILE])
        train = header["splits"]["train"]
        for table in (train["samples"], train["listed"]["file"], train["blocks"]):
            if table["name"] == name:
                table.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        verified(folder, {**listed(), name: data, FILE: json.dumps(header).encode()})

    seeds = [b"x" * number + b"\n" + listed()[f"train-{what}.npy"] for number, what in enumerate(LISTS)]
    return Target(seeds, feed, WORDS)

"""index.json, as every reader loads it."""

from __future__ import annotations

from pathlib import Path

from diffbase.cli import InputError
from shards.packing.verifier import problems
from shards.table import Index
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target

WORDS = [
    b"18446744073709551621",
    b'"variants": 18446744073709551621',
    b'"size": 100000',
    b"1e3",
    b'"../x.tar"',
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        shard_files.unpack(folder, index_json=data)
        index = Index.load(folder)
        if said := list(problems(folder)):
            raise InputError(said[0])
        return index

    return Target([shard_files.packed()["index.json"]], feed, WORDS)

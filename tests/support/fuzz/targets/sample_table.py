"""A sample table whose hash fits: what is in it is not believed either."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from diffbase.cli import InputError
from shards.packing.verifier import problems
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target

WORDS = [
    b"'|O'",
    b"'<i8'",
    b"(16,)",
    b"(1000000000000,)",
    b"True",
    b"'descr': '|O'",
    b"()",
    b"[('key', 'O')]",
]


def target() -> Target:
    files = shard_files.packed()

    def feed(data: bytes, folder: Path) -> object:
        header = json.loads(files["index.json"])
        table = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        header["splits"]["train"]["samples"].update(table)
        changed = {"index_json": json.dumps(header).encode(), "train_samples_npy": data}
        if said := list(problems(shard_files.unpack(folder, **changed))):
            raise InputError(said[0])
        return table

    return Target([files["train-samples.npy"]], feed, WORDS)

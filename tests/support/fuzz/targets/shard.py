"""A shard that is not what the index says, as shards.verify sees it."""

from __future__ import annotations

from pathlib import Path

from diffbase.cli import InputError
from shards.packing.verifier import problems
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        said = list(problems(shard_files.unpack(folder, train_000000_tar=data)))
        if said:
            assert all("\n" not in line and len(line) < 2000 for line in said)
            raise InputError(said[0])
        return said

    whole = shard_files.packed()["train-000000.tar"]
    return Target([whole, *shard_files.hostile_tars()[:-1]], feed)

"""One shard of a packed folder, as shards.verify sees it; the index knows the whole one."""

from __future__ import annotations

from pathlib import Path

from tests.support.fuzz import hostile
from tests.support.fuzz.examples import packed
from tests.support.fuzz.reading import verified
from tests.support.fuzz.target import Target

NAME = "train-000000.tar"


def target() -> Target:
    def feed(data: bytes, folder: Path) -> None:
        verified(folder, {NAME: data})

    whole = packed()[NAME]
    spins = hostile.header(b"0", b"\x80" + bytes(2) + b"\x40" + bytes(8)) + whole
    return Target([whole, whole, spins], feed, hostile.RECORDS, hostile.tar)

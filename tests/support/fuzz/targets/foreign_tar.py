"""A WebDataset tar of others, as shards.index sees it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.support.foreign_tars import sample
from tests.support.fuzz import examples, hostile
from tests.support.fuzz.reading import indexed
from tests.support.fuzz.target import Target

WORDS = [
    *hostile.RECORDS,
    b'{"a": NaN}',
    b'{"a": [{}], "b": -1e999}',
    b"[" * 3000,
    b"1" * 5000,
    b".jpg\0",
    b"\x1f\x8b",
    b"__x__",
    b"\xff\xfe",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.tar").write_bytes(data)
        return indexed(folder)

    def members(key: str) -> list[tuple[str, bytes]]:
        return [m for n in range(4) for m in sample(f"{key}{n}", n, age=n % 2, word=["x", None][n % 2])]

    seeds = [
        examples.tar(members("k")),
        examples.tar(members("a.b/k"), tarfile.PAX_FORMAT, comment="é"),
        examples.tar(members("long/" * 40), tarfile.GNU_FORMAT),
    ]
    return Target(seeds, feed, WORDS, hostile.tar)

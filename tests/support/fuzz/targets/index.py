"""index.json of a packed folder, as shards.verify sees it."""

from __future__ import annotations

from pathlib import Path

from shards.header import FILE
from tests.support.fuzz.examples import packed
from tests.support.fuzz.reading import verified
from tests.support.fuzz.target import Target

WORDS = [
    b"18446744073709551621",
    b"1099511627776",
    b"65537",
    b'"/etc/passwd"',
    b'"pipe:ls"',
    b'"..\\u0000"',
    b"true",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> None:
        verified(folder, {FILE: data})

    return Target([packed()[FILE]], feed, WORDS)

"""Cartoon Set's CSV of labels."""

from __future__ import annotations

from pathlib import Path

from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import parse_csv
from tests.support.fuzz.examples import CSV
from tests.support.fuzz.target import Target

WORDS = [
    b'"',
    b'""',
    b'"hair", 3, 111\n',
    b" " * 1000,
    b",",
    "٣".encode(),
    b"1_0",
    b"\xef\xbb\xbf",
    b"\x85",
    b"\x1c",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.csv").write_bytes(data)
        labels = parse_csv(folder / "x.csv")
        assert [a.name for a in CARTOON_SET] == list(labels)
        assert all(0 <= labels[a.name] < a.variants for a in CARTOON_SET)
        return labels

    return Target([CSV], feed, WORDS)

"""A Cartoon Set picture's labels."""

from __future__ import annotations

from pathlib import Path

from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import parse_csv
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.csv").write_bytes(data)
        labels = parse_csv(folder / "x.csv")
        assert [a.name for a in CARTOON_SET] == list(labels)
        assert all(0 <= labels[a.name] < a.variants for a in CARTOON_SET)
        return labels

    return Target([shard_files.csv()], feed, [b'"hair", 110, 111\n'])

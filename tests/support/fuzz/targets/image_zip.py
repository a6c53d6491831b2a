"""Zips of images: with class folders, with a table, of Cartoon Set."""

from __future__ import annotations

import zipfile

from shards.sources import detect
from tests.support.fuzz import examples, hostile
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target

WORDS = [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"../x.png", b"\1\0\x18\0", b"\\"]


def target() -> Target:
    seeds = [
        examples.zipped(examples.images()),
        examples.zipped(examples.images(""), zipfile.ZIP_STORED),
        examples.zipped(examples.tabled(), zipfile.ZIP_STORED),
        examples.zipped(examples.cartoons()),
    ]
    return Target(seeds, archive(detect, "x"), WORDS, hostile.zipped)

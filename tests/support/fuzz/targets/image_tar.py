"""Tars of images, whatever they are taken for: class folders, a table, WebDataset samples, gzipped ones."""

from __future__ import annotations

import gzip
import random
import tarfile

from shards.sources import detect
from tests.support.fuzz import examples, hostile
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target

WORDS = [*hostile.RECORDS, b"train/", b"metadata.csv", b".json", b"split", b"\n1.png,"]


def target() -> Target:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        if data.startswith(b"\x1f\x8b"):
            return gzip.compress(hostile.tar(gzip.decompress(data), rng), 1, mtime=0)
        return hostile.tar(data, rng)

    seeds = [
        examples.tar(examples.images()),
        examples.tar(examples.images("long/" * 40), tarfile.PAX_FORMAT, comment="é"),
        examples.tar(
            [(f"{split}/{name}", d) for split in ("train", "test") for name, d in examples.images("")]
        ),
        examples.tar(examples.tabled()),
        gzip.compress(examples.tar(examples.tabled()), 1, mtime=0),
    ]
    return Target(seeds, archive(lambda path: detect(path), "x"), WORDS, mutate)

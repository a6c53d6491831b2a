"""Cartoon Set as a gzipped tar: the stream damaged, or a hostile tar compressed."""

from __future__ import annotations

import gzip
import random

from shards.sources.cartoonset import CartoonArchive
from tests.support.fuzz import hostile
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target
from tests.support.fuzz.targets.tar import seeds


def target() -> Target:
    def mutate(data: bytes, rng: random.Random) -> bytes:
        return gzip.compress(hostile.tar(gzip.decompress(data), rng), 1, mtime=0)

    whole = [gzip.compress(data, 1, mtime=0) for data in seeds()]
    return Target(whole, archive(CartoonArchive, "x.tgz"), [b"\x1f\x8b\x08", b"\x1f\x8b\x08\x1f"], mutate)

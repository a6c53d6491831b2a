"""Archives of a data set, honest ones and ones whose headers lie."""

from __future__ import annotations

from pathlib import Path

from shards.sources.base import KEY
from shards.sources.cartoonset import CartoonArchive
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target

WORDS = [
    b"ustar  \0",
    b"ustar\x0000",
    b"7777777",
    b"\x80\0\0\0",
    b"GNU.sparse.size=1\n",
    b"0000644\0",
    b"x",
    b"L",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.tar").write_bytes(data)
        samples = list(CartoonArchive(folder / "x.tar").samples())
        assert samples and all(KEY.fullmatch(sample.key) for sample in samples)
        assert len({sample.key for sample in samples}) == len(samples)
        return samples

    return Target([*shard_files.cartoon_tars(), *shard_files.hostile_tars()], feed, WORDS)

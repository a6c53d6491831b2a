"""Cartoon Set as a plain tar, by every program's headers."""

from __future__ import annotations

import tarfile

from shards.sources.cartoonset import CartoonArchive
from tests.support.fuzz import examples, hostile
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target


def seeds() -> list[bytes]:
    """With long names, PAX records, and what is refused: sparse maps, links, chains of headers."""
    files, long = examples.cartoons(), examples.cartoons("long/" * 40)
    end = bytes(1024)
    plain = examples.tar(files)
    return [
        plain,
        examples.tar(files, tarfile.PAX_FORMAT, comment="é"),
        examples.tar(long, tarfile.PAX_FORMAT),
        examples.tar(long, tarfile.GNU_FORMAT),
        hostile.header(b"S", b"00000001000\0") + bytes(512) + plain,
        hostile.header(b"x", b"%011o\0" % (22 * 3)) + hostile.padded(b"22 GNU.sparse.major=1\n" * 3) + plain,
        hostile.header(b"L", b"00000000001\0") + hostile.padded(b"x") + hostile.header(b"2", bytes(12)) + end,
        hostile.header(b"g", b"00000000021\0") + hostile.padded(b"17 comment=abcd\n\0") + plain,
        hostile.header(b"0", b"\x80" + bytes(2) + b"\x40" + bytes(8)) + plain,  # 2**70 bytes
        hostile.header(b"x", b"00000000021\0") * 20 + plain,
    ]


def target() -> Target:
    return Target(seeds(), archive(CartoonArchive, "x.tar"), hostile.RECORDS, hostile.tar)

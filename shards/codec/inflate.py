"""What is needed of zlib, by libdeflate where it is installed (the extra ``fast``): several times as fast.

Both let go of Python's lock while they inflate, and give the same results. Compression is left to zlib alone,
so that what is packed does not depend on what is installed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

Inflate = Callable[[bytes, int], bytes | bytearray]


@cache
def libdeflate() -> Any:
    """The module ``deflate``; None where it is not installed."""
    try:
        import deflate
    except ImportError:
        return None
    return deflate


@cache
def crc32() -> Callable[..., int]:
    """``zlib.crc32`` or its equal: a function of any buffer, and of the checksum of what goes before it."""
    found: Callable[..., int] = zlib.crc32 if libdeflate() is None else libdeflate().crc32
    return found


@cache
def inflater() -> Inflate:
    """A function of a zlib stream and its length, in bytes, inflated; it never makes more than that.

    It raises ValueError unless the stream is whole, undamaged and of that length.
    """
    deflate = libdeflate()
    if deflate is None:
        return by_zlib

    def by_libdeflate(data: bytes, length: int) -> bytes | bytearray:
        try:
            found: bytearray = deflate.zlib_decompress(data, length)
        except deflate.DeflateError as error:
            raise ValueError(str(error)) from error
        if len(found) != length:
            raise ValueError(f"{len(found)} bytes instead of {length}")
        return found

    return by_libdeflate


def by_zlib(data: bytes, length: int) -> bytes:
    """``inflater`` where libdeflate is not installed."""
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, length + 1)  # one more than allowed, to come past the stream's end
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(found) != length or not stream.eof:
        raise ValueError(f"{len(found)} bytes instead of {length}")
    return found

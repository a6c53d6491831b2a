"""Zlib streams of known length, whole or not at all: what PNG files hold their pixels in.

By libdeflate where it is installed (the extra ``fast``): twice as fast as zlib. Both let go of Python's lock.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache

Inflate = Callable[[bytes, int], bytes | bytearray]


@cache
def inflater() -> Inflate:
    """A function of a zlib stream and its length, in bytes, inflated; it never makes more than that.

    It raises ValueError unless the stream is whole, undamaged and of that length.
    """
    try:
        import deflate
    except ImportError:
        return _by_zlib

    def by_libdeflate(data: bytes, length: int) -> bytes | bytearray:
        try:
            found: bytearray = deflate.zlib_decompress(data, length)
        except deflate.DeflateError as error:
            raise ValueError(str(error)) from error
        if len(found) != length:
            raise ValueError(f"{len(found)} bytes instead of {length}")
        return found

    return by_libdeflate


def _by_zlib(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, length + 1)  # one more than allowed, to come past the stream's end
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(found) != length or not stream.eof:
        raise ValueError(f"{len(found)} bytes instead of {length}")
    return found

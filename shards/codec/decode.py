"""A packed image back to pixels: PNG, lossless WebP, or raw pixels in numpy's npy format.

The dimensions are read from the head, by hand, and must be the expected ones before a decoder sees the
rest: an image never costs more memory than the batch it is decoded into. Needs numpy and Pillow, not torch.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.codec import png

READS_CAP = 1 << 18


class ImageFile(BytesIO):
    """An image's bytes for Pillow, which is slow where they are many parts. ValueError for too many."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = READS_CAP

    def read(self, size: int | None = -1, /) -> bytes:
        """As the base's."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many parts")
        return super().read(size)


class BadSample(Exception):  # noqa: N818 - not for callers: a reader adds the shard and the key
    """What is wrong with a sample, where its shard and key are not known."""


def decode_image(data: bytes, out: NDArray[np.uint8], encoding: str = "png") -> None:
    """Decode an RGB image into ``out`` [H, W, 3]; ``encoding`` is png, webp or npy, as the index says.

    Raises BadSample for data of another format, other dimensions or another pixel format.
    """
    if encoding == "npy":
        head = npy_head(*out.shape)
        # Compared, not parsed: the packer writes this head and no other, so nothing else needs reading.
        if not data.startswith(head) or len(data) != len(head) + out.size:
            raise BadSample(f"not an npy array of uint8 {out.shape}")
        out[...] = np.frombuffer(data, np.uint8, offset=len(head)).reshape(out.shape)
        return
    height, width, _ = out.shape
    name = {"png": "PNG", "webp": "WebP"}[encoding]
    if (png.size_of(data) if encoding == "png" else webp_size(data)) != (width, height):
        raise BadSample(f"not a {name} of {width} x {height} pixels")
    try:
        image = Image.open(ImageFile(data), formats=(encoding.upper(),))
        if image.size != (width, height):  # a file may have a second head
            raise ValueError("two sizes")
        pixels = np.asarray(image)
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise BadSample(f"damaged {name} ({type(error).__name__})") from error
    if pixels.dtype != np.uint8 or pixels.shape != out.shape:
        raise BadSample("not an RGB image")
    out[...] = pixels


@lru_cache(maxsize=8)
def npy_head(*shape: int) -> bytes:
    """What ``np.save`` writes before the pixels of a uint8 array of that shape (version 1.0 of the format).

    Made here and not by numpy, so that shards have the same bytes whatever numpy's version.
    """
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    length = -(len(text) + 11) % 64 + len(text) + 1  # spaces and a newline fill up to a multiple of 64
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + text.ljust(length - 1) + b"\n"


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels in a WebP's first chunk; None for data that is no WebP."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":  # lossy
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
        case b"VP8L" if data[20] == 0x2F:  # lossless: 14 bits each, less one
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":  # extended: 24 bits each, less one
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None

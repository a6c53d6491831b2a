"""PNG files by hand: the head of any, and the pixels of those that filter every line alike.

PNG may filter each line of pixels in another way. With one filter for all of them, undoing it is one
operation on the whole image, which numpy does faster than any PNG library goes through the lines. The packer
writes such files (plain PNG to everyone else); filters that differ, and those that predict a pixel from more
than one neighbour, are the libraries' to read.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.codec.inflate import crc32, inflater, libdeflate

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {3: 2, 4: 6}  # by channels: RGB, RGBA
NONE, SUB, UP = 0, 1, 2  # PNG's filters: the pixel itself, less the one to the left, less the one above
CHUNKS_CAP = 1 << 16  # of a file that is read here
RAW_EXIF, XMP = b"Raw profile type exif\0", b"XML:com.adobe.xmp\0"  # texts that may tell how a picture stands
RAW_CAP = 1 << 16  # bytes of the first one, inflated: its orientation is at its beginning
LEVEL = 3  # of zlib: 9 takes five times as long for 4 % fewer bytes


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels in a PNG's first chunk; None for data that is no PNG."""
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """RGB or RGBA pixels [H, W, C] as a PNG with one filter, NONE or UP, whichever should make it smaller.

    Drawings are smaller with NONE, photos with UP. The bytes depend on the pixels and zlib's version alone.
    """
    height, width, channels = pixels.shape
    lines = np.zeros((2, height, 1 + width * channels), np.uint8)
    plain = pixels.reshape(height, -1)
    lines[0, :, 1:] = lines[1, :, 1:] = plain
    lines[1, 1:, 1:] -= plain[:-1]
    lines[1, :, 0] = UP
    # Every eighth line decides which: a quarter of the time of trying both on all.
    best = min(lines, key=lambda some: len(zlib.compress(some[1::8].tobytes(), 1)))
    stream = zlib.compress(best.tobytes(), LEVEL)
    return _head(height, width, channels)[0] + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def decode(data: bytes, out: NDArray[np.uint8]) -> bool:
    """Decode a PNG with one filter into ``out`` [H, W, C]; False, and ``out`` as it was, for any other file.

    Its IDAT must be one chunk right behind the head. The checksum within the pixels' stream is compared,
    those of the chunks are not. Raises ValueError for damaged pixels.
    """
    head, line, same = _head(*out.shape)
    if not data.startswith(head) or data[37:41] != b"IDAT":
        return False
    end = 41 + int.from_bytes(data[33:37], "big")
    if len(data) != end + 16 or data[end + 8 : end + 12] != b"IEND":
        return False
    stream = inflater()(data[41:end], line * out.shape[0])
    filters = stream[::line]
    if filters not in same:
        return False
    out[...] = _unfiltered(stream, out.shape, filters[-1])
    return True


class Parts(NamedTuple):
    """What is in a PNG: whole chunks that make its pixels, and what tells how it stands."""

    chunks: list[bytes]
    streams: list[bytes]  # what is in its IDAT chunks
    palette: bool  # or a colour that is transparent
    other: bool  # there were other chunks
    exif: bytes
    xmp: bytes


def parts(data: bytes) -> Parts:
    """The chunks of a PNG, whose checksums are compared; ValueError unless it is whole.

    Text and profiles may be of any size: of what is compressed in them, only the beginning is inflated.
    """
    chunks: list[bytes] = []
    streams: list[bytes] = []
    palette, other, exif, raw, xmp, at = False, False, b"", b"", b"", 8
    for _ in range(CHUNKS_CAP):  # each: length, kind, data, checksum
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        checksum = data[end : end + 4]
        if len(checksum) < 4:
            raise ValueError("too short")
        if crc32()(data[at + 4 : end]) != int.from_bytes(checksum, "big"):
            raise ValueError("a checksum differs")
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if kind == b"IHDR" and chunks:
                raise ValueError("two heads")
            chunks.append(data[at : end + 4])
            palette = palette or kind in (b"PLTE", b"tRNS")
            if kind == b"IDAT":
                streams.append(data[at + 8 : end])
            if kind == b"IEND":
                return Parts(chunks, streams, palette, other, exif or raw, xmp)
        else:
            other = True
            if kind == b"eXIf":
                exif = exif or data[at + 8 : end]
            elif kind in (b"tEXt", b"zTXt") and data[at + 8 : end].startswith(RAW_EXIF):
                raw = raw or _raw_exif(kind, data[at + 8 + len(RAW_EXIF) : end])
            elif kind == b"iTXt" and data[at + 8 : end].startswith(XMP):
                xmp = xmp or data[at + 8 + len(XMP) : end]
        at = end + 4
    raise ValueError("too many parts")


def _raw_exif(kind: bytes, text: bytes) -> bytes:
    """Exif data as ImageMagick writes them into a text chunk: three lines, then hex digits."""
    if kind == b"zTXt":
        try:
            text = zlib.decompressobj().decompress(text[1:], RAW_CAP)
        except zlib.error:
            return b""
    digits = b"".join(text[:RAW_CAP].split(b"\n")[3:])
    try:
        return bytes.fromhex(digits[: len(digits) & ~1].decode("ascii"))
    except ValueError:
        return b""


def lightened(data: bytes, found: Parts) -> NDArray[np.uint8] | bytes:
    """A PNG of anybody's, whose ``parts`` were found, inflated: the pixels, or a PNG to be decoded.

    Most of a large PNG's decoding is inflating, which libdeflate does several times as fast as the libraries
    do. Returns the pixels [H, W, C] of a file with one filter (the lines need not be contiguous); for others
    the same PNG with its pixels stored, which a library only has to unfilter. Both are for 8-bit RGB and
    RGBA. Any other file, a damaged one, and without libdeflate every one, comes back as it is but for what
    makes no pixels. The caller has compared the dimensions with what it allows (``size_of``).
    """
    deflate = libdeflate()
    plain = SIGNATURE + b"".join(found.chunks) if found.other else data
    if deflate is None or found.palette:
        return plain
    width, height = size_of(data) or (0, 0)
    channels = next((count for count, colour in COLOUR_TYPES.items() if data[25:26] == bytes([colour])), 0)
    shape = (height, width, channels)
    if 0 in shape:
        return plain
    head, line, same = _head(*shape)
    if data[:33] != head:
        return plain
    try:
        stream = inflater()(b"".join(found.streams), line * height)
    except ValueError:
        return plain
    filters = stream[::line]
    if filters in same:
        return _unfiltered(stream, shape, filters[-1])
    stored: list[bytes | bytearray] = [
        b"\x78\x01"
    ]  # a zlib stream of stored blocks, of at most 65,535 bytes each
    for start in range(0, len(stream), 65535):
        size = min(65535, len(stream) - start)
        last = start + size == len(stream)
        stored += [struct.pack("<BHH", last, size, size ^ 65535), stream[start : start + size]]
    stored.append(struct.pack(">I", deflate.adler32(stream)))
    return head + _chunk(b"IDAT", b"".join(stored)) + _chunk(b"IEND", b"")


def split_bytes(data: bytes) -> bytes:
    """A PNG of grey and alpha, 16 bits each, as one of four channels: their high and low bytes.

    PNG's filters know bytes and pixels only, so these are the same pixels.
    """
    head = data[12:24] + bytes([8, COLOUR_TYPES[4]]) + data[26:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def _unfiltered(stream: bytes | bytearray, shape: tuple[int, ...], kind: int) -> NDArray[np.uint8]:
    """The pixels of an inflated ``stream`` all of whose lines have the filter ``kind``; for NONE a view."""
    lines: NDArray[np.uint8] = np.frombuffer(stream, np.uint8).reshape(shape[0], -1)[:, 1:].reshape(shape)
    return lines if kind == NONE else np.add.accumulate(lines, 0 if kind == UP else 1, np.uint8)


@lru_cache(maxsize=8)
def _head(height: int, width: int, channels: int) -> tuple[bytes, int, tuple[bytes, ...]]:
    """Signature and IHDR of an 8-bit image, the bytes of a line, and the lines' filters if all are one's."""
    size = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    same = tuple(bytes([kind]) * height for kind in (NONE, SUB, UP))
    return SIGNATURE + _chunk(b"IHDR", size), 1 + width * channels, same


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32()(data, zlib.crc32(kind)))

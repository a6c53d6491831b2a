"""Image files by hand, of kinds that Pillow does not write: any PNG, and TIFFs of any samples."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from shards.codec import inflate, png
from shards.codec.png import SIGNATURE

PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG's colour types


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG's chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(
    samples: NDArray[Any],
    depth: int,
    colour: int,
    *,
    filters: Sequence[int] = (0,),
    interlaced: bool = False,
    before: bytes = b"",
    behind: bytes = b"",
) -> bytes:
    """A PNG of samples [H, W, C]; its lines have the ``filters`` in turn; chunks stand round its pixels."""
    height, width, channels = samples.shape
    step = max(channels * depth // 8, 1)
    stream = bytearray()
    parts = [samples[y::down, x::across] for y, x, down, across in PASSES] if interlaced else [samples]
    for part in parts:
        if not part.size:
            continue
        above = None
        for number, line in enumerate(part.reshape(len(part), -1)):
            bits = (line[:, None] >> np.arange(depth)[::-1]) & 1
            now = np.packbits(bits.astype(np.uint8)).astype(int)
            above = np.zeros_like(now) if above is None else above
            left, corner = (np.concatenate([np.zeros(step, int), some])[: len(now)] for some in (now, above))
            guess = left + above - corner
            near = [abs(guess - some) for some in (left, above, corner)]
            paeth = np.where(
                (near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner)
            )
            kind = filters[number % len(filters)]
            told = (0, left, above, (left + above) // 2, paeth)[kind]
            stream += bytes([kind]) + ((now - told) & 255).astype(np.uint8).tobytes()
            above = now
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = chunk(b"IDAT", zlib.compress(bytes(stream)))
    return SIGNATURE + chunk(b"IHDR", head) + before + pixels + behind + chunk(b"IEND", b"")


def tiff_file(
    samples: NDArray[Any], order: str = "<", *, deflated: bool = False, **tags: tuple[int, str, list[int]]
) -> bytes:
    """A TIFF of one strip of samples [H, W, C]; ``tags``: others, or more: number, type, values."""
    height, width, channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflated else data
    entries = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * samples.dtype.itemsize] * channels),
        259: ("H", [8 if deflated else 1]),
        262: ("H", [1 if channels == 1 else 2]),
        273: ("I", [8]),
        277: ("H", [channels]),
        278: ("I", [height]),
        279: ("I", [len(data)]),
        **({338: ("H", [2])} if channels == 4 else {}),
        **{number: (kind, values) for number, kind, values in tags.values()},
    }
    data += bytes(len(data) % 2)
    at = 8 + len(data)
    directory, behind = struct.pack(order + "H", len(entries)), b""
    end = at + 2 + 12 * len(entries) + 4
    for number, (kind, values) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(content) > 4:
            behind, content = behind + content, struct.pack(order + "I", end + len(behind))
        directory += struct.pack(
            order + "HHI4s", number, {"B": 1, "H": 3, "I": 4}[kind], len(values), content
        )
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", at)
    return head + data + directory + bytes(4) + behind


@contextmanager
def libdeflate(there: bool) -> Iterator[None]:
    """With what libdeflate does for PNGs, whether or not it is installed, or without it."""
    module = inflate.libdeflate() or SimpleNamespace(adler32=zlib.adler32)
    with mock.patch.object(png, "libdeflate", lambda: module if there else None):
        yield

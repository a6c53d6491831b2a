"""Source pictures: PNG, with one filter and any, JPEG, WebP."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from shards.codec import png
from shards.codec.decode import decode_image
from shards.codec.encode import prepare_image
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        packed = prepare_image(data, "x", crop=None, size=8)
        decode_image(packed, np.empty((8, 8, 3), np.uint8))
        return packed

    smooth = shard_files.picture()
    one_filter = png.encode(np.asarray(smooth))
    jpeg = shard_files.saved(smooth.convert("RGB"), "JPEG")
    seeds = [shard_files.saved(smooth, "PNG"), one_filter, jpeg, shard_files.saved(smooth, "WEBP")]
    huge = [struct.pack(">II", 10**9, 10**9), struct.pack(">II", 8192, 8192), struct.pack(">II", 1, 2**31)]
    return Target([*seeds, one_filter[:16] + huge[0] + one_filter[24:]], feed, huge)

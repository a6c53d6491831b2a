"""A portion of source samples as they stand in a shard: the work of a worker process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffbase.machine import malloc
from shards.codec.encode import Picture, decode_source, encode_pixels, prepare
from shards.packing.tar import Records, records
from shards.sources import Sample


def encode(samples: Sequence[Sample], *, crop: int | None, size: int, encoding: str) -> Records:
    """The samples as they stand in a shard; InputError names the first bad image."""
    malloc.keep_images()

    def packed(sample: Sample) -> tuple[str, dict[str, int], bytes]:
        pixels = prepare(_decode(sample), sample.where, crop, size)
        return sample.key, sample.labels, encode_pixels(pixels, encoding)

    return records(map(packed, samples), encoding)


def _decode(sample: Sample) -> Picture:
    data = sample.read_image()
    if not sample.planes:
        return decode_source(data, sample.where)
    planes = np.frombuffer(data, np.uint8).reshape(3, sample.planes, sample.planes)
    return planes.transpose(1, 2, 0)

"""A portion of source samples as they stand in a shard: the work of a worker process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffbase.cli import InputError
from diffbase.machine import malloc
from diffbase.system_error import DISK
from shards.codec import KEEP, KEPT
from shards.codec.encode import decode_source, encode_pixels, kept, prepare
from shards.codec.orientation import Picture
from shards.packing.bad import Bad
from shards.packing.tar import Records, records
from shards.sources import Sample
from shards.sources.base import IMAGE_CAP, check_size


class Portion(NamedTuple):
    """The good samples as they stand in a shard, and the bad ones."""

    records: Records
    bad: list[Bad]


def encode(
    samples: Sequence[Sample], *, names: Sequence[str], crop: int | None, size: int, encoding: str
) -> Portion:
    """The samples as they stand in a shard, without the bad ones; ``names`` are the schema's.

    OSError where the disk fails.
    """
    malloc.keep_images()
    bad: list[Bad] = []

    def packed() -> Iterator[tuple[str, dict[str, int], bytes]]:
        for sample in samples:
            try:
                if encoding == KEPT:
                    image = _kept(sample, crop, size)
                else:
                    image = encode_pixels(prepare(_decode(sample), sample.key, crop, size), encoding)
            except (InputError, OSError) as error:
                bad.append(Bad(sample.key, sample.where, _reason(error, sample.key)))
                continue
            yield sample.key, sample.labels, image

    return Portion(records(packed(), names, encoding), bad)


def _kept(sample: Sample, crop: int | None, size: int) -> bytes:
    if sample.planes:
        raise InputError(f"{sample.key}: raw pixels, which are not kept; allowed with --image {KEEP}: JPEG")
    data = sample.read_image()
    check_size(sample.key, max(len(data), sample.image_bytes), IMAGE_CAP)
    return kept(data, sample.key, crop, size)


def _decode(sample: Sample) -> Picture:
    data = sample.read_image()
    if sample.planes:
        planes = np.frombuffer(data, np.uint8).reshape(3, sample.planes, sample.planes)
        return planes.transpose(1, 2, 0)
    # A key is plain and short, where a path may be neither: the reason behind it comes back whole.
    check_size(sample.key, max(len(data), sample.image_bytes), IMAGE_CAP)
    return decode_source(data, sample.key)


def _reason(error: InputError | OSError, key: str) -> str:
    """Why an image is bad. An error that tells nothing of it, of a disk that fails, is raised again."""
    if isinstance(error, InputError):
        return str(error).removeprefix(f"{key}: ")
    if error.errno is None or error.errno in DISK:
        raise error
    return error.strerror or str(error)

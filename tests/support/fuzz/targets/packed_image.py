"""A packed image of each encoding, as a reader decodes it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from shards.codec import ENCODINGS
from shards.codec.decode import BadSample, decode_image
from shards.codec.encode import encode_pixels
from shards.codec.fast_decode import decoder
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target


def target() -> Target:
    pixels = shard_files.pixels()
    seeds = {name: encode_pixels(pixels, name) for name in ENCODINGS}

    def feed(data: bytes, folder: Path) -> object:
        told = None
        for encoding in ENCODINGS:
            for decode in (decoder(encoding), partial(decode_image, encoding=encoding)):
                try:
                    decode(data, np.empty_like(pixels))
                    return encoding
                except BadSample as error:
                    told = error
        assert told is not None
        raise told

    return Target(list(seeds.values()), feed, told=(BadSample,))

"""Packed images as a reader meets them: the first byte says which encoding, the rest is the image."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from shards.codec import ENCODINGS
from shards.codec.decode import BadSample, decode_image
from shards.codec.encode import encode_pixels
from shards.codec.fast_decode import decoder
from tests.support.fuzz import hostile
from tests.support.fuzz.examples import pixels
from tests.support.fuzz.target import Target


def target() -> Target:
    whole = pixels()

    def feed(data: bytes, folder: Path) -> object:
        encoding, image = ENCODINGS[data[0] % 3 if data else 0], data[1:]
        found = [np.empty_like(whole), np.empty_like(whole)]
        problems = []
        for out, decode in zip(
            found, (decoder(encoding), lambda d, o: decode_image(d, o, encoding)), strict=True
        ):
            try:
                decode(image, out)
            except BadSample as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return found

    def mutate(data: bytes, rng: random.Random) -> bytes:
        return data[:1] + hostile.png(data[1:], rng)

    seeds = [bytes([number]) + encode_pixels(whole, encoding) for number, encoding in enumerate(ENCODINGS)]
    return Target(seeds, feed, mutate=mutate, told=(BadSample,))

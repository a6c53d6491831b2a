"""A sample's labels as they stand in a shard."""

from __future__ import annotations

from pathlib import Path

from shards.codec.decode import BadSample
from shards.codec.labels import decode_labels, encode_labels
from shards.schema import CARTOON_SET, UNKNOWN
from tests.support.fuzz.target import Target


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        found = decode_labels(data, CARTOON_SET)
        assert all(UNKNOWN <= value < a.variants for value, a in zip(found, CARTOON_SET, strict=True))
        return found

    example = encode_labels({a.name: a.variants - 1 for a in CARTOON_SET})[0]
    deep = example.replace(b": 2", b": " + b"[" * 300 + b"]" * 300, 1)
    return Target([example, deep], feed, [b"[" * 900 + b"]" * 900, b"true", b"1.0"], told=(BadSample,))

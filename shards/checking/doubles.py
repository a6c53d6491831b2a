"""Keys that an index has twice, found in 8 bytes a sample: a set of all keys would take a hundred."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shards.table import Index

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def maybe_twice(index: Index) -> set[str]:
    """All keys that an index has more than once, and by chance some that it has once."""
    marks = np.empty(sum(map(len, index.splits.values())), np.uint64)
    at = 0
    for keys in _keys(index):
        marks[at : at + len(keys)] = mark(keys)
        at += len(keys)
    marks.sort()
    twice = np.unique(marks[1:][marks[1:] == marks[:-1]])
    if not len(twice):
        return set()
    return {str(key) for keys in _keys(index) for key in keys[np.isin(mark(keys), twice)].astype(str)}


def mark(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """64 bits of each key [N], the same for equal keys, whatever the width of their array: [N]."""
    width = keys.dtype.itemsize
    padded = np.zeros((len(keys), -(-width // 8) * 8), np.uint8)
    padded[:, :width] = np.frombuffer(keys.tobytes(), np.uint8).reshape(len(keys), width)
    found = np.zeros(len(keys), np.uint64)
    for column in padded.view("<u8").T[::-1]:  # zeros at a key's end change nothing
        found = (found ^ (found >> np.uint64(29)) ^ column) * _FACTOR
    return found


def _keys(index: Index) -> Iterator[NDArray[np.bytes_]]:
    for split in index.splits.values():
        for rows in split.portions():
            yield rows["key"]

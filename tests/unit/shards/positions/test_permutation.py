"""Permutations for whole arrays of keys and sizes, beside the one for a key."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.positions.permutation import scramble, scramble_each, word, words

PARTS = st.integers(0, 2**62)


@given(key=st.lists(PARTS, min_size=1, max_size=3), parts=st.lists(PARTS, min_size=1, max_size=5))
def test_words_are_those_of_each_key(key: list[int], parts: list[int]) -> None:
    found = words(np.full(len(parts), word(*key), np.uint64), np.array(parts, np.int64))
    assert found.tolist() == [word(*key, part) for part in parts]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_each_is_scrambled_as_alone(data: st.DataObject) -> None:
    size = st.one_of(st.integers(1, 40), st.integers(1000, 1100), st.integers(1, 2**45))
    counts = data.draw(st.lists(size, min_size=1, max_size=12), "counts")
    places = [data.draw(st.integers(0, count - 1)) for count in counts]
    keys = [(data.draw(PARTS), number) for number in range(len(counts))]
    found = scramble_each(
        np.array([word(*key) for key in keys], np.uint64), np.array(counts), np.array(places)
    )
    alone = [
        int(scramble(key, count, np.array([place]))[0])
        for key, count, place in zip(keys, counts, places, strict=True)
    ]
    assert found.tolist() == alone

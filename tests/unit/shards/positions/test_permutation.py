"""Permutations for whole arrays of keys and sizes, beside the one for a key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.positions.permutation import scramble, scramble_each, word, words

PARTS = st.integers(0, 2**62)


@given(key=st.lists(PARTS, min_size=1, max_size=3), parts=st.lists(PARTS, min_size=1, max_size=5))
def test_words_are_those_of_each_key(key: list[int], parts: list[int]) -> None:
    found = words(np.full(len(parts), word(*key), np.uint64), np.array(parts, np.int64))
    assert found.tolist() == [word(*key, part) for part in parts]


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 400), min_size=1, max_size=5), key=PARTS)
def test_each_is_a_permutation(counts: list[int], key: int) -> None:
    of = np.repeat(np.arange(len(counts)), counts)
    sizes = np.repeat(counts, counts)
    places = np.concatenate([np.arange(count) for count in counts])
    found = scramble_each(words(np.full(len(of), word(key), np.uint64), of), sizes, places)
    for number, count in enumerate(counts):
        assert sorted(found[of == number].tolist()) == list(range(count))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_each_is_scrambled_as_alone(data: st.DataObject) -> None:
    """Where both have as many rounds."""
    size = st.one_of(st.integers(1, 15), st.integers(1024, 1100), st.integers(1024, 2**45))
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


@pytest.mark.parametrize("count", [2, 5, 15, 16, 24, 63, 64, 167])
def test_each_value_comes_at_each_place_and_step_alike(count: int) -> None:
    """Chi-squared; its mean is d, its deviation sqrt(2 d). Fewer rounds fail at the steps: 5 has 8 there."""
    draws = 2000
    keys = words(np.full(draws, word(1, 2), np.uint64), np.arange(draws))
    places = np.tile(np.arange(count), draws)
    found = scramble_each(np.repeat(keys, count), np.full(len(places), count), places).reshape(draws, count)
    values = np.stack([np.bincount(column, minlength=count) for column in found.T])
    steps = np.bincount((np.diff(found, axis=1) % count).ravel(), minlength=count)[1:]
    for seen, freedom in ((values, (count - 1) ** 2), (steps, max(1, count - 2))):
        chi2 = ((seen - seen.mean()) ** 2 / seen.mean()).sum()
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)

"""Mirrored images: half of them, by seed and position alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shards.positions.flip import FLIP, flip, flipped
from shards.positions.permutation import word

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.lists(st.integers(0, 2**62 - 1), max_size=20))
def test_it_is_the_highest_bit_of_the_hash_of_a_position(seed: int, positions: list[int]) -> None:
    expected = [word(seed, FLIP, position) >> 63 == 1 for position in positions]
    assert flipped(seed, np.array(positions, np.int64)).tolist() == expected


@given(SEEDS)
def test_half_are_mirrored_and_neighbours_do_not_depend_on_each_other(seed: int) -> None:
    found = flipped(seed, np.arange(20_000))
    for share in (
        found.mean(),
        (found[1:] == found[:-1]).mean(),
        (found != flipped(seed ^ 1, np.arange(20_000))).mean(),
    ):
        assert abs(share - 0.5) < 0.03  # 8 standard deviations


def test_images_are_mirrored_where_they_are() -> None:
    before = np.random.default_rng(0).integers(0, 256, (50, 4, 6, 3), np.uint8)
    positions = np.arange(1000, 1050)
    after = before.copy()
    flip(after, 3, positions)
    for old, new, mirrored in zip(before, after, flipped(3, positions), strict=True):
        assert np.array_equal(new, np.fliplr(old) if mirrored else old)

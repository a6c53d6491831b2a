"""Keyed permutations of 0 .. n - 1, computed one number at a time: 64-bit integer arithmetic, no state.

The same on every machine and with every version of numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS, FEW, ROUNDS_OF_FEW = 8, 1024, 24  # small permutations mix slowly: measured, 8 rounds are not enough
TIERS = ((64, 8), (16, 12), (2, 24))
"""Of ``scramble_each``, for many permutations at once: sizes from the first number on have so many rounds."""


def word(*parts: int) -> int:
    """64 bits that depend on every part and on their order (the finaliser of splitmix64)."""
    word = 0
    for part in parts:
        word = (word + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        word ^= word >> 31
    return word


def scramble(key: tuple[int, ...], count: int, places: Places) -> Places:
    """A permutation of 0 .. ``count`` - 1 (below 2**62), chosen by ``key``, applied to ``places`` [B].

    A Feistel network over a x b >= count, a and b near the square root (Black & Rogaway 2002, method 3):
    each round adds a hash of one half to the other. What falls on the few numbers from ``count`` on goes
    through again, which keeps it a permutation of the rest.
    """
    a = max(1, int(np.ceil(np.sqrt(count))))
    b = -(-count // a)
    assert a * b >= count and a < 1 << 32
    keys = [np.uint64(word(*key, r)) for r in range(ROUNDS if count >= FEW else ROUNDS_OF_FEW)]
    bounds = (np.uint64(a), np.uint64(b))

    def once(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        halves = [numbers % bounds[0], numbers // bounds[0]]
        for r, round_key in enumerate(keys):
            here, other, bound = r & 1, 1 - (r & 1), bounds[r & 1]
            word = (halves[other] ^ round_key) * np.uint64(0xBF58476D1CE4E5B9)
            word ^= word >> np.uint64(29)
            word *= np.uint64(0x94D049BB133111EB)
            # The upper 32 bits as a fraction of 1, times the bound: even enough, and no division.
            moved = halves[here] + (((word >> np.uint64(32)) * bound) >> np.uint64(32))
            halves[here] = np.where(moved >= bound, moved - bound, moved)
        return halves[0] + halves[1] * bounds[0]

    numbers = once(places.astype(np.uint64))
    while (outside := numbers >= np.uint64(count)).any():
        numbers[outside] = once(numbers[outside])
    return numbers.astype(np.int64)


def words(before: Words, parts: Places | int) -> Words:
    """``word(*key, part)`` for whole arrays: ``before`` [B] are the ``word(*key)``, ``parts`` [B] or one."""
    mixed = before + np.asarray(parts).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def scramble_each(keys: Words, counts: Places, places: Places) -> Places:
    """``scramble`` with a permutation of its own for each of ``places`` [B].

    ``keys`` [B] are the ``word(*key)`` of their keys, ``counts`` [B] the permutations' sizes, at least 1. The
    rounds are those of ``TIERS``.
    """
    found = np.zeros_like(places)
    above = np.iinfo(np.int64).max
    for least, rounds in TIERS:
        mine = np.flatnonzero((counts >= least) & (counts < above))
        if len(mine):
            found[mine] = _scrambled(keys[mine], counts[mine].astype(np.uint64), places[mine], rounds)
        above = least
    return found


def _scrambled(keys: Words, counts: Words, places: Places, rounds: int) -> Places:
    a = np.ceil(np.sqrt(counts)).astype(np.uint64)
    b = (counts + a - np.uint64(1)) // a
    # One row a round: each is used as a whole.
    round_keys = words(np.broadcast_to(keys, (rounds, len(keys))), np.arange(rounds)[:, None])
    numbers = _once(places.astype(np.uint64), a, b, round_keys)
    while len(outside := np.flatnonzero(numbers >= counts)):
        again = numbers[outside]
        numbers[outside] = _once(again, a[outside], b[outside], round_keys[:, outside])
    return numbers.astype(np.int64)


def _once(numbers: Words, a: Words, b: Words, round_keys: Words) -> Words:
    bounds, halves = (a, b), [numbers % a, numbers // a]
    for r, round_key in enumerate(round_keys):
        here, other, bound = r & 1, 1 - (r & 1), bounds[r & 1]
        mixed = (halves[other] ^ round_key) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed >>= np.uint64(32)
        mixed *= bound
        mixed >>= np.uint64(32)
        mixed += halves[here]
        halves[here] = np.where(mixed >= bound, mixed - bound, mixed)
    return halves[0] + halves[1] * a

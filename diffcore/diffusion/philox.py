"""Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), on any device.

A counter-based generator: the words of a place are a function of (key, counter) alone, so they are drawn
where they are needed, in any order. It passes BigCrush (there). The counter of a block of four words is
(block, step, position, stream), its key (seed, 0).

Of that family it is the one that NumPy has as a bit generator, in C: 3 ns a word of 64 bits on a CPU, where
Philox4x32 or Threefry would be written in tensor operations, 25 or more of them for every 32 bits. On other
devices it is tensor operations, of which most serve both halves of a block at once; products of 128 bits are
put together from four of 64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
WORDS = 4
"""Words of a block."""
LOW = 0xFFFFFFFF
FRACTION_BITS = 43
TO_UNIT = np.float32(2.0**-31)
TO_ANGLE = np.float32(math.pi * 2.0**-31)


def words(seed: int, positions_B: Tensor, stream: int, count: int, step: int = 0) -> Tensor:
    """The first ``count`` words of each position: int64 [B, count], equal bit for bit on every device.

    ``positions_B`` is int64 [B] and says on which device; all 64 bits of a word are random.
    """
    if positions_B.device.type == "cpu":
        rows = [_row(seed, position, stream, count, step) for position in positions_B.tolist()]
        return torch.from_numpy(np.stack(rows)) if rows else positions_B.new_empty(0, count)
    return _tensors(seed, positions_B, stream, count, step)


def words_and_normals(
    seed: int, positions_B: Tensor, stream: int, shape: Sequence[int], step: int = 0
) -> tuple[Tensor, Tensor]:
    """A position's first four words, int64 [B, 4], and standard normals of those after: fp32 [B, *shape]."""
    size = math.prod(shape)
    count = WORDS + -(-size // 2)
    if positions_B.device.type != "cpu":
        words_BW = _tensors(seed, positions_B, stream, count, step)
        return words_BW[:, :WORDS], normals(words_BW[:, WORDS:], size).view(-1, *shape)
    # Row by row: what a row takes stays in the processor's cache, and NumPy starts no threads.
    words_B4 = np.empty((len(positions_B), WORDS), np.int64)
    normals_BN = np.empty((len(positions_B), size), np.float32)
    for i, position in enumerate(positions_B.tolist()):
        row = _row(seed, position, stream, count, step)
        words_B4[i] = row[:WORDS]
        _fill(normals_BN[i], row[WORDS:])
    return torch.from_numpy(words_B4), torch.from_numpy(normals_BN).view(-1, *shape)


def _row(seed: int, position: int, stream: int, count: int, step: int) -> NDArray[np.int64]:
    bits = np.random.Philox(key=[seed, 0], counter=[0, step, position, stream])
    drawn: NDArray[np.uint64] = bits.random_raw(count)
    return drawn.view(np.int64)


def _tensors(seed: int, positions_B: Tensor, stream: int, count: int, step: int) -> Tensor:
    blocks = -(-count // WORDS)
    # NumPy counts before it draws: its first block is that of counter 1.
    block_N = torch.arange(1, blocks + 1, device=positions_B.device)
    shape = (len(positions_B), blocks)
    even_2BN = torch.stack([block_N.expand(shape), positions_B[:, None].expand(shape)])
    odd_211 = torch.stack([torch.full_like(block_N[:1, None], value) for value in (step, stream)])
    return rounds(even_2BN, odd_211, (seed, 0)).flatten(1)[:, :count]


def rounds(even_2BN: Tensor, odd_2BN: Tensor, key: tuple[int, int]) -> Tensor:
    """Blocks of the counters whose words 0 and 2 are ``even_2BN``, 1 and 3 ``odd_2BN``: int64 [B, N, 4].

    Words are unsigned, in int64: sums, products and xor are the same bits, and what a shift brings in is cut.
    """
    key_R211, whole_R211, low_R211, high_R211 = _constants(key, even_2BN.device)
    even, odd = even_2BN, odd_2BN
    for k in range(ROUNDS):
        # Each round swaps the halves of the block; here the constants swap instead.
        product = _high(even, low_R211[k], high_R211[k])
        even, odd = product ^ odd.flip(0) ^ key_R211[k], even * whole_R211[k]
    return torch.stack([even[0], odd[0], even[1], odd[1]], dim=-1)


def _high(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The upper 64 bits of the unsigned product of x and ``low`` + 2^32 ``high``."""
    x_low, x_high = x & LOW, (x >> 32) & LOW
    first = x_high * low + ((x_low * low >> 32) & LOW)
    second = x_low * high + (first & LOW)
    return x_high * high + ((first >> 32) & LOW) + ((second >> 32) & LOW)


@functools.lru_cache(maxsize=64)
def _constants(key: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, multipliers and their lower and upper halves, each [ROUNDS, 2, 1, 1]. Kept: making them is a
    copy to the device that waits for it."""
    keys = [[(key[i] + k * WEYL[i]) % (1 << 64) for i in (0, 1)] for k in range(ROUNDS)]
    factors = [MULTIPLIERS for _ in range(ROUNDS)]
    # Before an even round the halves are in place, and what it makes is swapped.
    tables = [
        [row if k % 2 else row[::-1] for k, row in enumerate(keys)],
        [row[::-1] if k % 2 else row for k, row in enumerate(factors)],
    ]
    keys_R2, factors_R2 = (np.array(table, np.uint64).view(np.int64) for table in tables)
    all_of = (keys_R2, factors_R2, factors_R2 & LOW, (factors_R2 >> 32) & LOW)
    made = [torch.from_numpy(table).to(device)[:, :, None, None] for table in all_of]
    return made[0], made[1], made[2], made[3]


def uniform(words_B: Tensor, below: int) -> Tensor:
    """A whole number in 0 .. ``below`` - 1 of each word, int64, for ``below`` up to 2^20.

    One number is likelier than another by at most ``below`` / 2^43 of its share.
    """
    return fraction(words_B) * below >> FRACTION_BITS


def fraction(words_B: Tensor) -> Tensor:
    """A fraction in [0, 1) of each word, in units of 1 / 2^FRACTION_BITS: int64."""
    return (words_B >> (64 - FRACTION_BITS)) & ((1 << FRACTION_BITS) - 1)


def happens(words_B: Tensor, probability: float) -> Tensor:
    """Whether what has that probability happens, for each word: bool. Decided in whole numbers."""
    return ((words_B >> 11) & ((1 << 53) - 1)) < math.ceil(probability * 2.0**53)


def normals(words_BW: Tensor, count: int) -> Tensor:
    """Standard normals of words [B, ceil(count / 2)], two each (Box and Muller 1958): fp32 [B, count].

    31 bits make the radius and 32 the angle, so that none is beyond sqrt(64 ln 2) = 6.66. They are the same
    bit for bit on one device, whatever the batch; two devices' differ by a few units in the last place,
    those of their log, sin and cos.
    """
    if words_BW.device.type == "cpu":
        rows = np.empty((len(words_BW), count), np.float32)
        for out_N, words_W in zip(rows, words_BW.numpy(), strict=True):
            _fill(out_N, words_W)
        return torch.from_numpy(rows)
    pairs = -(-count // 2)
    bits_BV = words_BW.contiguous().view(torch.int32)
    out_BN = torch.empty(len(words_BW), count, device=words_BW.device)
    _box_muller(bits_BV[:, :pairs], bits_BV[:, pairs:], out_BN[:, :pairs], out_BN[:, pairs:])
    return out_BN


def _fill(out_N: NDArray[np.float32], words_W: NDArray[np.int64]) -> None:
    """One position's normals, by NumPy: ``_box_muller`` operation by operation."""
    pairs, bits = len(words_W), words_W.view(np.int32)
    radius = (bits[:pairs] & 0x7FFFFFFF).astype(np.float32)
    radius += np.float32(0.5)
    radius *= TO_UNIT
    np.log(radius, out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle = bits[pairs:].astype(np.float32)
    angle *= TO_ANGLE
    cosines, sines = out_N[:pairs], out_N[pairs:]
    np.cos(angle, out=cosines)
    cosines *= radius
    np.sin(angle[: len(sines)], out=sines)  # one fewer than the cosines where their number is odd
    sines *= radius[: len(sines)]


def _box_muller(for_radius: Tensor, for_angle: Tensor, cosines: Tensor, sines: Tensor) -> None:
    # Signed numbers of 32 bits, as vector units convert them; the radius has its small numbers exactly.
    radius = (for_radius & 0x7FFFFFFF).float().add_(0.5).mul_(float(TO_UNIT)).log_().mul_(-2).sqrt_()
    angle = for_angle.float().mul_(float(TO_ANGLE))
    torch.mul(angle.cos(), radius, out=cosines)
    last = sines.shape[-1]
    torch.mul(angle.sin_()[..., :last], radius[..., :last], out=sines)

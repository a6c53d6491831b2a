"""Philox and what is made of its words: known answers, equal words in both forms, the right distributions.

Statistics are of fixed seeds; their bounds are five standard deviations in theory, or a p-value of 1e-4.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcore.diffusion import philox
from diffcore.diffusion.randomness import STREAMS, Draws

KNOWN = [  # counter, key, block: Random123's kat_vectors, "philox4x64 10"
    ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
    ([2**64 - 1] * 4, [2**64 - 1] * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    (
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        [0x452821E638D01377, 0xBE5466CF34E90C6C],
        "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
    ),
]
PINNED_T = [132, 370, 489]
PINNED_KEEP = [True, False, True]
PINNED_NOISE = [
    [0.39795208, -0.96972275, 0.48433059, -1.16539729],
    [0.42326885, -0.99959749, 1.11265337, -0.90803874],
    [-0.25071919, 0.69462711, 0.32500547, -1.38587701],
]
MANY = 1 << 17
CLOSE = 5 / math.sqrt(MANY)
"""Five standard deviations of the correlation of so many independent pairs."""


def signed(words: list[int]) -> Tensor:
    return torch.from_numpy(np.array(words, np.uint64).view(np.int64))


@pytest.mark.parametrize(("counter", "key", "block"), KNOWN)
def test_known_answers(counter: list[int], key: list[int], block: str) -> None:
    halves = (signed(counter[i::2])[:, None, None] for i in (0, 1))
    found = philox.rounds(*halves, (key[0], key[1]))
    assert torch.equal(found[0, 0], signed([int(word, 16) for word in block.split()]))


@given(
    seed=st.integers(0, 2**63 - 1),
    positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    stream=st.sampled_from(list(STREAMS.values())),
    count=st.integers(1, 70),
    step=st.integers(0, 2**31),
)
@example(seed=2**63 - 1, positions=[2**62], stream=1, count=4, step=0)
@settings(max_examples=40, deadline=None)
def test_both_forms_have_the_same_words(
    seed: int, positions: list[int], stream: int, count: int, step: int
) -> None:
    places = torch.tensor(positions)
    found = philox.words(seed, places, stream, count, step)
    assert torch.equal(found, philox._tensors(seed, places, stream, count, step))
    words, normals = philox.words_and_normals(seed, places, stream, (count,), step)
    assert torch.equal(philox.words(seed, places, stream, 4, step), words)
    whole = philox.words(seed, places, stream, 4 + -(-count // 2), step)
    assert torch.equal(philox.normals(whole[:, 4:], count), normals)


@given(
    seed=st.integers(0, 2**63 - 1),
    positions=st.lists(st.integers(0, 2**62), min_size=2, max_size=5),
    size=st.sampled_from([1, 7, 48, 65, 33_001]),
)
@settings(max_examples=8, deadline=None)
def test_a_position_is_drawn_alone_as_in_a_batch(seed: int, positions: list[int], size: int) -> None:
    def at(some: list[int]) -> Draws:
        places = torch.tensor(some)
        return Draws.on_device(places, seed=seed, timesteps=1000, label_dropout=0.3, shape=(size,))

    together, threads = at(positions), torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))  # nor does it matter how many threads there are
    try:
        for i, position in enumerate(positions):
            alone = at([position])
            assert together.t_B[i] == alone.t_B[0] and together.keep_B[i] == alone.keep_B[0]
            assert torch.equal(together.eps_BCHW[i], alone.eps_BCHW[0])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("form", ["rows", "whole"])
@pytest.mark.parametrize("count", [1, 2, 999, 70_000])
def test_normals_are_box_and_mullers(form: str, count: int) -> None:
    """Against float64: an angle is rounded to half a unit in the last place of pi, 2^-23."""
    words = philox.words(3, torch.tensor([0, 9]), 1, -(-count // 2))
    pairs = words.shape[1]
    if form == "rows":
        found = philox.normals(words, count).double()
    else:  # as on other devices
        bits, found = words.view(torch.int32), torch.empty(2, count)
        philox._box_muller(bits[:, :pairs], bits[:, pairs:], found[:, :pairs], found[:, pairs:])
    halves = words.numpy().view(np.int32).astype(np.int64)
    radius = np.sqrt(-2 * np.log(((halves[:, :pairs] & 0x7FFFFFFF) + 0.5) / 2**31))
    angle = halves[:, pairs:] * np.pi / 2**31
    wanted = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]
    # Where the uniform number is next to 1 its rounding, 2^-25, is what the radius is made of.
    error = np.abs(found.numpy() - wanted) / np.concatenate([radius, radius], axis=1)[:, :count]
    bound = 2.0**-21 + 2.0**-24 / np.concatenate([radius, radius], axis=1)[:, :count] ** 2
    assert (error <= bound).all()


def test_extreme_words() -> None:
    ends = signed([0, 2**64 - 1, 2**63, 2**63 - 1])
    assert philox.uniform(ends, 1000).tolist() == [0, 999, 500, 499]
    assert philox.uniform(ends, 10**6).max() == 10**6 - 1
    assert philox.happens(ends, 0.0).tolist() == [False] * 4
    assert philox.happens(ends, 1.0).tolist() == [True] * 4
    assert philox.happens(ends, 0.5).tolist() == [True, False, False, True]
    bits = torch.tensor([[0, 2**31 - 1, -1, -(2**31)]], dtype=torch.int32)
    found = torch.empty(1, 8)
    philox._box_muller(bits, bits, found[:, :4], found[:, 4:])
    assert found.isfinite().all() and found.abs().max() <= math.sqrt(64 * math.log(2)) * (1 + 1e-6)


def noise(
    count: int = MANY, seed: int = 1, stream: str = "train", first: int = 0, step: int = 0, stride: int = 1
) -> Tensor:
    """Normals of 64 positions, one row each."""
    places = torch.arange(first, first + 64 * stride, stride)
    return philox.words_and_normals(seed, places, STREAMS[stream], (count // 64,), step)[1].double()


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_moments(seed: int) -> None:
    x = noise(seed=seed)
    for power, wanted, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)]:
        assert abs((x**power).mean() - wanted) < 5 * math.sqrt(variance / MANY), power


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_distribution(seed: int) -> None:
    """Kolmogorov and Smirnov: of all, of each half (cosines, sines), of one position, of one element."""
    x, many = noise(seed=seed), philox.words_and_normals(seed, torch.arange(4096), 1, (2,))[1]
    half = x.shape[1] // 2
    for some in (x, x[:, :half], x[:, half:], x[5], many[:, 0], many[:, 1]):
        assert scipy.stats.kstest(some.flatten().numpy(), "norm").pvalue > 1e-4


def test_a_shifted_distribution_would_be_found() -> None:
    x = noise()
    assert scipy.stats.kstest((x + 0.02).flatten().numpy(), "norm").pvalue < 1e-4


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"seed": 1 + 2**62},
        {"stream": "sample"},
        {"stream": "validation"},
        {"step": 1},
        {"first": 1},  # neighbours in the stream
        {"first": 64},
        {"first": 1 << 40},
        {"stride": 128},
    ],
)
def test_uses_are_independent(other: dict[str, int]) -> None:
    """Neither the numbers nor their sizes say anything of those of another use, position, step or seed."""
    a, b = noise(), noise(**other)  # type: ignore[arg-type]
    if "stride" in other:
        a, b = a[1:], b[1:]  # both begin with position 0
    assert abs(correlation(a, b)) < CLOSE * 1.01 and abs(correlation(a**2, b**2)) < CLOSE * 1.01


@pytest.mark.parametrize("lag", [1, 2, 3, 4, 8, MANY // 128])
def test_elements_are_independent(lag: int) -> None:
    """Of one position; half of the row away is the other number of a pair."""
    x = noise()
    a, b = x[:, lag:], x[:, :-lag]
    bound = CLOSE * math.sqrt(x.numel() / a.numel())
    assert abs(correlation(a, b)) < bound and abs(correlation(a**2, b**2)) < bound


def test_timesteps_and_drops() -> None:
    """Uniform, as often as asked, and nothing of each other or of the noise."""
    few = 1 << 14
    close = 5.01 / math.sqrt(few)
    draws = Draws.on_device(torch.arange(few), seed=7, timesteps=50, label_dropout=0.1, shape=(2,))
    assert scipy.stats.chisquare(torch.bincount(draws.t_B, minlength=50).numpy()).pvalue > 1e-4
    keep, t = draws.keep_B.double(), draws.t_B.double()
    assert abs(keep.mean() - 0.9) < 5 * math.sqrt(0.09 / few)
    for a, b in [(keep, t), (t[1:], t[:-1]), (keep[1:], keep[:-1])]:
        assert abs(correlation(a, b)) < close
    for element in draws.eps_BCHW.double().T:
        assert abs(correlation(element, t)) < close and abs(correlation(element, keep)) < close
    assert draws.t_B.dtype == torch.int64 and draws.keep_B.dtype == torch.bool


def test_draws_of_the_second_version_stay_what_they_are() -> None:
    """Runs depend on them. The noise to a few units in the last place of 1, as another processor rounds."""
    draws = Draws.on_device(
        torch.tensor([0, 1, 10**12]), seed=42, timesteps=1000, label_dropout=0.5, shape=(1, 2, 2)
    )
    assert draws.t_B.tolist() == PINNED_T and draws.keep_B.tolist() == PINNED_KEEP
    torch.testing.assert_close(draws.eps_BCHW.flatten(1), torch.tensor(PINNED_NOISE), rtol=0, atol=1e-6)

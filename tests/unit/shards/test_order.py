"""The order of the stream: a permutation an epoch, the same for every way of dealing it out."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards import order
from shards.order import ORDERS, Extent, Order, ReaderState
from shards.positions.permutation import scramble

SHUFFLED = sorted(set(ORDERS) - {"sequential"})
BATCH = 8


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 3000), key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**50)))
def test_scramble_is_a_permutation(count: int, key: tuple[int, int]) -> None:
    assert sorted(scramble(key, count, np.arange(count)).tolist()) == list(range(count))


@pytest.mark.slow
def test_scramble_reaches_every_permutation_evenly() -> None:
    """Chi-squared over the orders of four to six; its mean is d, its deviation sqrt(2 d)."""
    for count in (4, 5, 6):
        seen = dict.fromkeys(itertools.permutations(range(count)), 0)
        draws = 20 * len(seen)
        for epoch in range(draws):
            seen[tuple(scramble((0, epoch, 1), count, np.arange(count)).tolist())] += 1
        freedom = len(seen) - 1
        chi2 = sum((n - 20) ** 2 / 20 for n in seen.values())
        assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_each_sample_once_an_epoch(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 300), "count")
    tail = data.draw(st.sampled_from(order.TAILS), "tail")
    batch = data.draw(st.integers(1, count), "batch")
    extent = Extent(count, data.draw(st.integers(1, 40), "shard"))
    seed = data.draw(st.integers(0, 2**64 - 1), "seed")
    stream = Order(data.draw(st.sampled_from(sorted(ORDERS)), "order"), seed, extent, tail, batch)
    assert stream.length == (count if tail == "wrap" else count // batch * batch)
    epoch = data.draw(st.integers(0, 2**40), "epoch")
    places = np.arange(stream.length) + epoch * stream.length
    numbers = stream.sample_of(places)
    assert len(set(numbers.tolist())) == stream.length
    assert numbers.min() >= 0 and numbers.max() < count
    # A position at a time, or some of them in any order: the same.
    some = data.draw(st.lists(st.sampled_from(range(stream.length)), max_size=5), "some")
    assert stream.sample_of(places[some]).tolist() == numbers[some].tolist()


@pytest.mark.parametrize("name", SHUFFLED)
def test_epochs_and_seeds_differ(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "BLOCK", 4)
    orders = set()
    for seed in (0, 1, 2**64 - 1):
        stream = Order(name, seed, Extent(50, 5), batch=BATCH)
        orders |= {tuple(stream.sample_of(np.arange(e * 50, e * 50 + 50)).tolist()) for e in (0, 1, 2**40)}
    assert len(orders) == 9


def test_pinned() -> None:
    """A run resumed with later code, or another numpy, must go on in the same order."""
    extent, places = Extent(40_000, 1000), np.array([0, 1, 39_999, 40_000, 2**50])
    found = {name: Order(name, 7, extent, batch=BATCH).sample_of(places).tolist() for name in SHUFFLED}
    assert found == PINNED
    assert scramble((7, 3, 1), 10, np.arange(10)).tolist() == PINNED_SMALL
    for tail, pinned in PINNED_RUNS.items():  # of streams, units of one shard in runs
        stream = Order("streams", 7, Extent(40_000, 700, 5400), tail, 48)
        assert stream.sample_of(places).tolist() == pinned


PINNED = {
    "block": [21830, 6308, 36513, 9107, 15925],
    "full": [37369, 24664, 8018, 28995, 7469],
    "shards": [34554, 16176, 745, 16128, 28916],
    "streams": [3677, 9413, 35479, 491, 2171],
}
PINNED_RUNS = {
    "wrap": [719, 1493, 12527, 13874, 13882],
    "drop": [719, 1492, 12514, 13879, 13399],
}
PINNED_SMALL = [8, 4, 3, 9, 5, 0, 6, 7, 1, 2]


@pytest.mark.parametrize(("name", "size"), [("block", order.BLOCK), ("shards", 1000)])
def test_window_bounds_what_is_touched(name: str, size: int) -> None:
    count = 100_003
    stream = Order(name, 3, Extent(count, 1000))
    width = order.WINDOW // size * size
    numbers = stream.sample_of(np.arange(count))
    for first in range(0, count, width):
        mine = np.sort(numbers[first : first + width])
        runs = 1 + int((np.diff(mine) > 1).sum())
        # The shift may cut a block in two where the split ends and begins again, and so may the short rest.
        assert runs <= width // size + 2


@pytest.mark.parametrize("name", SHUFFLED)
def test_neighbours_are_unrelated(name: str) -> None:
    count = 100_000
    numbers = Order(name, 0, Extent(count, 1000), batch=100).sample_of(np.arange(count))
    if name != "streams":  # whose neighbours in a batch are of neighbouring parts of the split
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < (0.1 if name == "shards" else 0.03)
    together = np.mean(numbers[:-1] // 1000 == numbers[1:] // 1000)
    assert together < {"full": 0.012, "block": 0.022, "shards": 0.08, "streams": 0.012}[name]


def test_resume_in_a_million() -> None:
    for name in SHUFFLED:
        start = time.perf_counter()
        Order(name, 0, Extent(1_000_000, 1000), batch=256).sample_of(np.arange(900_000, 900_256))
        assert time.perf_counter() - start < 0.05, name


def test_refusals() -> None:
    extent = Extent(10, 5)
    with pytest.raises(ValueError, match="order is 'random'; allowed: full, block, shards, sequential, str"):
        Order("random", 0, extent)
    with pytest.raises(ValueError, match="tail is 'pad'; allowed: wrap, drop"):
        Order("full", 0, extent, "pad")
    with pytest.raises(ValueError, match="seed"):
        Order("full", -1, extent)
    with pytest.raises(ValueError, match="batch"):
        Order("full", 0, extent, batch=0)
    with pytest.raises(ValueError, match="needs the global batch"):
        Order("full", 0, extent, "drop")
    with pytest.raises(ValueError, match="order streams needs the global batch"):
        Order("streams", 0, extent)
    with pytest.raises(InputError, match="a batch of 11 is more than the 10 samples"):
        Order("full", 0, extent, "drop", 11)


STATE = ReaderState(512, "ab" * 32, "train", 7, 64, "full", "drop")


def test_state_goes_through_json() -> None:
    assert ReaderState.from_json(STATE.to_json()) == STATE
    STATE.check(ReaderState(0, "ab" * 32, "train", 7, 64, "full", "drop"))


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("index", "cd" * 32),
        ("split", "val"),
        ("seed", 8),
        ("batch", None),
        ("order", "block"),
        ("tail", "wrap"),
    ],
)
def test_state_of_another_stream(field: str, other: object) -> None:
    now = ReaderState(**{**vars(STATE), field: other})
    with pytest.raises(InputError, match=f"another stream: its {field} is .*, here it is {other!r}"):
        STATE.check(now)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", STATE.to_json()[:-2], STATE.to_json().replace("512", '"512"')]
    + [STATE.to_json().replace("512", value) for value in ("-1", "1.0", "true", "1e400")]
    + [STATE.to_json().replace('"train"', "3"), STATE.to_json().replace('"tail"', '"tale"')],
)
def test_state_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match="not a reader's state"):
        ReaderState.from_json(text)

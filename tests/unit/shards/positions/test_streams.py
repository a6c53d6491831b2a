"""The order over canonical streams: exactly once, ranks on samples of their own, spans that bound."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import TAILS, Extent, Order, chosen
from shards.positions import streams
from shards.positions.streams import Streams, streams_of

BYTES = [0, 1 << 16, 1 << 18, 1 << 30]  # of a sample: runs of 128, 16, 4 and 1


def drawn(data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> tuple[Order, Streams]:
    """An order of any proportions: many shards of a stream and less than one, units of one and of several."""
    monkeypatch.setattr(streams, "WINDOW", data.draw(st.sampled_from([1, 12, 60, 400]), "window"))
    count = data.draw(st.integers(1, 600), "count")
    tail = data.draw(st.sampled_from(TAILS), "tail")
    batch = data.draw(st.integers(1, count if tail == "drop" else 2 * count), "batch")
    extent = Extent(count, data.draw(st.integers(1, count), "shard"), data.draw(st.sampled_from(BYTES)))
    order = Order("streams", data.draw(st.integers(0, 2**64 - 1), "seed"), extent, tail, batch)
    assert order.streams is not None
    return order, order.streams


def epoch_of(order: Order, data: st.DataObject) -> np.ndarray:
    return np.arange(order.length) + data.draw(st.integers(0, 2**40), "epoch") * order.length


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_each_sample_once_an_epoch(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        order, _ = drawn(data, monkeypatch)
        positions = epoch_of(order, data)
        numbers = order.sample_of(positions)
        assert len(set(numbers.tolist())) == order.length
        assert numbers.min() >= 0 and numbers.max() < order.extent.count
        # A position at a time, or some of them in any order: the same.
        some = data.draw(st.lists(st.sampled_from(range(order.length)), max_size=5), "some")
        assert order.sample_of(positions[some]).tolist() == numbers[some].tolist()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_stream_is_a_run_of_neighbours_and_some_places_of_every_batch(data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        order, these = drawn(data, monkeypatch)
        positions = epoch_of(order, data)
        numbers, (_, of, places) = order.sample_of(positions), these.split(positions)
        assert order.batch is not None
        assert of.tolist() == (positions % order.batch // (order.batch // these.number)).tolist()
        slack = 0 if order.tail == "wrap" else order.extent.count % order.batch
        for stream in range(these.number):
            mine = np.sort(numbers[of == stream])
            # All of its places, in their order; of the tail drop some samples of its own sit out.
            assert places[of == stream].tolist() == list(range(len(mine)))
            assert not len(mine) or mine[-1] - mine[0] < len(mine) + slack
            for other in range(stream):
                theirs = numbers[of == other]
                assert not len(mine) or not len(theirs) or theirs.max() < mine[0]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_spans_hold_what_comes(data: st.DataObject) -> None:
    """What is asked for ahead is what the streams read until their next spans, and few runs of neighbours."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        order, these = drawn(data, monkeypatch)
        positions = epoch_of(order, data)
        whole = data.draw(st.booleans(), "whole")
        (at,) = data.draw(st.lists(st.sampled_from(positions.tolist()), min_size=1, max_size=1), "at")
        (now,) = these.spans(np.array([at]), whole)
        after = these.following([now], whole)
        assert order.windows(np.array([at]), whole) == [now] and order.windows_after([now], whole) == after
        epochs, of, places = (int(part[0]) for part in these.split(np.array([at])))
        assert order.batch is not None
        assert (now.epoch, now.stream) == (epochs, of) and now.first <= places < now.stop
        mine = positions[these.split(positions)[1] == of]
        expected = np.sort(order.sample_of(mine[now.first : now.stop]))
        found = order.samples_in([now])
        assert found.tolist() == expected.tolist()
        runs = 1 + int((np.diff(found) > 1).sum())
        slack = 0 if order.tail == "wrap" else order.extent.count % order.batch  # samples that sit out
        assert runs <= max(2, -(-len(found) // order.extent.shard)) + slack
        for span in after:
            assert span.stream == of and span.stop > span.first
            assert (span.epoch, span.first) in ((epochs, now.stop), (epochs + 1, 0))


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("world", [1, 2, 8, 24, 96])
def test_ranks_have_samples_of_their_own_in_every_epoch(tail: str, world: int) -> None:
    count, batch, epochs = 50_000, 96 * 4, 3
    order = Order("streams", 5, Extent(count, 100), tail, batch)
    assert order.streams is not None and order.streams.number == 384
    steps = np.arange(epochs * order.length // batch)[:, None, None] * batch
    share = batch // world
    positions = steps + np.arange(world)[:, None] * share + np.arange(share)
    whose = np.full(count, -1)
    shared = 0
    for rank in range(world):
        mine = np.unique(order.sample_of(positions[:, rank].ravel()))
        shared += int((whose[mine] >= 0).sum())
        whose[mine] = rank
    # With wrap an epoch's end lies amid a batch, and the bounds move by less than one.
    assert shared == 0 if tail == "drop" else shared <= (world - 1) * 2 * batch


def test_batches_come_from_as_many_shards_as_in_a_full_permutation() -> None:
    count, batch, shard = 200_000, 200, 1000
    together: dict[str, list[int]] = {"streams": [], "full": []}
    for name, found in together.items():
        order = Order(name, 1, Extent(count, shard), batch=batch)
        for step in range(0, count // batch, 50):
            found.append(len(np.unique(order.sample_of(np.arange(batch) + step * batch) // shard)))
    assert min(together["streams"]) > np.mean(together["full"])


def test_epochs_streams_and_seeds_differ() -> None:
    seen = set()
    for seed in (0, 1):
        order = Order("streams", seed, Extent(400, 20), batch=10)
        for epoch in (0, 1, 2**40):
            numbers = order.sample_of(np.arange(400) + epoch * 400).reshape(40, 10)
            seen |= {tuple((numbers[:, stream] - 40 * stream).tolist()) for stream in range(10)}
    assert len(seen) == 60


def worst_of(number: int, batch: int) -> Fraction:
    """Streams that a node touches, on average over the nodes, over its share: of the worst world."""
    worst = Fraction(0)
    for nodes in range(1, 1001):
        if batch % (8 * nodes) == 0:
            share, piece = batch // nodes, batch // number
            touched = sum(-(-(at + share) // piece) - at // piece for at in range(0, batch, share))
            worst = max(worst, Fraction(touched * piece, batch))
    return worst


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 200_000), batch=st.integers(1, 200).map(lambda n: 8 * n))
def test_number_of_streams(count: int, batch: int) -> None:
    """The one of all that divide the batch with which the worst world reads least; of equals the largest."""
    shard = min(count, 1000)
    number = streams_of(count, batch, shard)
    allowed = [n for n in range(1, max(1, count // shard) + 1) if batch % n == 0]
    assert (worst_of(number, batch), -number) == min((worst_of(n, batch), -n) for n in allowed)


@pytest.mark.parametrize("batch", [4096, 8000, 6144, 12_288, 16_800, 24_000, 23_976, 3072 * 8, 5 * 4096])
def test_a_thousand_nodes_read_little_twice(batch: int) -> None:
    assert worst_of(streams_of(10**8, batch, 1000), batch) <= Fraction(12, 10)
    assert streams_of(10**8, batch, 1000) <= streams.STREAMS


def test_number_of_streams_of_odd_batches() -> None:
    for batch, number in ((1, 1), (97, 97), (4099, 1), (9999, 909)):
        assert streams_of(10**8, batch, 1000) == number


GIB = 1 << 30


@pytest.mark.parametrize(
    ("count", "size", "batch", "cache", "order"),
    [
        (10_000, 5400, 256, None, "full"),
        (100_000_000, 5400, 4096, None, "streams"),
        (100_000_000, 5400, 4096, 64 * GIB, "streams"),
        (100_000_000, 110_000, 4096, 64 * GIB, "shards"),  # one node's cache does not hold 4,096 shards
        (100_000_000, 110_000, 128, 64 * GIB, "streams"),
        (100_000_000, 5400, None, None, "block"),
        (100_000_000, 5400, 1009 * 4, None, "streams"),
        (100_000_000, 5400, 4099, None, "block"),  # a prime: one stream
        (200_000, 5400, 4099, 1 << 20, "shards"),
    ],
)
def test_auto_is_chosen_by_the_data(count: int, size: int, batch: int, cache: int, order: str) -> None:
    assert chosen(Extent(count, 1000, size), batch, cache) == order

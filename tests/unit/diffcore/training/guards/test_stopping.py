"""All ranks stop at the same step, soon after one was asked, and never unasked."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore

from diffcore.engine.ranks import World
from diffcore.training.guards import stopping
from diffcore.training.guards.stopping import MOST, SIGNALS, Agreement, StopFlag
from tests.support.ranks import CPU, on_threads

SIGTERM = 15


@settings(deadline=None, max_examples=40)
@given(data=st.data(), size=st.integers(1, 5))
def test_all_ranks_hear_of_a_signal_at_the_same_step(data: st.DataObject, size: int) -> None:
    """Steps take what they take by a clock of the test's; a rank is ahead of another by less than a step."""
    asked = data.draw(st.one_of(st.none(), st.integers(1, 80)))
    of = data.draw(st.integers(0, size - 1))
    took = data.draw(st.lists(st.sampled_from([0.001, 0.01, 0.1, 5.0]), min_size=200, max_size=200))
    together, clock = threading.Barrier(size), [0.0]

    def work(world: World) -> list[int]:
        agreement, heard = Agreement(world), list[int]()
        for step, seconds in enumerate(took, start=1):
            heard.append(agreement.of(SIGTERM if asked and world.rank == of and step >= asked else 0))
            if heard[-1]:
                return heard
            if world.main:
                clock[0] += seconds
            together.wait(20)  # the gradients
        return heard

    with mock.patch.object(stopping, "monotonic", lambda: clock[0]):
        found = on_threads(size, work)
    assert all(one == found[0] for one in found)
    assert found[0][:-1] == [0] * (len(found[0]) - 1)
    if asked is None:
        assert len(found[0]) == len(took) and not found[0][-1]
    else:
        assert found[0][-1] == SIGTERM
        assert asked <= len(found[0]) <= asked + 2 * MOST + 2


def test_an_epoch_lasts_as_long_as_it_should_and_leaves_no_words_behind() -> None:
    """Of steps of 10 ms, 25 make an epoch; longer ones end it at once; of old epochs the store forgets."""
    store, clock, lengths = HashStore(), [0.0], list[int]()
    agreement = Agreement(World(0, 2, 0, CPU, store))
    with mock.patch.object(stopping, "monotonic", lambda: clock[0]):
        for step in range(400):
            clock[0] += 0.01 if step < 300 else 1.0
            agreement.of(0)
            lengths.append(agreement._length)
    assert max(lengths) in (24, 25) and lengths[-1] == 1  # EPOCH / 0.01, of sums of floats
    assert all(b <= 2 * a for a, b in itertools.pairwise(lengths))
    assert store.num_keys() <= 4  # with how often it was made


def test_several_ranks_have_a_store() -> None:
    with pytest.raises(ValueError, match="without a store"):
        Agreement(World(0, 2, 0, CPU))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), size=st.integers(1, 4))
def test_all_ranks_save_at_the_same_step_about_as_often_as_the_clock_says(
    data: st.DataObject, size: int
) -> None:
    every = data.draw(st.sampled_from([0.5, 2.0, 7.0]))
    took = data.draw(st.lists(st.sampled_from([0.001, 0.01, 0.1, 1.0]), min_size=150, max_size=150))
    others = data.draw(st.sets(st.integers(1, 150), max_size=3))  # saved for another reason
    together, clock, times = threading.Barrier(size), [0.0], list[float]()

    def work(world: World) -> list[int]:
        agreement, due = Agreement(world, every), list[int]()
        for step, seconds in enumerate(took, start=1):
            assert agreement.of(0) == 0
            together.wait(20)
            if agreement.due:
                due.append(step)
            if agreement.due or step in others:
                agreement.saved()
                times.extend([clock[0]] * world.main)
            together.wait(20)
            if world.main:
                clock[0] += seconds
            together.wait(20)  # the gradients
        return due

    with mock.patch.object(stopping, "monotonic", lambda: clock[0]):
        found = on_threads(size, work)
    assert all(one == found[0] for one in found)
    # A look comes after an epoch, which lasts as long as its steps do, and its words hold an epoch later.
    late = 0.0 if size == 1 else 2 * MOST * max(took) + 2 * stopping.EPOCH
    for before, now in itertools.pairwise([0.0, *times]):
        assert now - before <= every + late + max(took) + 1e-9
    if size == 1:  # none comes early
        assert len(times) <= sum(took) / every + len(others) + 1
    assert found[0] or sum(took) < every + late + max(took) or others


def test_without_a_time_no_checkpoint_is_due() -> None:
    with mock.patch.object(stopping, "monotonic", iter(range(0, 10**9, 10**6)).__next__):
        for size in (1, 2):
            agreement = Agreement(World(0, size, 0, CPU, HashStore()))
            assert not any(agreement.of(0) or agreement.due for _ in range(50))


@pytest.mark.parametrize("number", [number for number in SIGNALS if number != signal.SIGINT])
def test_each_of_the_signals_asks_for_the_end(number: signal.Signals) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup a hang-up is ignored
    stop = StopFlag()
    try:
        os.kill(os.getpid(), number)
        assert stop.signal == number
        stop.ask()
        assert stop.signal == number  # the first one counts
    finally:
        stop.restore()
        before = signal.signal(number, inherited)
    assert before == signal.SIG_DFL


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """nohup, and a shell that disowns."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopFlag()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == 0
        stop.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

"""The ordered map over processes: order, bounds, errors, and what becomes of a worker that dies."""

from __future__ import annotations

import itertools
import os
import signal
import time
from contextlib import closing

import pytest

from diffbase.cli import InputError
from shards.packing.workers import THREADS, map_in_order


def slow_square(number: int) -> int:
    time.sleep(0.02 * (number % 3 == 0))  # later items are ready before earlier ones
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise InputError("three is bad")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os._exit(9)
    return number


def environment(name: str) -> str | None:
    return os.environ.get(name)


def deaf(_: int) -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_order(jobs: int) -> None:
    assert list(map_in_order(slow_square, range(20), jobs)) == [n * n for n in range(20)]
    assert list(map_in_order(slow_square, [], jobs)) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_takes_only_a_few_items_ahead(jobs: int) -> None:
    items = itertools.count()
    with closing(map_in_order(slow_square, items, jobs)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert next(items) <= 3 + 2 * jobs


@pytest.mark.parametrize("jobs", [1, 2])
def test_error_comes_in_its_place(jobs: int) -> None:
    results = map_in_order(fail_at_three, range(9), jobs)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="three is bad"):
        next(results)


def test_worker_that_dies_is_told() -> None:
    with pytest.raises(InputError, match="a worker died"):
        list(map_in_order(die_at_three, range(9), 2))


def test_workers_leave_other_cores_alone() -> None:
    before = dict(os.environ)
    assert list(map_in_order(environment, THREADS, 2)) == ["1"] * len(THREADS)
    assert dict(os.environ) == before


def test_ctrl_c_is_the_parents_to_tell_from_the_first_moment() -> None:
    """Workers are deaf to it before they run a line of ours."""
    assert list(map_in_order(deaf, range(2), 2)) == [True, True]
    assert not deaf(0)

"""Shares of cores: all of them, each once, and hyperthreads stay together."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from diffbase.machine.cores import fair, neighbours, share


@given(st.lists(st.integers(0, 999), unique=True, max_size=200), st.integers(1, 64))
def test_shares_are_all_cores_in_order_and_differ_by_one_at_most(cores: list[int], parts: int) -> None:
    shares = [share(cores, part, parts) for part in range(parts)]
    assert [core for one in shares for core in one] == cores
    sizes = [len(one) for one in shares]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 64), st.integers(1, 64))
def test_ranks_divide_shared_cores_and_not_their_own(cores: int, parts: int) -> None:
    everything = range(cores)
    assert fair(everything, [everything] * parts) == max(1, cores // parts)
    bound = [share(everything, part, parts) for part in range(parts)]
    assert [fair(own, bound) for own in bound] == [max(1, len(own)) for own in bound]


@given(st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=9))
def test_threads_are_never_more_than_cores_where_each_has_one(bound: list[set[int]]) -> None:
    given_out = [fair(own, bound) for own in bound]
    assert all(1 <= threads <= len(own) for threads, own in zip(given_out, bound, strict=True))
    assert sum(threads for threads in given_out if threads > 1) <= len(set().union(*bound))


def test_hyperthreads_lie_together(tmp_path: Path) -> None:
    # Two sockets of two cores of two threads, numbered as Linux does on most machines.
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu % 4 // 2}\n")
        (folder / "core_id").write_text(f"{cpu % 2}\n")
    assert neighbours(range(8), tmp_path) == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_kernel_that_does_not_say_gives_their_numbers(tmp_path: Path) -> None:
    assert neighbours([3, 1, 2], tmp_path) == [1, 2, 3]

"""With how many nodes a run may go on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from diffcore.config.tree import Batch
from launch.supervise.takeover import fitting


@given(st.integers(1, 4096), st.integers(1, 8), st.integers(1, 40), st.integers(0, 40), st.integers(0, 60))
def test_the_most_nodes_among_whose_ranks_the_batch_divides(
    size: int, tasks: int, fewest: int, more: int, available: int
) -> None:
    wanted = fewest + more
    fit = [n for n in range(fewest, min(wanted, available) + 1) if size % (n * tasks) == 0]
    assert fitting(Batch(size=size), tasks, fewest, wanted, available) == max(fit, default=None)

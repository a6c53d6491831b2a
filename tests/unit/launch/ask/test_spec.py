"""What a job's size makes of its defaults."""

from __future__ import annotations

import pytest
from scipy.stats import poisson  # type: ignore[import-untyped]

from launch.ask.spec import usual_restarts

A_NODE_AND_DAY = 419 / 54 / (16_384 / 8)
"""Unexpected interruptions of Llama 3 (arXiv 2407.21783, section 3.3.4)."""


@pytest.mark.parametrize("nodes", [1, 8, 100, 500, 1000, 4000, 12_500])
def test_no_healthy_job_of_a_year_spends_its_restarts_of_a_day(nodes: int) -> None:
    """Even where every failure comes twice, because a broken node is tried once more."""
    beyond = poisson.sf(usual_restarts(nodes) / 2, nodes * A_NODE_AND_DAY)
    assert 365 * beyond < 1e-3

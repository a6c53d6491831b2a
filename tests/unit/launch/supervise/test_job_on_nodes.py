"""The simulated job of many nodes: closed forms, Daly's expectation, and what the real decisions end."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.follow.interval import young
from launch.supervise.decide.decision import Decision
from launch.supervise.decide.verdict import Verdict
from tests.support.job_on_nodes import (
    DAY,
    FLAKY,
    HOUR,
    Costs,
    Job,
    Kind,
    Outcome,
    Simulation,
    daly,
    expected_seconds,
    simulate,
)

CRASH, HANG, LOST = Kind("crash", 3, "crash"), Kind("hang", 1, "hang"), Kind("lost", 1, "lost")
KINDS = (CRASH, HANG, LOST)
NEVER = math.inf


@given(st.integers(1, 5000), st.integers(1, 700), st.integers(1, 9))
def test_without_failures_the_time_is_the_closed_form(steps: int, every: int, nodes: int) -> None:
    costs = Costs(step=0.5, stall=3.0)
    outcome = simulate(Job(nodes, steps, every, NEVER, KINDS, costs), seed=0)
    overhead = costs.life + costs.start + costs.load + math.ceil(steps / every) * costs.stall + costs.write
    assert outcome.done and outcome.steps == steps
    assert outcome.total == pytest.approx(steps * costs.step + overhead)
    assert outcome.goodput == pytest.approx(steps * costs.step / outcome.total)


def again(verdict: Verdict, events: Sequence[Mapping[str, Any]], **asked: Any) -> Decision:
    """Rules that never end a run."""
    return Decision(True, verdict.code, "", {})


def test_with_failures_the_mean_is_dalys_expectation() -> None:
    """Crashes that are seen at once, checkpoints that are whole when training goes on: what Daly assumes."""
    costs = Costs(step=1.0, start=200.0, load=100.0, stall=60.0, write=0.0, crash=0.0, life=0.0)
    nodes, mean, every, segments = 100, 4000.0, 900, 60
    job = Job(nodes, segments * every, every, nodes * mean / HOUR, (CRASH,), costs, restarts=10**9)
    outcomes = [simulate(job, seed, again) for seed in range(300)]
    assert all(o.done for o in outcomes)
    totals = [o.total for o in outcomes]
    wanted = expected_seconds(segments, every * costs.step + costs.stall, costs.start + costs.load, mean)
    error = statistics.stdev(totals) / math.sqrt(len(totals))
    assert abs(statistics.mean(totals) - wanted) < 4.5 * error + segments * costs.step


@given(st.floats(1.0, 100.0), st.floats(1e4, 1e6))
def test_the_best_interval_is_where_dalys_expectation_is_least(stall: float, mean: float) -> None:
    def cost(work: float) -> float:  # of one second of work
        return expected_seconds(1, work + stall, 0.0, mean) / work

    best = daly(stall, mean)
    assert best == pytest.approx(young(stall, mean), rel=0.3 + 2 * math.sqrt(stall / mean))
    for other in (0.8 * best, 1.25 * best):
        assert cost(best) < cost(other)


@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(20.0, 2000.0), st.floats(0.0, 1.0))
def test_every_second_is_accounted_for(seed: int, nodes: int, hours: float, broken: float) -> None:
    job = Job(nodes, 20_000, 600, hours, KINDS, spares=2, broken=broken, restarts=100)
    simulation = Simulation(job, seed)
    outcome = simulation.run()
    assert all(seconds >= 0 for seconds in outcome.seconds.values())
    assert outcome.seconds["train"] == pytest.approx(outcome.steps * job.costs.step)
    assert outcome.done == (outcome.steps == job.steps)
    assert sum(outcome.failures.values()) == outcome.attempts - outcome.done
    times = [e["time"] for e in simulation.events]
    assert times == sorted(times) and times[-1] <= outcome.total
    assert len(simulation.nodes) == nodes  # wherever they came from


def test_the_same_seed_is_the_same_job() -> None:
    job = Job(50, 50_000, 600, 500.0, KINDS, spares=2)
    assert simulate(job, 1) == simulate(job, 1) != simulate(job, 2)


@pytest.mark.parametrize("nodes", [1, 2, 50])
@pytest.mark.parametrize("bug", [1, 599, 600, 601, 50_000])
def test_a_crash_that_comes_back_ends_the_job(nodes: int, bug: int) -> None:
    """At the latest in its third attempt: the second node is the same rank's."""
    for spares in (0, 5):
        outcome = simulate(Job(nodes, 100_000, 600, NEVER, (), bug=bug, spares=spares), seed=0)
        assert not outcome.done and "no progress" in outcome.why
        assert outcome.attempts <= 3 and outcome.steps < bug


def test_a_program_that_crashes_every_quarter_of_an_hour_is_ended_within_a_day() -> None:
    """Though most attempts get further."""
    job = Job(8, 10**7, 600, 8 * 900.0 / HOUR, (replace(CRASH, machine=False),))
    outcome: Outcome = simulate(job, seed=0)
    assert not outcome.done and outcome.why.startswith("given up")
    assert outcome.total < DAY


def test_a_broken_node_is_left_out_and_without_a_spare_ends_the_job() -> None:
    job = Job(20, 200_000, 600, 2000.0, (CRASH,), broken=1.0, spares=20)
    outcome = simulate(job, seed=1)
    assert outcome.done and outcome.left_out >= 1
    assert outcome.failures["broken node"] == outcome.left_out
    alone = simulate(replace(job, spares=0), seed=1)
    assert not alone.done and alone.left_out == 0


def test_a_job_goes_on_with_fewer_nodes_where_none_is_free() -> None:
    job = Job(10, 40_000, 600, 50.0, (LOST,), repair=1e6, fitting=lambda there: there if there >= 5 else None)
    simulation = Simulation(job, seed=3)
    outcome = simulation.run()
    lost = outcome.failures["lost"]
    assert outcome.done and 1 <= lost == 10 - len(simulation.nodes)
    assert outcome.seconds["short"] > 0


def test_a_job_with_fewer_nodes_grows_again_in_its_next_life() -> None:
    class Watched(Simulation):
        sizes: list[tuple[int, int]]

        def _begin_life(self) -> None:
            super()._begin_life()
            there = sum(map(bool, self.nodes)) + len(self.spares)
            self.__dict__.setdefault("sizes", []).append((len(self.nodes), there))

    job = Job(
        10, 400_000, 600, 50.0, (LOST,), repair=6.0, fitting=lambda there: there if there >= 5 else None
    )
    watched = Watched(job, 3)
    assert watched.run().done
    assert all(size == min(10, there) for size, there in watched.sizes)
    changes = [after - before for (before, _), (after, _) in itertools.pairwise(watched.sizes)]
    assert min(changes) < 0 < max(changes)


def test_flaky_nodes_fail_as_much_more_often_as_is_said() -> None:
    """Failures are Poisson: their number and the flaky nodes' share, within 5 standard deviations."""
    job = Job(50, 400_000, 4000, 2000.0, (CRASH,), Costs(start=1.0, load=1.0), flaky=2, restarts=10**9)
    simulation = Simulation(job, 0, again)
    outcome = simulation.run()
    named = [e["node"] for e in simulation.events if e["event"] == "ended"]
    wanted = outcome.total / HOUR / 2000.0 * (48 + 2 * FLAKY)
    assert abs(len(named) - wanted) < 5 * math.sqrt(wanted)
    share = 2 * FLAKY / (48 + 2 * FLAKY)
    deviation = math.sqrt(share * (1 - share) / len(named))
    assert abs(sum(name in ("n0", "n1") for name in named) / len(named) - share) < 5 * deviation


def test_flaky_nodes_are_left_out_and_the_goodput_comes_back() -> None:
    job = Job(100, 2_000_000, 600, 1000.0, (CRASH,), flaky=3, spares=5, restarts=100)
    outcome, never = simulate(job, 0), simulate(job, 0, again)
    assert outcome.done and outcome.left_out >= 3
    assert sum(outcome.failures.values()) < 0.75 * sum(never.failures.values())
    assert outcome.goodput > never.goodput

"""benchmarks/chaos_lineage.py over simulated trainings whose true history is known."""

from __future__ import annotations

import json
from collections import Counter
from itertools import chain
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos_lineage import Lineage, Pass, lineage, read, standstill, steps

EPOCH, EPOCHS, RANKS = 3, 3, 2
TOTAL = EPOCH * EPOCHS


def order(step: int, rank: int) -> tuple[str, ...]:
    """The samples of a step where every epoch sees all six once."""
    number = (step % EPOCH) * RANKS + rank
    return (f"sample {(number + step // EPOCH) % (EPOCH * RANKS)}",)


def train(ends: list[tuple[int, int]], shift: int = 0, fresh: bool = False) -> list[Pass]:
    """Lives of (step it begins with, steps it takes); ``shift``: a later life reads that many steps ahead.

    ``fresh``: a later life's steps lead to other weights than the first's (other noise), as without its seed.
    """
    found, time, weights = [], 0.0, {0: "w0"}
    for life, (begin, count) in enumerate(ends):
        for step in range(begin, begin + count):
            time += 1
            for rank in range(RANKS):
                samples = order(step + shift * (life > 0), rank)
                found.append(Pass(time + rank / 10, 10 * life + rank, rank, weights[step], samples))
            weights[step + 1] = f"w{step + 1}" + f" of {life}" * fresh
            for rank in range(RANKS):
                found.append(Pass(time + 0.5 + rank / 10, 10 * life + rank, rank, weights[step + 1], ()))
    return found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=4), st.booleans())
def test_steps_are_found_by_their_weights_alone(jumps: list[tuple[int, int]], fresh: bool) -> None:
    lives, reached = [(0, 4)], 4
    for back, count in jumps:
        begin = max(0, reached - back)
        lives.append((begin, min(count, TOTAL - begin)))
        reached = max(begin + lives[-1][1], 0)
    lives.append((reached, TOTAL - reached))
    passes = train([life for life in lives if life[1]], fresh=fresh)
    true = [step for begin, count in lives for step in range(begin, begin + count) for _ in range(RANKS)]
    assert [step.number for step in steps(passes)] == true
    taken = [step for begin, count in lives for step in range(begin, begin + count)]
    again = len(taken) - len(set(taken))
    assert lineage(passes, TOTAL, EPOCH) == Lineage(again=again, twice=0, never=0, lost=False)


def test_samples_seen_twice_and_never() -> None:
    told = lineage(train([(0, 4), (4, 5)], shift=1), TOTAL, EPOCH)
    # From the fifth step on each has the samples of the one after it.
    samples = [[order(step + (step >= 4), rank)[0] for rank in range(RANKS)] for step in range(TOTAL)]
    counts = [Counter(chain(*samples[EPOCH * e : EPOCH * (e + 1)])) for e in range(EPOCHS)]
    assert told.twice == sum(sum(c.values()) - len(c) for c in counts) > 0
    assert told.never == sum(EPOCH * RANKS - len(c) for c in counts) > 0


def test_weights_of_nobody_are_told() -> None:
    passes = train([(0, 4)])
    stranger = Pass(100, 99, 0, "restored from what was torn", order(4, 0))
    assert lineage([*passes, stranger], TOTAL, EPOCH).lost
    assert not lineage(passes, TOTAL, EPOCH).lost


def test_a_standstill_ends_with_a_step_that_nobody_took_before() -> None:
    placed = steps(train([(0, 5), (2, 7)]))  # a step a second; the sixth is begun at 9, the fifth was at 5
    assert standstill(placed, 5.5) == standstill(placed, 8.9) == 4
    assert standstill(placed, 9.5) == 1
    assert standstill(placed, 20) is None


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    row = {"time": 1.0, "pid": 2, "rank": 0, "weights": "w", "samples": ["a"]}
    (tmp_path / "2-1.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row)[:-5])
    assert read(tmp_path) == [Pass(1.0, 2, 0, "w", ("a",))]

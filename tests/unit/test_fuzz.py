"""A part of benchmarks/fuzz.py, with a fixed seed, and every input that was once answered wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzz import targets
from tests.support.fuzz.play import cases, play

CORPORA = Path(__file__).resolve().parents[1] / "corpora"
CASES = 150


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.names())
def test_damaged_input_is_told_or_valid(name: str) -> None:
    target = targets.load(name)
    outcome = play(target, cases(target, name, CASES, seed=0))
    assert not outcome.findings
    assert outcome.told and outcome.told + outcome.valid == CASES


@pytest.mark.parametrize("name", targets.names())
def test_whole_examples_are_valid(name: str) -> None:
    target = targets.load(name)
    outcome = play(target, target.seeds[:1])
    assert not outcome.findings and outcome.valid == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in sorted(CORPORA.iterdir())])
def test_what_was_once_answered_wrongly(name: str) -> None:
    target = targets.load(name)
    data = [path.read_bytes() for path in sorted((CORPORA / name).iterdir())]
    outcome = play(target, data)
    assert not outcome.findings and data

"""A tracker has each step of a run once, whatever lives it takes, and never holds up the training."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffcore.training.loggers import identity, monitor, tracker
from diffcore.training.loggers.tracker import Tracker


class Kept:
    """A logger that keeps steps in a list, of which a later life knows the newest, or nothing."""

    name = "kept"

    def __init__(self, run: Path, steps: list[int], knows: bool, fails_at: str = "") -> None:
        self.run, self.steps, self._knows, self._fails_at = run, steps, knows, fails_at

    def _called(self, what: str) -> None:
        if what == self._fails_at:
            raise SystemExit(f"no {what}: token=abcdefgh")

    def begin(self) -> int | None:
        self._called("begin")
        return max(self.steps, default=-1) if self._knows else None

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._called("figures")
        self.steps.append(step)

    def image(self, tag: str, step: int, image_HWC: np.ndarray) -> None:
        self._called("image")

    def close(self) -> None:
        self._called("close")


LIVES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), min_size=1, max_size=5)


@settings(deadline=None, max_examples=40)
@given(lives=LIVES, knows=st.booleans())
def test_each_step_is_given_once(
    lives: list[tuple[int, int, bool]], knows: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A life begins at a step that an earlier one has reached, goes on, and may roll back on its way."""
    run, steps, reached = tmp_path_factory.mktemp("run"), list[int](), 0
    for start, length, back in lives:
        start = min(start, reached)
        given = [Tracker(Kept(run, steps, knows))]
        opened = monitor.Monitor(run, start, 99, True, board=False, trackers=given)
        for step in range(start + 1, start + length + 1):
            opened.scalars(step, {"train/loss": 1.0})
        if back and length:
            opened.rewind(start)
            for step in range(start + 1, start + length + 2):
                opened.scalars(step, {"train/loss": 2.0})
        opened.close()
        reached = max(reached, *steps) if steps else 0
    assert steps == list(range(1, reached + 1))


@pytest.mark.parametrize("fails_at", ["begin", "figures", "image", "close"])
def test_a_tracker_that_fails_is_told_of_once_and_ends_nothing(
    fails_at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though it would end the process; and what it says of a token is not shown."""
    failing = Tracker(Kept(tmp_path, [], True, fails_at))
    opened = monitor.Monitor(tmp_path, 0, 9, True, board=False, trackers=[failing])
    for step in range(1, 4):
        opened.scalars(step, {"train/loss": 1.0})
        opened.image("grid", step, np.zeros((2, 2, 3), np.uint8))
    opened.close()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kept: ")]
    assert lines == [f"kept: no {fails_at}: token=***; training goes on without it"]


def test_a_tracker_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "WAITING", 3)
    monkeypatch.setattr(tracker, "CLOSING", 0.05)
    logger, go = Kept(tmp_path, [], True), threading.Event()
    monkeypatch.setattr(logger, "begin", lambda: go.wait(60) and -1)
    opened = monitor.Monitor(tmp_path, 0, 9, True, board=False, trackers=[Tracker(logger)])
    for step in range(1, 10):
        opened.scalars(step, {"train/loss": 1.0})
    opened.close()
    go.set()
    said = capsys.readouterr().out
    assert "kept: it is behind by 3 figures" in said


def test_a_tracker_that_is_behind_at_the_end_is_closed_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its queue is full when the end comes."""
    monkeypatch.setattr(tracker, "WAITING", 3)
    logger, go, closed = Kept(tmp_path, [], True), threading.Event(), list[int]()
    monkeypatch.setattr(logger, "begin", lambda: go.wait(60) and -1)
    monkeypatch.setattr(logger, "close", lambda: closed.append(len(logger.steps)))
    behind = Tracker(logger)
    behind.start(-1)
    for step in range(1, 10):
        behind.figures(step, {"train/loss": 1.0})
    threading.Timer(0.2, go.set).start()
    behind.close()
    assert closed == [3]


def test_the_end_waits_for_a_tracker_no_longer_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the end of the queue is reached late: both waits together are bound."""
    slow, joined = Tracker(Kept(tmp_path, [], True)), list[float]()
    clock = iter([100.0, 100.0 + 0.75 * tracker.CLOSING])
    monkeypatch.setattr(tracker, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(slow._queue, "put", lambda work, timeout: None)
    monkeypatch.setattr(slow._thread, "join", joined.append)
    slow.close()
    assert joined == [0.25 * tracker.CLOSING]


def test_the_number_of_a_trackers_run_is_kept_or_refused(tmp_path: Path) -> None:
    assert identity.kept(tmp_path, "wandb") == identity.Identity(id=None, newest=-1)
    identity.keep(tmp_path, "wandb", id="ab-12")
    identity.keep(tmp_path, "wandb", newest=7)
    assert identity.kept(tmp_path, "wandb") == identity.Identity(id="ab-12", newest=7)
    for wrong in ({"id": 3}, {"id": "../x"}, {"newest": "7"}, []):
        (tmp_path / "wandb.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=r"wandb.json: not a tracker's run"):
            identity.kept(tmp_path, "wandb")

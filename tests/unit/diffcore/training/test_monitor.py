"""What the monitor says is text, in a log and beside a progress bar."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffbase.formats import json_file
from diffcore.runs import metrics
from diffcore.training.loggers import monitor

LINES = [
    "memory report: /x[/x]",
    "run [/b] exp[a]",
    "a \x1b[2J b",
    "[bold]x",
    "two\nlines",
    "step 1/2  epoch 0.5",
]


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_with_brackets_or_escapes_is_shown_as_it_is(
    line: str,
    terminal: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    opened = monitor.Monitor(tmp_path, 0, 10, active=True)
    opened.say(line)
    figures = {
        "train/samples": 8.0,
        "train/loss": 1.0,
        "train/images_per_second": 2.0,
        "memory/process_mib": 3.0,
    }
    opened.progress(5, figures, 16)
    opened.close()
    shown = capsys.readouterr()
    words = line.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert words in (shown.err if terminal else shown.out)


@pytest.mark.parametrize(
    ("error", "of", "shown"),
    [(OSError, "tensorboard", ""), (OSError, "x", "OSError"), (KeyError, "tensorboard", "KeyError")],
)
def test_the_boards_thread_leaves_no_traceback_of_a_disk(
    error: type[Exception], of: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    thread = type("Writer", (threading.Thread,), {"__module__": f"{of}.writer"})()
    monitor._without_tensorboards(threading.ExceptHookArgs((error, error(28, "no room"), None, thread)))
    assert shown in (said := capsys.readouterr().err) and bool(said) == bool(shown)


@pytest.mark.parametrize("active", [True, False])
def test_what_a_disk_does_not_take_is_told_once_by_rank_0(
    active: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = monitor.Monitor(tmp_path, 0, 10, active)
    for what in ("the profile", "samples", "the profile"):
        with opened.writing(what):
            raise OSError(28, "No space left on device")
    opened.close()
    words = "cannot be written (No space left on device); training goes on"
    wanted = [f"the profile {words}", f"samples {words}"]
    assert capsys.readouterr().out.splitlines() == (wanted if active else [])


def test_a_figure_that_is_not_finite_is_null_on_the_disk_and_nan_when_read(tmp_path: Path) -> None:
    (tmp_path / metrics.FILE).write_text('{"step": 1, "train/loss": NaN}\n')  # an older version's
    opened = monitor.Monitor(tmp_path, 1, 10, active=True)
    assert json_file.read(tmp_path / metrics.FILE) == {"step": 1, "train/loss": None}
    opened.scalars(2, {"train/loss": math.inf, "quality/fidelity": 0.5})
    opened.close()
    first, second = metrics.read(tmp_path)
    assert math.isnan(first["train/loss"]) and math.isnan(second["train/loss"])
    assert second["quality/fidelity"] == 0.5


@pytest.mark.parametrize("start", [0, 2])
def test_a_run_that_was_cut_off_has_each_step_once_on_the_board(start: int, tmp_path: Path) -> None:
    """Its first life had no time to close, nor, from 0, to save anything."""
    lives = []
    for life, first in enumerate([0, start]):
        lives.append(monitor.Monitor(tmp_path, first, 10, active=True))
        for step in range(first + 1, 5):
            lives[-1].scalars(step, {"train/loss": life + step / 8})
        lives[-1]._writer.flush()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = [(point.step, point.value) for point in board.Scalars("train/loss")]
    assert found == [(step, (step > start) + step / 8) for step in range(1, 5)]
    for opened in lives:
        opened.close()

"""What the monitor says is text, in a log and beside a progress bar."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diffcore.training import monitor

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

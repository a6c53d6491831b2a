"""What the command lines share: one line for a mistake, a bar on terminals only."""

from __future__ import annotations

import json
import math
import sys

import pytest

from diffbase import cli
from diffbase.cli import InputError, progress_bar, run


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("a: bad\nallowed: b"), 2, "error: a: bad allowed: b\n"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "error: a.csv: No such file"),
        (OSError("no space"), 2, "error: no space\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: fail(error))
    err = capsys.readouterr().err
    assert ended.value.code == code and err.startswith(told) and err.count("\n") == 1


def test_our_own_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()))


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with progress_bar("packing") as report:
        report(3, None)
        report(7, 8)
    out, err = capsys.readouterr()
    assert out == "" and ("packing" in err and "7/8" in err if terminal else err == "")


def test_a_line_a_minute_in_logs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    now = 100.0
    monkeypatch.setattr("diffbase.cli.time.monotonic", lambda: now)
    with progress_bar("packing") as report:
        for done in range(0, 7200, 30):  # one image a second
            now = 100.0 + done
            report(done, 7200 if done > 100 else None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "packing: 60 images, 1 images/s"
    assert lines[1] == "packing: 120 of 7,200 images, 1 images/s, 1:58:00 left"
    assert lines[-1] == "packing: 7,140 of 7,200 images, 1 images/s, 0:01:00 left"
    assert len(lines) == 119


def test_json_is_one_document_with_sorted_keys(capsys: pytest.CaptureFixture[str]) -> None:
    parser = cli.Parser()
    cli.add_answer(parser)
    with cli.answer(parser.parse_args(["--json"])) as give:
        print("words for people")
        give({"b": 1, "a": {"d": [{"f": math.nan, "e": 2}], "c": 3}})
    out = capsys.readouterr().out
    tree = json.loads(out)  # one document: anything behind it would be an error
    assert tree == {"b": 1, "a": {"d": [{"f": None, "e": 2}], "c": 3}}
    assert (list(tree), list(tree["a"]), list(tree["a"]["d"][0])) == (["a", "b"], ["c", "d"], ["e", "f"])

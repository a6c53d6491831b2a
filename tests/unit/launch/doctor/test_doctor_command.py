"""The command: its report, its JSON, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffbase import cli
from launch.doctor import __main__ as command
from launch.doctor.checks import checks
from launch.doctor.finding import Check, Finding, bad, ok, warn
from launch.doctor.report import as_text, as_tree, cleaned

LINES = [ok("a", "well"), warn("bb", "low", "mend it"), bad("c", "gone", "buy one")]


def having(monkeypatch: pytest.MonkeyPatch, *findings: Finding) -> list[Any]:
    """Have the command find these; returns what it asks for, as it does."""
    asked: list[Any] = []

    def ask() -> Iterator[Finding]:
        yield from findings

    def stand_in(*arguments: Any) -> list[list[Check]]:
        asked.append(arguments)
        return [[Check("all", ask)]]

    monkeypatch.setattr(command, "checks", stand_in)
    return asked


def code(*argv: str) -> int:
    try:
        cli.run(lambda: command.main(argv))
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    having(monkeypatch, *LINES)
    assert code() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    a   well",
        "warn  bb  low",
        "          -> mend it",
        "bad   c   gone",
        "          -> buy one",
        "3 checks: 1 ok, 1 warn, 1 bad",
    ]


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    having(monkeypatch, *LINES)
    assert code("--json") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "version": 1,
        "status": "bad",
        "checks": [
            {"name": "a", "status": "ok", "found": "well", "todo": None},
            {"name": "bb", "status": "warn", "found": "low", "todo": "mend it"},
            {"name": "c", "status": "bad", "found": "gone", "todo": "buy one"},
        ],
    }
    assert json.loads(out) == as_tree(LINES)
    assert list(json.loads(out)) == ["checks", "status", "version"]  # in this order, whatever is found
    assert out.isascii()


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 0), (3, 1)])
@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]])
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, count: int, expected: int, flags: list[str]) -> None:
    having(monkeypatch, *LINES[:count])
    assert code(*flags) == expected


@pytest.mark.parametrize(
    "argv",
    [["--nope"], ["extra"], ["--patience", "0"], ["--patience", "nan"], ["--patience", "x"], ["--data"]],
)
def test_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    asked = having(monkeypatch, *LINES)
    assert code(*argv) == 2
    out, err = capsys.readouterr()
    assert (out, asked) == ("", [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_flags_reach_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = having(monkeypatch, ok("a", "well"))
    assert code("--cluster", "x", "--data", "s3://y", "--run", "z", "--patience", "7") == 0
    assert asked == [("x", "s3://y", "z", 7.0)]


def test_quiet_is_its_exit_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    having(monkeypatch, *LINES)
    assert code("--quiet") == 1
    assert capsys.readouterr() == ("", "")


def test_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command.main(["--help"], prog="diffcore doctor")
    assert leaving.value.code == 0
    assert capsys.readouterr().out.startswith("usage: diffcore doctor ")
    assert command.parser().prog == "python -m launch.doctor"


def test_every_text_is_cleaned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-very-secret-token")
    monkeypatch.setenv("HOME", "/data/people/zoe")
    monkeypatch.setenv("USER", "zoe")
    private = "a-very-secret-token /data/people/zoe/x zoe https://u:p@h/ /home/bob/y"
    shown = "*** ~/x USER https://h/ ~/y"

    def fail() -> Iterator[Finding]:
        yield warn("b", private, private)
        raise OSError(2, "No such file or directory", "/data/people/zoe/.cache/a-very-secret-token")

    monkeypatch.setattr(command, "checks", lambda *_: [[Check("failing", fail)]])
    assert code("--json") == 1
    first, failing = json.loads(capsys.readouterr().out)["checks"]
    assert (first["found"], first["todo"]) == (shown, shown)
    assert failing["found"].endswith("FileNotFoundError: [Errno 2] No such file or directory: '~/.cache/***'")
    assert code() == 1
    out = capsys.readouterr().out
    assert "zoe" not in out
    assert "secret" not in out


def test_what_was_given_is_echoed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    having(monkeypatch, ok("a", "/home/bob/shards: 3, not /home/bob/other"))
    assert code("--data", "/home/bob/shards") == 0
    assert "/home/bob/shards: 3, not ~/other" in capsys.readouterr().out


def test_cleaning_changes_nothing_else() -> None:
    assert cleaned(LINES, str) == LINES
    assert as_text([]) == "0 checks: 0 ok, 0 warn, 0 bad"


def test_a_terminal_without_unicode(tmp_path: Path) -> None:
    program = "from launch.doctor.report import show; show('größer')"
    env = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    assert done.stdout == b"gr\\xf6\\xdfer\n"


def test_names_are_the_checks_own_and_in_order() -> None:
    waves = checks(None, "x", None, 5)
    names = [check.name for wave in waves for check in wave]
    assert len(names) == len(set(names))
    assert names[-2:] == ["data", "all-reduce"]
    assert len(waves[-1]) == len(waves[-2]) == 1  # what is timed is alone
    assert [check.name for wave in checks(None, None, None, 5) for check in wave] == [
        name for name in names if name != "data"
    ]


def test_the_process_that_forks_needs_no_package() -> None:
    """A broken one is a bad line then, not the end; and a process without threads may fork."""
    program = (
        "import sys\n"
        "from launch.doctor import __main__, checks, examine, redaction, report\n"
        "checks.checks('box', 'x', 'y', 5)\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'yaml', 'rich', 'packaging'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

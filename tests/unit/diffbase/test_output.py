"""Output that nobody reads, or that a disk does not take: real processes, pipes and devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffbase.files import REPOSITORY

LINES = """
import sys, threading, time
from pathlib import Path
from diffbase import cli, output
def main():
    for i in range({count}):
        print("line", i)
    {then}
cli.run(main{more})
"""


def shell(
    tmp_path: Path, redirect: str, then: str = "", more: str = "", count: int = 50_000, unbuffered: str = ""
) -> tuple[int, str]:
    """Exit code and standard error of a command of so many lines, as bash runs it with ``redirect``."""
    script = tmp_path / "script.py"
    script.write_text(LINES.format(count=count, then=then or "pass", more=more))
    bash = ["bash", "-c", f"{sys.executable} {script} {redirect}; exit ${{PIPESTATUS[0]}}"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(bash, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("reader", "count"), [("head -1", 50_000), ("true", 1), ("true", 50_000), ("sleep 0.01", 1)]
)
def test_a_short_command_whose_reader_leaves_ends_quietly(tmp_path: Path, reader: str, count: int) -> None:
    code, err = shell(tmp_path, f"| {reader}", then="time.sleep(0.3); print('end')", count=count)
    assert code == 141 and err == ""


def test_a_pipe_that_is_read_to_its_end_is_none_of_that(tmp_path: Path) -> None:
    assert shell(tmp_path, "| cat > all") == (0, "")
    assert len((tmp_path / "all").read_text().splitlines()) == 50_000


@pytest.mark.parametrize("count", [1, 50_000])
def test_a_full_disk_is_one_line(tmp_path: Path, count: int) -> None:
    code, err = shell(tmp_path, "> /dev/full", count=count)
    assert (code, err) == (2, "error: standard output: No space left on device\n")


@pytest.mark.parametrize("redirect", ["> /dev/full", "| head -1"])
@pytest.mark.parametrize(("flag", "code"), [("", 0), ("--json", 2)])
def test_a_command_for_its_files_goes_on(tmp_path: Path, redirect: str, flag: str, code: int) -> None:
    """Its words may be lost; figures that were asked for as JSON may not."""
    script = tmp_path / "script.py"
    script.write_text("""
import sys
from pathlib import Path
from diffbase import cli
def main():
    parser = cli.Parser()
    cli.add_answer(parser)
    with cli.answer(parser.parse_args(), survive=True) as give:
        for i in range(50_000):
            print("line", i)
        Path("written").touch()
        give(list(range(50_000)))
cli.run(main)
""")
    bash = ["bash", "-c", f"{sys.executable} {script} {flag} {redirect}; exit ${{PIPESTATUS[0]}}"]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(bash, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    wanted = 141 if code and "head" in redirect else code
    assert (done.returncode, (tmp_path / "written").exists()) == (wanted, True)


def test_a_closed_output_is_no_error(tmp_path: Path) -> None:
    then = "Path('x').write_text('mine'); __import__('os').write(1, b'a library prints')"
    assert shell(tmp_path, ">&-", then) == (0, "")
    assert (tmp_path / "x").read_text() == "mine"
    assert shell(tmp_path, ">&- 2>&-", "raise cli.InputError('x')")[0] == 2


@pytest.mark.parametrize("redirect", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_a_mistake_has_its_code_though_nobody_is_told(tmp_path: Path, redirect: str) -> None:
    then = "time.sleep(0.2); raise cli.InputError('x')"
    assert shell(tmp_path, f"> out {redirect}", then)[0] == 2


@pytest.mark.parametrize(
    "redirect", ["| head -1", "| true", "> /dev/full", ">&-", "2> /dev/full | true", ">&- 2>&-"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_not_for_its_output_goes_on(tmp_path: Path, redirect: str, unbuffered: str) -> None:
    then = "print('x', file=sys.stderr); Path('done').write_text(repr(output.lost()))"
    code, err = shell(tmp_path, redirect, then, ", survive=True", unbuffered=unbuffered)
    assert code == 0 and "Traceback" not in err and "ignored" not in err
    why = (tmp_path / "done").read_text()
    assert ("standard output" in why) == (">&-" not in redirect)
    assert ("standard error" in why) == ("2> /dev/full" in redirect)


def test_a_thread_that_notices_it_ends_the_command_too(tmp_path: Path) -> None:
    then = "[t.start() or t.join() for t in [threading.Thread(target=print, args=('x' * 10**6,))]]"
    code, err = shell(tmp_path, "| true", f"time.sleep(0.2); {then}", count=0)
    assert code == 141 and err == ""


@pytest.mark.parametrize("arguments", ["--help", "--version", "train --help", "summary --help"])
@pytest.mark.parametrize(("redirect", "code"), [("| true", 141), ("> /dev/full", 2), (">&-", 0)])
def test_commands(arguments: str, redirect: str, code: int) -> None:
    line = f"(sleep 0.2; exec {sys.executable} -m diffcore {arguments}) {redirect}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    if arguments == "train --help":  # which goes on without a log
        code = 0
    assert done.returncode == code
    assert (
        "Traceback" not in done.stderr and "ignored" not in done.stderr and "Broken pipe" not in done.stderr
    )


def test_what_was_said_before_an_error_is_there(tmp_path: Path) -> None:
    code, err = shell(tmp_path, "> said", "raise ZeroDivisionError", count=2)
    assert code == 1 and "ZeroDivisionError" in err
    assert (tmp_path / "said").read_text() == "line 0\nline 1\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_pipe_that_does_not_block_gets_all(tmp_path: Path, unbuffered: str) -> None:
    then = "print('x' * 300_000)"
    more = ", hold_back=(__import__('os').set_blocking(1, False) or 0)"
    code, err = shell(tmp_path, "| (sleep 0.3; cat > all)", then, more, count=0, unbuffered=unbuffered)
    assert (code, err) == (0, "") and len((tmp_path / "all").read_text()) == 300_001

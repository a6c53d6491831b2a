"""Checks run beside each other, and none hides, holds up or takes down another."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.doctor.examine import examine
from launch.doctor.finding import Check, Finding, ok, worst


def fine(name: str) -> Check:
    def ask() -> Iterator[Finding]:
        yield ok(name, "well")

    return Check(name, ask)


def broken(then: Callable[[], object]) -> Check:
    """A check that finds one thing and then fails as ``then`` does."""

    def ask() -> Iterator[Finding]:
        yield ok("broken: first", "well")
        then()
        yield ok("broken: second", "never said")

    return Check("broken", ask)


def alone(then: Callable[[], object], seconds: float = 20) -> Finding:
    """What ``broken`` ends with; what is around it must be there."""
    found = examine([[fine("before"), broken(then), fine("after")], [fine("later")]], seconds)
    assert [one.name for one in found] == ["before", "broken: first", "broken", "after", "later"]
    assert [one.status for one in found] == ["ok", "ok", "bad", "ok", "ok"]
    assert found[2].found.startswith("could not be checked: ")
    assert found[2].todo
    return found[2]


def gone(pid: int) -> bool:
    """Whether a process is no more, or only waits to be reaped by whoever adopted it."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_findings_come_in_the_order_of_the_checks() -> None:
    def slow() -> Iterator[Finding]:
        time.sleep(0.3)
        yield ok("slow", "well")

    found = examine([[Check("slow", slow), fine("fast")], [fine("last")]], 20)
    assert [one.name for one in found] == ["slow", "fast", "last"]
    assert worst(found) == "ok"


def test_an_exception_is_a_bad_line() -> None:
    def fail() -> None:
        raise KeyError("no such thing")

    line = alone(fail)
    assert line.found.endswith("KeyError: 'no such thing'")
    assert "test_doctor_examine.py, line" in str(line.todo)


def test_leaving_is_a_bad_line() -> None:
    assert "SystemExit: 3" in alone(lambda: sys.exit(3)).found
    assert "exit code 4" in alone(lambda: os._exit(4)).found


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGILL, signal.SIGKILL])
def test_a_crash_is_a_bad_line(number: signal.Signals) -> None:
    def crash() -> None:
        faulthandler.disable()  # pytest's, which would print a page
        os.kill(os.getpid(), number)

    assert f"ended by {number.name}" in alone(crash).found


def test_a_hang_is_a_bad_line() -> None:
    began = time.monotonic()
    line = alone(lambda: time.sleep(600), 1)
    assert "no answer within 1 s" in line.found
    assert "--patience" in str(line.todo)
    assert time.monotonic() - began < 60


def test_one_that_will_not_leave_is_killed() -> None:
    def stubborn() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(600)

    assert "no answer" in alone(stubborn, 0.5).found


@pytest.mark.parametrize("hangs", [False, True])
def test_what_a_check_started_goes_with_it(hangs: bool, tmp_path: Path) -> None:
    def start() -> None:
        child = subprocess.Popen(["sleep", "600"])
        (tmp_path / "pid").write_text(str(child.pid))
        if hangs:
            child.wait()
        raise RuntimeError("left behind")

    alone(start, 1 if hangs else 20)
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_a_check_prints_is_not_part_of_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    def loud() -> Iterator[Finding]:
        os.write(1, b"loud\n")
        subprocess.run(["echo", "louder"], check=True)
        print("loudest", flush=True)
        yield ok("loud", "well")

    assert examine([[Check("loud", loud)]], 20) == [ok("loud", "well")]
    assert capfd.readouterr() == ("", "")


def test_a_long_text_arrives_whole() -> None:
    def long() -> Iterator[Finding]:
        for i in range(20):
            yield ok(f"long {i}", "ä\n" * 50_000)  # more than a pipe holds

    found = examine([[Check("long", long)]], 30)
    assert len(found) == 20
    assert all(one.found == "ä\n" * 50_000 for one in found)


def test_checks_of_a_wave_run_beside_each_other_and_waves_after_each_other(tmp_path: Path) -> None:
    def meet(mine: str, other: str) -> Check:
        def ask() -> Iterator[Finding]:
            (tmp_path / mine).touch()
            while not (tmp_path / other).exists():
                time.sleep(0.01)
            yield ok(mine, "met")

        return Check(mine, ask)

    def both_are_over() -> Iterator[Finding]:
        yield ok("after", " ".join(sorted(path.name for path in tmp_path.iterdir())))

    found = examine([[meet("a", "b"), meet("b", "a")], [Check("after", both_are_over)]], 30)
    assert found == [ok("a", "met"), ok("b", "met"), ok("after", "a b")]


def test_no_room_for_a_process_is_a_bad_line(monkeypatch: pytest.MonkeyPatch) -> None:
    forks = iter([True, False, True])

    def fork(real: Callable[[], int] = os.fork) -> int:
        if not next(forks):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    found = examine([[fine("a"), fine("b"), fine("c")]], 20)
    assert [(one.name, one.status) for one in found] == [("a", "ok"), ("b", "bad"), ("c", "ok")]
    assert "no process could be started (Resource temporarily unavailable)" in found[1].found


def test_no_process_is_left_when_it_is_interrupted(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, time\n"
        "from launch.doctor.examine import examine\n"
        "from launch.doctor.finding import Check\n"
        "def hang():\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        f"    pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "    time.sleep(600)\n"
        "    yield\n"
        "examine([[Check('hang', hang)]], 600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as doctor:
        until = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        doctor.kill()  # not even a handler may be needed
    assert gone(int((tmp_path / "pid").read_text()))

"""A lease is one process's at a time: its steps in any order, real processes, kills and pauses."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.locking import lease
from diffbase.locking.lease import Lease, Owner


class Turns:
    """Threads of which one goes on at a time, up to its next line of lease.py: ``choose`` says which."""

    def __init__(self, choose: Callable[[int], int]) -> None:
        self._choose, self._turn = choose, threading.Condition()
        self._now: threading.Thread | None = None
        self._over: set[threading.Thread] = set()
        self._errors: list[BaseException] = []

    def run(self, *works: Callable[[], None]) -> None:
        threads = [threading.Thread(target=self._one, args=(work,), daemon=True) for work in works]
        left = list(threads)
        for thread in threads:
            thread.start()
        while left:
            thread = left[self._choose(len(left))]
            with self._turn:
                self._now = thread
                self._turn.notify_all()
                assert self._turn.wait_for(lambda: self._now is None, timeout=30)
            if thread in self._over:
                left.remove(thread)
        if self._errors:
            raise self._errors[0]

    def _one(self, work: Callable[[], None]) -> None:
        self._wait()
        sys.settrace(self._called)
        try:
            work()
        except BaseException as error:
            self._errors.append(error)
        finally:
            sys.settrace(None)
            self._over.add(threading.current_thread())
            with self._turn:
                self._now = None
                self._turn.notify_all()

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename == lease.__file__ else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            with self._turn:
                self._now = None
                self._turn.notify_all()
            self._wait()
        return self._line

    def _wait(self) -> None:
        with self._turn:
            assert self._turn.wait_for(lambda: self._now is threading.current_thread(), timeout=30)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), contenders=st.integers(2, 4), late=st.sampled_from([0.0, 0.02, 0.1]))
def test_in_whatever_order_its_steps_are_taken_one_has_it(seed: int, contenders: int, late: float) -> None:
    """Held, given back, or left by a death; ``late``: how often one stops while the others go far ahead."""
    chance, inside, dead, taken = random.Random(seed), set[str](), set[str](), []
    stopped, until, turn = 0, 0, 0

    def choose(count: int) -> int:
        nonlocal stopped, until, turn
        turn += 1
        if turn > until and chance.random() < late:
            stopped, until = chance.randrange(count), turn + 300
        others = [one for one in range(count) if turn > until or one != stopped]
        return chance.choice(others or [0])

    def contend(path: Path) -> None:
        for _ in range(6):
            mine = Lease(path, lambda why: None)
            if mine.take(kernel=False):
                assert mine.me and not inside
                inside.add(mine.me.token)
                taken.append(mine.number)
                mine.lost()  # some lines of the file, so that others have turns
                assert inside == {mine.me.token} and mine.lost() == ""
                inside.clear()
                if chance.random() < 0.5:
                    dead.add(mine.me.token)
                else:
                    mine.release()

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Owner, "is_over", lambda owner: owner.token in dead)
        patch.setattr(Lease, "_renew", lambda self: None)
        Turns(choose).run(*[lambda: contend(Path(folder) / "lock")] * contenders)
        assert taken == sorted(set(taken)), "a number was used twice"
        assert taken and len(list(Path(folder).iterdir())) <= 2 + contenders


CONTENDER = """
import os, random, signal, sys, time
from pathlib import Path
from diffbase.locking.lock import Lock
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
chance, until = random.Random(seed), time.monotonic() + float(sys.argv[3])
lock = Lock(folder / "lock", shared=True)
while time.monotonic() < until:
    if not lock.take():
        time.sleep(0.001)
        continue
    count = int((folder / "count").read_text())
    time.sleep(0.001 * chance.random())
    (folder / "count").write_text(str(count + 1))
    with open(folder / "marks", "ab", buffering=0) as marks:
        marks.write(b"x")
    if chance.random() < 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    lock.close()
    lock = Lock(folder / "lock", shared=True)
"""


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts Python on code, with these arguments; no process stays."""
    processes: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        # fmt: off
        process = subprocess.Popen(
            command, env=os.environ | env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        # fmt: on
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_many_processes_and_kills_lose_no_count(tmp_path: Path, started: Callable[..., Any]) -> None:
    """Each adds 1 by a read and a write: two at once would lose one. Some are killed while they hold it."""
    (tmp_path / "count").write_text("0")
    alive: list[subprocess.Popen[str]] = []
    until, seed, killed = time.monotonic() + 3, 0, 0
    while time.monotonic() < until:
        while len(alive) < 5:
            seed += 1
            alive.append(started(CONTENDER, tmp_path, seed, 3, DIFFCORE_LOCKS="lease"))
        time.sleep(0.02)
        killed += sum(process.poll() == -signal.SIGKILL for process in alive)
        alive = [process for process in alive if process.poll() is None]
    for process in alive:
        _, said = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL), said
    marks = len((tmp_path / "marks").read_bytes())
    assert int((tmp_path / "count").read_text()) == marks and marks > 5 and killed


HOLDER = """
import sys
from pathlib import Path
from diffbase.locking import lease, lock
if sys.argv[2] == "elsewhere":  # of whose processes nothing is known here
    lease.machine = lambda: ("another boot", "")
lease.RENEW, lease.BOUND = 0.1, 2.0
one = lock.Lock(Path(sys.argv[1]) / "lock", shared=True)
assert one.take()
print("taken", flush=True)
sys.stdin.readline()
one.close()
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorter times, as the holder has; the seconds after which a lease may be followed."""
    for name, seconds in {"RENEW": 0.1, "BOUND": 2.0, "WATCH": 0.5, "LOOK": 0.05}.items():
        monkeypatch.setattr(lease, name, seconds)
    return 2.0


def hold(started: Callable[..., Any], folder: Path, where: str) -> subprocess.Popen[str]:
    holder: subprocess.Popen[str] = started(HOLDER, folder, where, DIFFCORE_LOCKS="lease")
    assert holder.stdout and holder.stdout.readline() == "taken\n", holder.communicate()[1]
    return holder


def until_taken(mine: Lease, kernel: bool = False) -> float:
    """Seconds until it was taken."""
    began = time.monotonic()
    while not mine.take(kernel):
        assert time.monotonic() < began + 60
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Lease]:
    one = Lease(tmp_path / "lock", lambda why: None)
    yield one
    one.release()


def test_after_a_kill_it_is_free_at_once(tmp_path: Path, started: Callable[..., Any], mine: Lease) -> None:
    """With the times that are set: of a process of this machine no time has to pass."""
    holder = hold(started, tmp_path, "here")
    assert not mine.take(kernel=False)
    assert mine.holder() == f"process {holder.pid} on {os.uname().nodename}"
    holder.send_signal(signal.SIGSTOP)  # the system knows that it is there
    assert not mine.take(kernel=False)
    holder.kill()  # not waited for: what its parent does not ask for is over all the same
    while not mine.is_free(kernel=False):
        time.sleep(0.01)
    assert mine.take(kernel=False)


def test_a_number_of_a_process_that_is_used_again_holds_nothing(tmp_path: Path, mine: Lease) -> None:
    assert mine.take(kernel=False)
    path = mine.file(1)
    mine.me = None  # not given back
    born = Owner.parse(path.read_bytes())
    assert born and born.born > 0
    path.write_bytes(path.read_bytes().replace(str(born.born).encode(), str(born.born + 1).encode()))
    assert Lease(tmp_path / "lock", lambda why: None).is_free(kernel=False)


def test_a_stopped_process_of_this_machine_is_not_followed(
    tmp_path: Path, started: Callable[..., Any], mine: Lease, quick: float
) -> None:
    holder = hold(started, tmp_path, "here")
    holder.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 1.5 * quick
    while time.monotonic() < until:
        assert not mine.take(kernel=False)
        time.sleep(0.05)


def test_what_another_machine_holds_is_free_when_it_is_silent_for_the_bound(
    tmp_path: Path, started: Callable[..., Any], mine: Lease, quick: float
) -> None:
    holder = hold(started, tmp_path, "elsewhere")
    until = time.monotonic() + 1.2 * quick
    while time.monotonic() < until:  # renewed, it is held
        assert not mine.take(kernel=False)
        time.sleep(0.05)
    renewed = time.time()  # this file system's clock; the last renewal is not before the one before
    holder.kill()
    until_taken(mine)
    assert time.time() - renewed >= quick - 2 * lease.RENEW - 0.5
    assert mine.number == 2 and mine.lost() == ""


def test_clocks_that_differ_push_nobody_out(
    tmp_path: Path, started: Callable[..., Any], mine: Lease, monkeypatch: pytest.MonkeyPatch, quick: float
) -> None:
    """By this clock every renewal is an hour old, by the other one in an hour."""
    hold(started, tmp_path, "elsewhere")
    real = Lease._now
    for ahead in (3600, -3600):
        monkeypatch.setattr(Lease, "_now", lambda self, ahead=ahead: real(self) + ahead * 10**9)
        until = time.monotonic() + 1.2 * quick
        while time.monotonic() < until:
            assert not mine.take(kernel=False)
            time.sleep(0.05)


def test_who_wakes_and_was_followed_ends_and_says_so(
    tmp_path: Path, started: Callable[..., Any], mine: Lease, quick: float
) -> None:
    holder = hold(started, tmp_path, "elsewhere")
    holder.send_signal(signal.SIGSTOP)
    until_taken(mine)
    holder.send_signal(signal.SIGCONT)
    assert holder.wait(30) == 2
    assert holder.stderr
    [line] = holder.stderr.read().splitlines()[-1:]
    assert line.startswith(f"error: {mine.file(2)}: this process was silent, and was followed by process ")
    assert line.endswith("; nothing more is written here")
    assert mine.lost() == ""


def test_it_is_given_back_and_little_stays(tmp_path: Path, mine: Lease) -> None:
    for number in range(1, 6):
        assert mine.take(kernel=False)
        assert mine.number == number
        mine.release()
        mine = Lease(mine.path, lambda why: None)
    assert len(list(tmp_path.iterdir())) == 2
    assert mine.take(kernel=False)
    mine.release(remove=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", sorted(lease.NO_LINKS))
def test_without_hard_links_one_has_it_too(
    tmp_path: Path, mine: Lease, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    other = Lease(mine.path, lambda why: None)
    assert mine.take(kernel=False) and not other.take(kernel=False) and mine.lost() == ""
    mine.release()
    assert other.take(kernel=False)
    other.release()


def test_writes_that_do_half_leave_a_whole_lease(mine: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: -(-len(data) // 2)]))
    assert mine.take(kernel=False) and mine.lost() == "" and mine.holder().startswith("process ")


def test_an_answer_that_a_file_server_lost_is_no_other_one(
    mine: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def again(*paths: Any) -> None:
        real(*paths)
        raise FileExistsError

    monkeypatch.setattr(os, "link", again)
    assert mine.take(kernel=False)


@given(st.binary(max_size=300) | st.builds(lambda n: b'{"pid": %d}' % n, st.integers()))
def test_what_is_no_lease_is_nobodys(data: bytes) -> None:
    assert Owner.parse(data) is None

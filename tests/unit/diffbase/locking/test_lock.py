"""Where flock is refused a lease takes its place, and each knows of the other."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffbase.cli import InputError
from diffbase.locking import lock
from diffbase.locking.lock import LOCKS, Lock
from diffbase.system_error import GaveUpError
from tests.support.faults.kit import Faults, fail, why_not

HOLD = """
import sys
from pathlib import Path
from diffbase.locking.lock import Lock
one = Lock(Path(sys.argv[1]), shared="alone" not in sys.argv)
print("taken" if one.take() else "held" + one.holder(), flush=True)
sys.stdin.readline()
"""
REFUSED = [errno.ENOSYS, errno.EOPNOTSUPP]


class Holders:
    """Processes that hold a lock, or were refused it."""

    def __init__(self, folder: Path) -> None:
        self._faults, self._path = Faults(folder), folder / "locks" / "lock"
        self._path.parent.mkdir()
        self.processes: list[subprocess.Popen[str]] = []

    def ask(self, number: int | None, *arguments: str) -> tuple[str, subprocess.Popen[str]]:
        """What another process said, for which flock fails with ``number``."""
        env = os.environ | (self._faults.env(fail("lock", number)) if number else {})
        command = [sys.executable, "-c", HOLD, str(self._path), *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
        self.processes.append(process)
        assert process.stdout
        return process.stdout.readline().strip(), process


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[Holders]:
    if why_not():
        pytest.skip(f"LEFT OUT: {why_not()}; make system-test")
    made = Holders(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("second", [*REFUSED, None])
@pytest.mark.parametrize("first", [*REFUSED, None])
def test_one_of_two_processes_has_it_with_flock_or_without(
    holders: Holders, first: int | None, second: int | None
) -> None:
    """Both ways round: mounts of one disk on two nodes may differ."""
    said, holder = holders.ask(first)
    assert said == "taken"
    answer, _ = holders.ask(second)
    # Where both have flock nothing else is asked, but the lease tells who it is.
    assert answer == f"held (process {holder.pid} on {os.uname().nodename})"
    holder.kill()
    holder.wait()
    assert holders.ask(second)[0] == "taken"


@pytest.mark.parametrize("number", REFUSED)
def test_without_flock_it_is_told_which_file_and_which_option(holders: Holders, number: int) -> None:
    said, holder = holders.ask(number)
    holder.kill()
    _, line = holder.communicate()
    assert said == "taken" and len(line.splitlines()) == 1
    assert line.startswith(
        f"{holders._path}: no flock ({os.strerror(number)}): a lease file holds the place; "
    )
    assert "-o flock" in line and "local_lock" in line and "nolock" in line


def test_who_needs_no_lease_makes_none_where_flock_works_and_minds_others(holders: Holders) -> None:
    said, first = holders.ask(None, "alone")
    assert said == "taken" and [path.name for path in holders._path.parent.iterdir()] == ["lock"]
    first.kill()
    first.wait()
    said, second = holders.ask(errno.ENOSYS, "alone")
    assert said == "taken" and holders.ask(None, "alone")[0].startswith("held (process ")
    second.kill()
    second.wait()
    assert holders.ask(None, "alone")[0] == "taken"


def test_a_lock_server_that_stays_away_is_retryable_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def away(*_: Any) -> None:
        tries.append(1)
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", away)
    monkeypatch.setattr("diffbase.system_error.PAUSES", (0.0,) * 3)
    with Lock(tmp_path / "lock") as one:
        with pytest.raises(GaveUpError, match=r"ENOLCK, 4 tries.*nolock.*DIFFCORE_LOCKS=lease") as found:
            one.take()
        assert (found.value.errno, found.value.filename) == (errno.ENOLCK, str(one.path)) and len(tries) == 4
        monkeypatch.setenv(LOCKS, "lease")
        assert one.take() and len(tries) == 4


def test_a_lock_server_that_comes_back_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failing = fcntl.flock, iter([errno.ENOLCK, errno.EIO, errno.ENOLCK])

    def sometimes(*arguments: Any) -> None:
        if number := next(failing, None):
            raise OSError(number, os.strerror(number))
        real(*arguments)

    monkeypatch.setattr(fcntl, "flock", sometimes)
    monkeypatch.setattr("diffbase.system_error.PAUSES", (0.0,) * 3)
    with Lock(tmp_path / "lock") as one:
        assert one.take()


MOUNTS = """\
22 1 0:21 / / rw,relatime - ext4 /dev/vda rw
23 22 0:22 / {0} rw - lustre m@tcp:/f rw,flock,lazystatfs
24 22 0:22 / {0}/local rw - lustre m@tcp:/f rw,localflock
25 22 0:23 / {0}/with\\040blank rw - nfs4 s:/x rw,vers=4.2,local_lock=none
26 22 0:23 / {0}/old rw - nfs s:/x rw,vers=3,nolock,local_lock=all
"""


@pytest.mark.parametrize(
    ("below", "kind", "local"),
    [
        ("", "lustre,flock", False),
        ("local", "lustre,localflock", True),
        ("with blank", "nfs4", False),
        ("old", "nfs,local_lock=all,nolock", True),
    ],
)
def test_locks_of_one_machine_alone_are_known_by_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, kind: str, local: bool
) -> None:
    """There the lease decides between machines."""
    place = tmp_path / below
    place.mkdir(exist_ok=True)
    real = Path.read_text

    def read(path: Path, **how: Any) -> str:
        return MOUNTS.format(tmp_path) if path == Path("/proc/self/mountinfo") else real(path, **how)

    monkeypatch.setattr(Path, "read_text", read)
    with Lock(place / "lock") as one:
        assert one.take()
        assert (place / "lock.lease-1").exists() == local
    assert lock.advice(place / "lock").startswith(f"{place} is {kind}: mount it with ")


def test_what_needs_the_kernels_locks_says_so(tmp_path: Path) -> None:
    with (
        pytest.raises(
            InputError, match=r"no flock \(Function not implemented\); .*; or give a local folder$"
        ),
        lock.needed(tmp_path, "a local folder"),
    ):
        raise lock.NoLocksError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_one_that_nobody_closed_is_free_when_it_is_forgotten(tmp_path: Path) -> None:
    one: Lock | None = Lock(tmp_path / "lock", shared=True)
    assert one and one.take() and not Lock(tmp_path / "lock").is_free()
    one = None
    assert Lock(tmp_path / "lock").is_free()

"""A lease: a file that says who holds something, renewed for as long as it is held.

For file systems without locks. Beside ``PATH`` lie ``PATH.lease-1``, ``-2``, ...: the largest number is the
present lease, and its holder renews its mtime every ``RENEW`` seconds. Whoever wants to be next makes the
next number by link(2), which one process alone can do. A lease may be followed when it

- was given back (mtime 0),
- is of a process of this machine that has ended (a stopped one has not, as with flock), or
- was not renewed for ``BOUND`` seconds. By the file system's clock: the mtime of a file touched now; and it
  did not change in ``WATCH`` seconds of ours, for clocks may differ. Or in ``BOUND`` seconds of ours alone.

Never do two contenders get one number, and a number is never used again: it is removed when two larger ones
have been made, smaller ones first, so that who comes late with a number finds the one before it gone.

What no lease can have: a holder that is silent for ``BOUND`` seconds (a stopped machine, a disk that hangs)
and wakes does not know at once that it was followed. It sees so at its next renewal, or when ``lost`` is
asked, and its follower waits for two renewals before it begins.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

RENEW = 3.0
"""Seconds between two renewals."""
BOUND = 30.0
"""Seconds without one, after which a lease may be followed."""
WATCH = 3 * RENEW
"""Seconds of them that the follower has to have seen itself."""
LOOK = 0.5
"""Seconds between two looks at the file system's clock."""
MOST = 4096  # bytes of a lease


@dataclass(frozen=True)
class Owner:
    """A process: ``boot`` and ``space`` (its PID namespace) say on which machine ``pid`` means something."""

    host: str
    boot: str
    space: str
    pid: int
    born: int
    """Ticks from the boot to its start: a number of a process is used again."""
    token: str
    kernel: bool
    """Whether it holds the kernel's lock as well."""

    @classmethod
    def me(cls, kernel: bool) -> Owner:
        """This process, under a new token."""
        boot, space = machine()
        return cls(socket.gethostname(), boot, space, os.getpid(), _born(os.getpid()), _token(), kernel)

    @classmethod
    def parse(cls, data: bytes) -> Owner | None:
        """None for what is no lease of ours: a name that is shown is checked by whoever shows it."""
        try:
            tree: dict[str, Any] = json.loads(data)
            kinds = {name: type(value) for name, value in tree.items()}
            return cls(**tree) if kinds == KINDS and 0 < tree["pid"] < 2**31 else None
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None

    def is_over(self) -> bool:
        """Whether it is known to have ended: a process of this machine, which knows."""
        if (self.boot, self.space) != machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's
            pass
        born = _born(self.pid)
        return born == ENDED or (born > 0 < self.born != born)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


KINDS = {"host": str, "boot": str, "space": str, "pid": int, "born": int, "token": str, "kernel": bool}
ENDED, UNKNOWN = -1, 0


def _token() -> str:
    return secrets.token_hex(16)


@cache
def machine() -> tuple[str, str]:
    """The boot of this machine, and the namespace that its processes' numbers are of."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path: pid:[4026531836]
    except OSError:
        return _token(), ""  # nobody's: only time tells


def _born(pid: int) -> int:
    """When a process started; ENDED for one that waits for its parent alone, UNKNOWN where it is hidden."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ENDED if fields[0] in "ZX" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return UNKNOWN


class Lease:
    """One process's part in the lease beside ``path``. ``on_lost`` is called, in a thread, with a line if it
    was followed by another's while it was held."""

    def __init__(self, path: Path, on_lost: Callable[[str], None]) -> None:
        self.path, self._on_lost = path, on_lost
        self.number = 0
        """Of the lease that is held; 0: none is."""
        self.me: Owner | None = None
        # Touched to know the time, and linked to the place.
        self._mine = path.with_name(f"{path.name}.lease.{_token()[:12]}.tmp")
        self._seen: tuple[int, int, float] = (0, 0, 0.0)
        """Number and mtime of the lease last seen, and since when, by our clock."""
        self._looked = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def file(self, number: int) -> Path:
        """Where a lease lies."""
        return self.path.with_name(f"{self.path.name}.lease-{number}")

    def newest(self) -> int:
        """The number of the present lease; 0 if there was none."""
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        pattern = re.compile(re.escape(self.path.name) + r"\.lease-([1-9][0-9]{0,8})")
        found = map(pattern.fullmatch, os.listdir(self.path.parent))  # noqa: PTH208 - names, not paths
        return sorted(int(match[1]) for match in found if match)

    def holder(self) -> str:
        """Who holds it, for messages."""
        with contextlib.suppress(OSError):
            data, _ = _read(self.file(self.newest()))
            return str(Owner.parse(data) or "a process that is not known")
        return "a process that is not known"

    def is_watched(self) -> bool:
        """Whether the lease is old by the file system's clock: it may be free in ``WATCH`` seconds."""
        number, renewed, _ = self._seen
        return number > 0 and self._now() - renewed > BOUND * 1e9

    def is_free(self, kernel: bool) -> bool:
        """Whether nobody holds it. ``kernel``: the caller has a lock of the kernel's, good for all machines,
        so that nobody else who had it has it now.

        Call it again: what another machine holds is watched for some time.
        """
        number = self.newest()
        return number in (0, self.number) or self._ended(number, kernel) is not None

    def _ended(self, number: int, kernel: bool) -> str | None:
        """How it is known that a lease is over: "left", "dead" or "silent"; None for one that is held."""
        try:
            data, status = _read(self.file(number))
        except FileNotFoundError:  # there is another one meanwhile
            return None
        if status.st_mtime_ns == 0:
            return "left"
        owner = Owner.parse(data)
        if owner is not None:
            if (kernel and owner.kernel) or owner.is_over():
                return "dead"
            if (owner.boot, owner.space) == machine():
                return None  # alive, or stopped
        now = time.monotonic()
        if self._seen[:2] != (number, status.st_mtime_ns):
            self._seen = (number, status.st_mtime_ns, now)
        silent = now - self._seen[2]
        if silent > BOUND:
            return "silent"
        if silent > WATCH and now - self._looked > LOOK:
            self._looked = now
            if self._now() - status.st_mtime_ns > BOUND * 1e9:
                return "silent"
        return None

    def _now(self) -> int:
        """The file system's time in nanoseconds."""
        _write(self._mine, os.O_TRUNC, b"")
        try:
            os.utime(self._mine)
            return self._mine.stat().st_mtime_ns
        finally:
            self._mine.unlink(missing_ok=True)

    def take(self, kernel: bool) -> bool:
        """Hold it, unless somebody else does; ``kernel`` as of ``is_free``."""
        number = self.newest()
        how = self._ended(number, kernel) if number else "none"
        if how is None:
            return False
        me = Owner.me(kernel)
        if not self._make(self.file(number + 1), json.dumps(vars(me)).encode()):
            return False
        if self.newest() != number + 1 or (number and not self.file(number).exists()):
            self.file(number + 1).unlink(missing_ok=True)  # that number was used, and is over
            return False
        self.me, self.number = me, number + 1
        if how != "left":
            self._displace(number)
        for older in self._numbers():
            if older < number:
                self.file(older).unlink(missing_ok=True)
        if how == "silent":
            time.sleep(2 * RENEW)  # it may have woken just now: until it has seen that it was followed
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        return True

    def _displace(self, number: int) -> None:
        """Let the process that held a lease, if it lives after all, see so in its own file."""
        with contextlib.suppress(OSError):
            descriptor = os.open(self.file(number), os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.close(descriptor)

    def _make(self, place: Path, data: bytes) -> bool:
        """Make the file of a lease, whole, unless somebody has."""
        _write(self._mine, os.O_TRUNC, data)
        try:
            os.link(self._mine, place)
        except FileExistsError:
            # A file server may have done it and lost its answer.
            return self._mine.stat().st_nlink == 2
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                _write(place, os.O_EXCL, data)
            except FileExistsError:
                return False
        finally:
            self._mine.unlink(missing_ok=True)
        return True

    def lost(self) -> str:
        """Who follows this process, in words; "" while it holds the lease, or where the disk does not say."""
        assert self.me is not None and self.number
        follower = f"{self.file(self.number + 1)}: this process was silent, and was followed by "
        try:
            data, _ = _read(self.file(self.number))
            if self.me.token.encode() in data and not self.file(self.number + 1).exists():
                return ""
            return follower + self.holder()
        except FileNotFoundError:
            if not self.path.parent.exists():  # nor is there anything to protect
                return ""
            if self.newest() > self.number:
                return follower + self.holder()
            # Somebody removed it: nothing is lost where the kernel's lock holds.
            return "" if self.me.kernel else f"{self.file(self.number)}: removed while it was held"
        except OSError:
            return ""

    def _renew(self) -> None:
        while not self._stop.wait(RENEW):
            if why := self.lost():
                self._on_lost(why)
                return
            with contextlib.suppress(OSError):  # the next one may succeed
                os.utime(self.file(self.number), follow_symlinks=False)

    def release(self, *, remove: bool = False) -> None:
        """Give it back, if it is held; ``remove``: nothing of it stays, since its folder is for good."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * RENEW)  # longer only where the disk hangs
        with contextlib.suppress(OSError):
            if self.number and self.me and self.me.pid == os.getpid() and not self.lost():
                if not remove:
                    os.utime(self.file(self.number), (0, 0), follow_symlinks=False)
                for number in self._numbers() if remove else ():
                    self.file(number).unlink(missing_ok=True)
        self.number = 0


CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""Of a file system without hard links."""


def _write(path: Path, flag: int, data: bytes) -> None:
    descriptor = os.open(path, CREATE | flag, 0o600)
    try:
        while data:  # a disk may take a part, and tell why at the next try
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[bytes, os.stat_result]:
    """A lease and its status: opened anew, so that a file server's client asks the server."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:  # another user's
        return b"", path.lstat()
    try:
        return os.read(descriptor, MOST), os.fstat(descriptor)
    finally:
        os.close(descriptor)

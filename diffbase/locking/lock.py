"""Locks of files: flock(2), and a lease (``lease.py``) on a mount that has no flock.

A lock is of the file at a path. On a mount without flock (ENOSYS, EOPNOTSUPP: Lustre without ``-o flock``,
some FUSE and NFS ones) the lease alone decides. ENOLCK may pass, a lock server restarts: it is tried for some
seconds, and then ends the command with 75; DIFFCORE_LOCKS=lease goes without the kernel's locks from the
start. Where the mount's locks are for one machine alone (Lustre's ``localflock``, NFS's ``nolock`` and
``local_lock``) there is a lease beside them.

``shared=True`` has it beside any lock, for what several machines write over days: one of them may have
mounted the disk without flock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from diffbase.cli import InputError, one_line
from diffbase.exits import BAD_INPUT
from diffbase.files import open_lock
from diffbase.locking.lease import Lease
from diffbase.system_error import GaveUpError, named, patiently

LOCKS = "DIFFCORE_LOCKS"
NONE_HERE = (errno.ENOSYS, errno.EOPNOTSUPP)
"""Of a mount without flock."""


class NoLocksError(OSError):
    """The mount has no flock."""


def alone(descriptor: int) -> bool:
    """Take the kernel's lock of an open file; whether nobody else has it. OSError; NoLocksError."""
    try:
        _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def until_alone(descriptor: int, *, shared: bool = False) -> None:
    """The same, but wait for it. ``shared``: or one with others who ask so."""
    _flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _flock(descriptor: int, how: int) -> None:
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno in NONE_HERE:
            raise NoLocksError(error.errno, os.strerror(error.errno)) from error
        raise


@contextmanager
def needed(path: Path, instead: str) -> Iterator[None]:
    """InputError where the block needs the kernel's locks at ``path`` and the mount has none."""
    try:
        yield
    except NoLocksError as error:
        raise InputError(f"{path}: no flock ({error.strerror}); {advice(path)}; or give {instead}") from error


def leave(why: str) -> None:
    """End this process at once: what it would write is another one's now."""
    print(one_line(f"error: {why}; nothing more is written here"), file=sys.stderr, flush=True)
    os._exit(BAD_INPUT)


class Lock:
    """The lock of the file at ``path``, made where there is none. A context manager: it gives the lock back.

    OSError as of ``files.open_lock``. ``file``: the same, opened by the caller, who closes it.
    ``on_lost``: called in a thread where a lease was held and lost, with a line that says to whom.
    """

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        file: IO[bytes] | None = None,
        on_lost: Callable[[str], None] = leave,
    ) -> None:
        """Nothing is taken yet."""
        self.path, self._shared = path, shared
        self._lease = Lease(path, on_lost)
        self._file = open_lock(path) if file is None else file
        self._opened = file is None
        self._fault: OSError | None = None
        """Why the kernel's lock is not to be had."""

    def take(self) -> bool:
        """Whether it is this process's now; asked again, since another one's lease may end with time.

        GaveUpError (ENOLCK) where the system's locks have run out.
        """
        kernel = self._kernel()
        if kernel is False:
            return False
        counts = self._counts(kernel)
        # Who has the kernel's lock has to know of those that could only make a lease.
        taken = self._lease.take(counts) if self._shared or not counts else self._lease.is_free(counts)
        if not taken:
            self._unlock(kernel)
        elif kernel is None:
            print(one_line(self._told()), file=sys.stderr, flush=True)
        return taken

    def is_free(self) -> bool:
        """Whether nobody has it. Asked again, as ``take``."""
        kernel = self._kernel()
        if kernel is False:
            return False
        try:
            return self._lease.is_free(self._counts(kernel))
        finally:
            self._unlock(kernel)

    def _kernel(self) -> bool | None:
        """Take the kernel's lock: whether that went well; None where the mount has none."""
        if os.environ.get(LOCKS) == "lease":
            return None
        try:
            return patiently(lambda: alone(self._file.fileno()), self.path)
        except NoLocksError as error:
            self._fault = error
            return None
        except OSError as error:
            if error.errno != errno.ENOLCK:
                raise
            hint = f"is a lock server away? {advice(self.path)}; or set {LOCKS}=lease on every node"
            raise GaveUpError(error.errno, f"{error.strerror}: {hint}", str(self.path)) from error

    def _counts(self, kernel: bool | None) -> bool:
        """Whether the kernel's lock, where it was had, is one of all machines."""
        return bool(kernel) and not LOCAL & set(mount_of(self.path)[1].split(","))

    def _unlock(self, kernel: bool | None) -> None:
        if kernel:
            with named(self.path):
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)

    def _told(self) -> str:
        fault = f"no flock ({os.strerror(self._fault.errno or 0)})" if self._fault else f"{LOCKS}=lease"
        return f"{self.path}: {fault}: a lease file holds the place; {advice(self.path)}"

    def holder(self) -> str:
        """Who has it, where a lease tells, for a message: " (process 7 on n1)", or nothing."""
        with named(self.path):
            return f" ({self._lease.holder()})" if self._lease.newest() else ""

    def may_end(self) -> bool:
        """Whether another's lease is so old that it is worth to ``take`` again for some seconds."""
        with named(self.path):
            return self._lease.is_watched()

    def check(self) -> None:
        """InputError where a lease was held and somebody else has it now: nothing may be written any more."""
        if self._lease.number and (why := self._lease.lost()):
            raise InputError(why)

    def is_removed(self) -> bool:
        """Whether the file is no longer at its path: its holder ended between our open and our lock."""
        try:
            return not os.path.samestat(self.path.lstat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self, *, remove: bool = False) -> None:
        """Give it back; ``remove``: what lies beside the file goes too."""
        self._lease.release(remove=remove)
        if self._opened:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        """As of a file that nobody closed."""
        if hasattr(self, "_opened"):
            self.close()


LOCAL = {"localflock", "nolock", "local_lock=all", "local_lock=flock"}
"""Options of mounts whose locks are for one machine alone."""
ADVICE = {
    "lustre": "mount it with -o flock (with localflock locks are for one machine alone)",
    "nfs": "mount it with local_lock=none and run its lock server, or with local_lock=flock (NFSv3: nolock)",
}


def advice(path: Path) -> str:
    """What the mount of ``path`` is, and which of its options has locks."""
    kind, options, place = mount_of(path)
    given = sorted({"flock", "noflock", *LOCAL} & set(options.split(",")))
    known = [text for name, text in ADVICE.items() if kind.startswith(name)]
    texts = known or [f"{name}: {text}" for name, text in ADVICE.items()]
    return f"{place or path} is {','.join([kind or 'unknown', *given])}: {'; '.join(texts)}"


def mount_of(path: Path) -> tuple[str, str, str]:
    """Kind, options and place of the mount that ``path`` lies on; empty where the system does not say."""
    found, longest = ("", "", ""), -1
    try:
        at = path.resolve()
        for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
            before, _, after = line.partition(" - ")
            fields, (kind, _, options) = before.split(), after.split(" ", 2)
            place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
            if len(place) >= longest and at.is_relative_to(place):
                found, longest = (kind, f"{fields[5]},{options}", place), len(place)
    except (OSError, ValueError, IndexError):
        pass
    return found

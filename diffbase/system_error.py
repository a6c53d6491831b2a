"""Errors of the system that may pass: a file server restarts, a disk or a network fails for a moment.

Nothing that was given is wrong then, and no data is bad: whoever meets one tries again for some seconds, and
ends with exit code 75 (``exits.RETRYABLE``) if it stays, so that a launcher goes on from the last checkpoint.

What decides how a run goes on is read with ``read_bytes`` and asked for with ``is_there`` and ``names_in``:
``Path.exists``, ``is_file`` and ``glob`` of newer Pythons (3.13, 3.14) take any error for "not there".
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PASSING = frozenset(
    {
        errno.EIO,  # a disk or a file server that fails
        errno.ESTALE,  # a file server that was restarted, or a file replaced there
        errno.ETIMEDOUT,
        errno.EREMOTEIO,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ENOTCONN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENOLCK,  # no locks left, or a lock server that is away
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.EMFILE,  # other threads' files, closed soon
        errno.ENFILE,  # other processes'
        errno.ENODEV,
        errno.ENXIO,
    }
)
"""Not among them: what names a mistake (ENOENT, EACCES, EROFS, ...), and a full disk (ENOSPC, EDQUOT)."""
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
DISK = PASSING | {errno.ENOSPC, errno.EDQUOT}
"""With a full disk: what a training may go on from later, when somebody has made room."""
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between two tries."""


class GaveUpError(OSError):
    """A fault that did not pass in spite of some tries; nobody tries again."""


def is_passing(error: BaseException) -> bool:
    """Whether ``error`` is the system's and may pass."""
    return isinstance(error, OSError) and error.errno in PASSING


def patiently(work: Callable[[], T], path: Path | str, again: Callable[[], object] = lambda: None) -> T:
    """What ``work`` gives, tried again while the system fails; ``again`` is called between two tries.

    OSError, with its number and the file that it names (else ``path``), for what does not pass; any other
    error at once.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            with named(path):
                return work()
        except OSError as error:
            if not is_passing(error) or isinstance(error, GaveUpError):
                raise
            if (pause := next(pauses, None)) is None:
                raise lasting(error, path) from error
            again()
            time.sleep(pause)


@contextmanager
def named(path: Path | str) -> Iterator[None]:
    """Errors of the system in the block name ``path``, as those of a read or a write do not by themselves."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # else a library's own, whose text is all it has
            error.filename = error.filename or str(path)
        raise


def told(error: OSError) -> str:
    """What happened in words, behind the file that the error names, if any."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def lasting(error: OSError, path: Path | str) -> GaveUpError:
    """The same error, for a person: which file, which number, how often it was tried."""
    assert error.errno is not None
    name, text = errno.errorcode.get(error.errno, str(error.errno)), os.strerror(error.errno)
    where = str(error.filename or path)  # only what takes a name tells it: open and stat, not read
    return GaveUpError(error.errno, f"{text} ({name}, {len(PAUSES) + 1} tries)", where)


class NoPlainFileError(OSError):
    """A pipe, a socket, a device or a circle of links in the place of a file: no fault that passes."""

    def __init__(self, path: Path | str) -> None:
        """``path`` is what was to be read."""
        super().__init__(errno.EINVAL, "is no plain file", str(path))


NO_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError, NoPlainFileError)
"""There is no such file to read."""


def open_plain(path: Path | str) -> int:
    """A descriptor to read a plain file. NoPlainFileError for what could hold one up."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ELOOP):  # a socket; links in a circle
            raise NoPlainFileError(path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NoPlainFileError(path)


def reading(path: Path) -> BufferedReader:
    """The file of ``open_plain``."""
    return os.fdopen(open_plain(path), "rb")


def read_bytes(path: Path, most: int = sys.maxsize) -> bytes:
    """The first ``most`` bytes of a file, or all. OSError as of ``patiently``.

    Fewer than the file is long are a fault of the system, not the file's end.
    """

    def read() -> bytes:
        with reading(path) as file:
            size = min(os.fstat(file.fileno()).st_size, most)
            data = file.read(most) if most < sys.maxsize else file.read()
        if len(data) < size:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return data

    return patiently(read, path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex digits. OSError as of ``patiently``."""

    def digest() -> str:
        with reading(path) as file:
            size, found = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256")
            if file.tell() < size:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return found.hexdigest()

    return patiently(digest, path)


def is_there(path: Path) -> bool:
    """Whether something is at ``path``; OSError, as of ``patiently``, where the system does not say."""
    try:
        patiently(path.stat, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads to itself
            return False
        raise
    return True


def names_in(folder: Path) -> list[str]:
    """What is in a folder, in order; nothing where it is not there. OSError as of ``is_there``."""
    try:
        return sorted(patiently(lambda: os.listdir(folder), folder))  # noqa: PTH208 - names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return []

"""Errors of the system that may pass: a file server restarts, a disk or a network fails for a moment.

Nothing that was given is wrong then, and no data is bad: whoever meets one tries again for some seconds, and
ends with exit code 75 (``exits.RETRYABLE``) if it stays, so that a launcher goes on from the last checkpoint.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
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
DISK = PASSING | {errno.ENOSPC, errno.EDQUOT}
"""With a full disk: what a training may go on from later, when somebody has made room."""
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Seconds between two tries."""


class GaveUpError(OSError):
    """A fault that did not pass in spite of some tries; nobody tries again."""


def is_passing(error: BaseException) -> bool:
    """Whether ``error`` is the system's and may pass."""
    return isinstance(error, OSError) and error.errno in PASSING


def _again(error: OSError) -> bool:
    return is_passing(error) and not isinstance(error, GaveUpError)


def patiently(work: Callable[[], T], path: Path | str, again: Callable[[], object] = lambda: None) -> T:
    """What ``work`` gives, tried again while the system fails; ``again`` is called between two tries.

    OSError, with ``path`` and its number, for what does not pass; any other error at once.
    """
    for pause in PAUSES:
        try:
            return work()
        except OSError as error:
            if not _again(error):
                error.filename = error.filename or str(path)  # a failing read does not say of what
                raise
            again()
            time.sleep(pause)
    try:
        return work()
    except OSError as error:
        if not _again(error):
            raise
        raise lasting(error, path) from error


def lasting(error: OSError, path: Path | str) -> GaveUpError:
    """The same error, for a person: which file, which number, how often it was tried."""
    assert error.errno is not None
    name, text = errno.errorcode.get(error.errno, str(error.errno)), os.strerror(error.errno)
    return GaveUpError(error.errno, f"{text} ({name}, {len(PAUSES) + 1} tries)", str(path))

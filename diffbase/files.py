"""Files that are there whole or not at all: written under another name beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diffbase import line, trust
from diffbase.cli import InputError, json_text
from diffbase.system_error import NoPlainFileError, is_there, named

REPOSITORY = Path(__file__).resolve().parents[1]
"""The folder of the packages: the checkout, what a launcher copied of it, or site-packages."""


def path_of(text: str | Path, where: str) -> Path:
    """What a person gave as a path, with ``~`` and ``~user`` put in. InputError, which begins with ``where``.

    Errors: a character that is none of a name (line.fault), or a user that is not there.
    """
    if problem := line.path_fault(str(text)) or ("is empty; give a path" if text == "" else None):
        raise InputError(f"{where} {problem}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"{where}: {str(text)!r:.200}: there is no such user") from None


@contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well, and goes otherwise.

    Errors of the system name ``path``, where they name nothing themselves.
    Safe against a kill, not against a power cut: see ``open_atomic``. The name cannot be guessed: two
    processes that write the same file never share a temporary one, and nobody can have put a link there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with named(path):
            yield temporary
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write into that becomes ``path``, on the disk, when the block ends well.

    After a kill or a power cut there is the old file or the new one.
    """
    with renamed(path) as temporary, temporary.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Make ``data`` the whole of ``path``, as ``open_atomic`` does."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, tree: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Make ``tree`` the whole of ``path`` as JSON, as ``open_atomic`` does; what is not finite is null."""
    write_atomic(path, (json_text(tree, indent=indent, sort_keys=sort_keys) + "\n").encode())


def check_writable(*folders: Path) -> None:
    """Said before long work whose results go there: that each folder takes files, or can be made.

    OSError, which names the folder. Nothing is left there, and no folder is made.
    """
    for folder in folders:
        # What is missing of it is made in the nearest folder above that is there.
        there = next(path for path in (folder, *folder.absolute().parents) if is_there(path))
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            error.filename = str(folder)  # not the temporary file's
            raise


def plain_only(path: str, flags: int) -> int:
    """The ``opener`` of a file to be written, made where there is none, as ``trust.file_mode`` says.

    OSError for what somebody else may have put there: a link (ELOOP), or a NoPlainFileError.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a link, which is not written through", path) from None
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            raise NoPlainFileError(path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NoPlainFileError(path)
    if not status.st_size and status.st_uid == os.geteuid():  # a new one: whatever the umask
        os.fchmod(descriptor, trust.file_mode(Path(path).parent))
    return descriptor


def open_lock(path: Path) -> IO[bytes]:
    """A file to be locked with flock, made where there is none: its owner's alone, since a reader can lock.

    OSError as of ``plain_only``.
    """
    descriptor = plain_only(str(path), os.O_RDWR | os.O_CREAT)
    if os.fstat(descriptor).st_uid == os.geteuid():
        os.fchmod(descriptor, 0o600)  # of an older version's
    return os.fdopen(descriptor, "r+b")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with named(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path) -> Path:
    """Rename what is damaged to ``NAME.damaged-TIME`` beside it, for a person to look at; returns that path.

    OSError where it is another person's: that is theirs to mend.
    """
    if path.lstat().st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "is damaged, and another person's", str(path))
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}"
    aside, number = path.with_name(name), 1
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{name}-{number}"), number + 1
    path.rename(aside)
    return aside

"""Files that are there whole or not at all: written under another name beside their place, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from diffbase import line
from diffbase.cli import InputError

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

    Safe against a kill, not against a power cut: see ``open_atomic``. The name holds the process's number, so
    that two processes that write the same file never share a temporary one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
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
    with renamed(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Make ``data`` the whole of ``path``, as ``open_atomic`` does."""
    with open_atomic(path) as file:
        file.write(data)


def write_json(path: Path, tree: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Make ``tree`` the whole of ``path`` as JSON, as ``open_atomic`` does."""
    write_atomic(path, (json.dumps(tree, indent=indent, sort_keys=sort_keys) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

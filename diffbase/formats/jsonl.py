"""JSON Lines: one object per line, each appended whole or not at all; lines of processes do not mix."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffbase.cli import json_text
from diffbase.files import plain_only
from diffbase.locking import lock
from diffbase.system_error import NO_FILE, patiently, reading

LONGEST = 1 << 20
"""Bytes of a line; a longer one is left out."""
LOCK_SECONDS = 1.0
"""How long a writer waits for another one's line; then it goes on without the lock."""


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one line, with null for what is not finite; a new file is its owner's alone.

    OSError, with nothing of the line left in the file, where the disk does not take all of it. A link is not
    written through. What a kill left of a line before this one is ended first, so that it costs no other.
    """
    line = (json_text(entry) + "\n").encode()
    descriptor = plain_only(str(path), os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        locked = _lock(descriptor)
        end = os.fstat(descriptor).st_size
        torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
        line = b"\n" * torn + line
        written = os.write(descriptor, line)
        if written != len(line):
            if locked:  # or another one's line may stand behind it: then the next writer ends the torn one
                os.ftruncate(descriptor, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(descriptor)  # gives the lock back


def _lock(descriptor: int) -> bool:
    """Whether this process alone writes now: a disk may have no locks, and a stopped process hold one."""
    until = time.monotonic() + LOCK_SECONDS
    try:
        while not lock.alone(descriptor):
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
    except OSError:
        return False
    return True


def read(
    path: Path, left_out: list[int] | None = None, is_one: Callable[[dict[str, Any]], bool] | None = None
) -> Iterator[dict[str, Any]]:
    """Every whole line that is an object; one that a kill cut short is left out. No file: no lines.

    ``left_out`` is given the numbers, from 1, of lines that are damaged: no UTF-8, no JSON, no object, too
    long, or not what ``is_one`` takes. A last line that a kill cut short is not among them.
    """
    try:
        file = patiently(lambda: reading(path), path)
    except FileNotFoundError:
        return
    at = 0

    def piece() -> bytes:
        """The next line, or ``LONGEST`` bytes of it."""
        nonlocal at
        try:
            found = file.readline(LONGEST)
        except OSError:
            file.seek(at)  # where the next try begins
            raise
        at += len(found)
        return found

    with file:
        number = 0
        while line := patiently(piece, path):
            number += 1
            whole = line.endswith(b"\n")
            if not whole and len(line) == LONGEST:
                while (rest := patiently(piece, path)) and not (whole := rest.endswith(b"\n")):
                    pass
                line = b""
            entry = _parsed(line)
            if entry is not None and (is_one is None or is_one(entry)):
                yield entry
            elif left_out is not None and (whole or entry is not None):  # else the torn end
                left_out.append(number)


def tail(path: Path, most: int = 1 << 16) -> list[dict[str, Any]]:
    """The whole lines that are objects among the last ``most`` bytes; none where there is no file."""
    try:
        with reading(path) as file:
            begin = max(0, file.seek(0, os.SEEK_END) - most)
            file.seek(begin)
            lines = file.read(most).split(b"\n")
    except NO_FILE:
        return []
    parsed = map(_parsed, lines[begin > 0 : -1])  # the first is cut, the last not yet whole
    return [entry for entry in parsed if entry is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def text(entries: Iterator[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    """The lines of a file to be written anew."""
    return "".join(json_text(entry) + "\n" for entry in entries)

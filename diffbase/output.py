"""Standard output and error that may be lost: a pipe whose reader has left, a full disk, a closed descriptor.

A command that is for its output ends when nobody reads it: quietly, with the code that a shell gives a
process whose pipe broke. Training and what supervises it go on: from then on the stream leads nowhere, and
``lost`` says so.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CLOSED = 141
"""Exit code: 128 + SIGPIPE."""
NAMES = {1: "standard output", 2: "standard error"}


class _Raw(io.FileIO):
    """A descriptor that becomes /dev/null with the first write that it does not take."""

    def __init__(self, descriptor: int, survive: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.survive = survive
        self.why: str | None = None
        """Why it was lost; None while it is not."""
        self.end: BaseException | None = None
        """What ends the command for that."""
        self.named = NAMES[descriptor]

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view):  # all of it: without a buffer in front nobody writes the rest
                written = super().write(view[done:])
                if written is None:  # a pipe that does not block, as some programs leave theirs, is full
                    select.select([], [self.fileno()], [])
                done += written or 0
            return done
        except OSError as error:
            self.why, broken = error.strerror or str(error), isinstance(error, BrokenPipeError)
            _lead_nowhere(self.fileno())
            if self.survive or self.fileno() == 2:  # a code is worth more than its words
                return len(view)
            self.end = SystemExit(CLOSED) if broken else OSError(error.errno, self.why, self.named)
            raise self.end from None


def _lead_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


@contextmanager
def guarded(survive: bool = False) -> Iterator[None]:
    """Around a process's work: its output may be lost, as said above. ``survive``: and the work goes on.

    Inside another one ``survive`` holds for both while it lasts. A stream that is not the process's own, such
    as a test's, is left as it is.
    """
    before = sys.stdout, sys.stderr
    inner = [raw for stream in before if (raw := _raw(stream)) is not None]
    surviving = [raw.survive for raw in inner]
    try:
        for raw in inner:
            raw.survive |= survive
        if not inner:
            sys.stdout = _guard(sys.stdout, sys.__stdout__, 1, survive)
            sys.stderr = _guard(sys.stderr, sys.__stderr__, 2, survive)
        yield
    finally:
        for raw, was in zip(inner, surviving, strict=True):
            raw.survive = was
        if not inner:
            for stream in (sys.stdout, sys.stderr):  # after an error nobody else does
                with contextlib.suppress(OSError, ValueError, SystemExit):
                    stream.flush()
            sys.stdout, sys.stderr = before


def _guard(stream: Any, own: Any, descriptor: int, survive: bool) -> Any:
    if stream is None:  # it was closed before the process began
        with contextlib.suppress(OSError):
            os.fstat(descriptor)  # some file of ours has the number by now
            return open(os.devnull, "w")  # noqa: PTH123 - for as long as the process lives
        _lead_nowhere(descriptor)  # or the next file that is opened would get what libraries print
        return open(os.devnull, "w")  # noqa: PTH123
    try:
        if stream is not own or stream.fileno() != descriptor:
            return stream
    except (OSError, ValueError, AttributeError):
        return stream
    stream.flush()
    raw: Any = _Raw(descriptor, survive)
    buffered = isinstance(stream.buffer, io.BufferedIOBase)  # not with PYTHONUNBUFFERED
    return io.TextIOWrapper(
        io.BufferedWriter(raw) if buffered else raw, stream.encoding,
        # A terminal that has no such character shows its number.
        "backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def _raw(stream: Any) -> _Raw | None:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, _Raw) else None


def lost() -> dict[str, str]:
    """The guarded streams that were lost, by name, and why."""
    found = {}
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if (raw := _raw(stream)) is not None and raw.why is not None:
            found[NAMES[descriptor]] = raw.why
    return found


def flush() -> None:
    """Write out what is buffered: of guarded streams errors are as those of a write, of others none."""
    for stream in (sys.stderr, sys.stdout):
        if _raw(stream) is not None:
            stream.flush()
        elif stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
    for raw in filter(None, map(_raw, (sys.stderr, sys.stdout))):
        if raw.end is not None and not raw.survive:  # in a thread, or where OSError is passed over
            raise raw.end

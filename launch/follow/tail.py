"""Showing a log as it grows, until the job has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from diffbase.system_error import reading

POLL = 0.5


def tail(log: Path, ended: Callable[[], bool], whole: bool = True) -> None:
    """Print ``log`` as it grows; returns when ``ended`` and all is shown. ``whole``: from its begin."""
    position: int | None = 0 if whole else None
    while True:
        over = ended()  # before the read: what it wrote last is shown
        position = _show(log, position)
        if over:
            return
        time.sleep(POLL)


def _show(log: Path, position: int | None) -> int | None:
    try:
        with reading(log) as file:
            if position is None:
                file.seek(0, 2)
            else:
                file.seek(position)
            for block in iter(lambda: file.read(1 << 16), b""):
                sys.stdout.write(block.decode(errors="replace"))
            sys.stdout.flush()
            return file.tell()
    except FileNotFoundError:
        return position


def every(seconds: float, ask: Callable[[], bool]) -> Callable[[], bool]:
    """``ask``, but not more often than that: Slurm's controller answers everybody."""
    last, answer = 0.0, False

    def gently() -> bool:
        nonlocal last, answer
        if not answer and time.monotonic() - last >= seconds:
            last, answer = time.monotonic(), ask()
        return answer

    return gently

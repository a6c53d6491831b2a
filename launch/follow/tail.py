"""Showing logs as they grow, until their jobs have ended: what is in them is text, and does not act."""

from __future__ import annotations

import codecs
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffbase.line import say
from diffbase.system_error import reading
from launch.follow.points import Point, read
from launch.follow.run import ASK_EVERY, Run, are_over

POLL = 0.5


def hint(run: Path) -> str:
    """The command that follows a run, for a shell."""
    return f"follow it: python -m launch.jobs logs {shlex.quote(str(run))} --follow"


class Log:
    """One log, read from where it was left."""

    def __init__(self, path: Path) -> None:
        self.path, self._position, self._rest = path, 0, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def added(self) -> str:
        """What came since the last call; nothing while there is no file."""
        try:
            with reading(self.path) as file:
                file.seek(self._position)
                blocks = iter(lambda: file.read(1 << 16), b"")
                text = "".join(self._decoder.decode(block) for block in blocks)
                self._position = file.tell()
        except FileNotFoundError:
            return ""
        return text

    def lines(self, last: bool) -> list[str]:
        """The whole lines of that; ``last``: and what is left."""
        text = self._rest + self.added()
        *whole, self._rest = text.split("\n")
        if last and self._rest:
            whole, self._rest = [*whole, self._rest], ""
        return whole


def tail(path: Path, ended: Callable[[], bool]) -> None:
    """Print a log as it grows; returns when ``ended`` and all is shown."""
    log = Log(path)
    while True:
        over = ended()  # before the read: what it wrote last is shown
        say(log.added(), end="")
        if over:
            return
        time.sleep(POLL)


def follow_run(folder: Path, rank: int) -> None:
    """Show a rank's output until the run's job is over, and its successor's if it has one."""
    shown = None
    while (run := Run.read(folder)).job != shown:
        shown = job = run.job

        def over(job: str = job) -> bool:
            now = Run.read(folder)
            return now.job != job or are_over([now])

        tail(run.log(rank), ended=every(ASK_EVERY, over))


def show_points(own: Sequence[Point], rank: int, follow: bool) -> None:
    """A rank's output of each point, each line behind the point's number; ``follow``: until all are over."""
    logs: dict[str, Log] = {}

    def look() -> bool:
        runs = [run for point in own if isinstance(run := read(point.folder), Run)]
        for run in runs:
            path = run.log(rank)
            if run.folder.name not in logs or logs[run.folder.name].path != path:  # another job took over
                logs[run.folder.name] = Log(path)
        return are_over(runs)

    ended = every(ASK_EVERY, look) if follow else lambda: look() or True
    while True:
        over = ended()
        _print(logs, last=over)
        if over:
            return
        time.sleep(POLL)


def _print(logs: Mapping[str, Log], last: bool) -> None:
    for name, log in sorted(logs.items()):
        for line in log.lines(last):
            say(f"{name} | {line}")


def every(seconds: float, ask: Callable[[], bool]) -> Callable[[], bool]:
    """``ask``, but not more often than that: Slurm's controller answers everybody."""
    last, answer = 0.0, False

    def gently() -> bool:
        nonlocal last, answer
        if not answer and time.monotonic() - last >= seconds:
            last, answer = time.monotonic(), ask()
        return answer

    return gently

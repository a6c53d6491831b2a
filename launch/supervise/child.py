"""One rank's training process: in a process group of its own, and never alive without its supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffbase.trust import file_mode

SET_PARENT_DEATH_SIGNAL = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process ``number`` when its parent ends."""
    _libc.prctl(SET_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)


def open_log(path: Path) -> int:
    """A descriptor that adds to a log, of mode ``trust.file_mode``, and follows no link."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # Slurm may have made it
        os.fchmod(descriptor, file_mode(path.parent))
    return descriptor


class Child:
    """A started process. ``grace`` seconds lie between being asked to leave and being killed."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        log: Path | None = None,
        cores: Sequence[int] = (),
    ) -> None:
        """``log``: its output is added there; None, or one that cannot be opened: the supervisor's own.

        ``cores``: those that it may run on; all that the supervisor may if there are none.
        """
        output = None
        with contextlib.suppress(OSError):  # no reason not to train
            output = None if log is None else open_log(log)
        # A session of its own: what it starts goes with it. Slurm's plugins that track processes by group
        # would lose it then, so the kernel ends it with its supervisor.
        try:
            self._process = subprocess.Popen(
                command, env=dict(env), cwd=cwd, start_new_session=True, preexec_fn=_prepare(cores),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        finally:
            if output is not None:
                os.close(output)
        self._kill_at: float | None = None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def poll(self) -> int | None:
        """Exit code as of subprocess, or None while it runs. When it is gone, so is its group."""
        code = self._process.poll()
        if code is not None or (self._kill_at is not None and time.monotonic() >= self._kill_at):
            self._signal_group(signal.SIGKILL)
        return code

    def forward(self, number: int) -> None:
        """Pass a signal on to the process itself, which passes it to its own children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self, grace: float) -> None:
        """Ask it to leave, once; ``poll`` kills it when the grace is over, also if it is stopped."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + grace
            self.forward(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the whole group and wait until it is gone."""
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _prepare(cores: Sequence[int]) -> Callable[[], None]:
    """What the new process does before it becomes another program."""

    def prepare() -> None:
        die_with_parent()
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare

"""One rank's training process: in a process group of its own, and never alive without its supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffbase.exits import DONE
from diffbase.trust import file_mode

SET_PARENT_DEATH_SIGNAL = 1
READY = b"."
"""What a prepared process says when its part of the preflight went well."""
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
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """``log``: its output is added there; None, or one that cannot be opened: the supervisor's own.

        ``cores``: those that it may run on; all that the supervisor may if there are none. ``stdin``: as of
        subprocess, nothing to read unless it is given.
        """
        output = None
        with contextlib.suppress(OSError):  # no reason not to train
            output = None if log is None else open_log(log)
        # A session of its own: what it starts goes with it. Slurm's plugins that track processes by group
        # would lose it then, so the kernel ends it with its supervisor.
        try:
            self._process = subprocess.Popen(
                command, env=dict(env), cwd=cwd, start_new_session=True, preexec_fn=_prepare(cores),
                stdin=stdin, stdout=output, stderr=output,
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


class Prepared(Child):
    """A rank's process that takes part in the preflight, waits, and trains (probe/prepared.py).

    ``poll`` gives DONE when its part is over, while it waits; from ``train`` on it is like any other.
    """

    def __init__(
        self, order: Mapping[str, Any], command: Sequence[str], env: Mapping[str, str], cwd: Path,
        log: Path | None = None, cores: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """``order``: what ``probe.prepared.obey`` is told first; the rest as of Child."""
        self._env, self._ready, self._trains = dict(env), False, False
        self._words, theirs = socket.socketpair()
        try:
            with theirs:
                super().__init__(command, env, cwd, log, cores, theirs.fileno())
        except BaseException:
            self._words.close()
            raise
        self._words.setblocking(False)
        self._say(order)

    def poll(self) -> int | None:
        """As Child's; DONE once the preflight's part is over and it waits."""
        code = super().poll()
        if code is not None or self._trains:
            return code
        with contextlib.suppress(OSError):  # nothing said yet
            self._ready = self._ready or self._words.recv(1) == READY
        return DONE if self._ready else None

    def train(self, env: Mapping[str, str]) -> bool:
        """Have it become the training, in this environment; False if it is gone."""
        names = {*self._env, *env}
        changes = {name: env.get(name) for name in names if env.get(name) != self._env.get(name)}
        self._trains = super().poll() is None and self._say({"changes": changes})
        self._words.close()
        return self._trains

    def kill(self) -> None:
        """As Child's."""
        self._words.close()
        super().kill()

    def _say(self, words: Mapping[str, Any]) -> bool:
        data = json.dumps(words).encode() + b"\n"
        try:
            return self._words.send(data) == len(data)
        except OSError:
            return False


def _prepare(cores: Sequence[int]) -> Callable[[], None]:
    """What the new process does before it becomes another program."""

    def prepare() -> None:
        die_with_parent()
        if cores:
            os.sched_setaffinity(0, cores)

    return prepare

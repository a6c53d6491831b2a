"""A rank's process that loads torch once: for the preflight's all-reduce, and for training, which it becomes.

    load torch -> a fork takes part in the all-reduce and ends -> load the rest -> wait -> run the script

What an all-reduce leaves behind is the fork's and ends with it: threads, sockets and a store, memory, on a
GPU its context and what NCCL took. The process itself has loaded modules and done nothing else when its
supervisor's word comes: it has no process group, has drawn no number and touched no device. torch must not
have looked for GPUs before the fork, which could not use them then; so DeepSpeed, which looks, comes after.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from diffbase.exits import DONE, FATAL, RETRYABLE
from launch.supervise.child import READY, die_with_parent

LATE = frozenset({"MASTER_ADDR", "MASTER_PORT", "DIFFCORE_ATTEMPT"})
"""Variables that are first read when ranks meet. If another one has changed, which torch or a library may
have read when it was loaded, the script is started anew."""


def obey(command: Sequence[str]) -> None:
    """Take part in the all-reduce, wait for the word to train, and become ``command``: a script's arguments.

    Ends as the all-reduce did if that failed; RETRYABLE if the supervisor is gone or the time is over.
    """
    environ, path = dict(os.environ), _without_first(sys.path)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # until it trains signals end it at once
    supervisor = _take_stdin()
    order = _next(supervisor)
    _limit(float(order["seconds"]))
    sys.path[:] = [str(Path(command[0]).resolve().parents[1]), *path]  # as the script has it
    from launch.supervise.probe import speeds

    def probe() -> None:
        supervisor.close()
        speeds.take_part(Path(order["out"]))

    if code := _in_fork(probe):
        _end_as(code)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    supervisor.sendall(READY)
    sound = _load()
    changes: dict[str, str | None] = _next(supervisor)["changes"]
    supervisor.close()
    signal.signal(signal.SIGINT, interrupt)
    if not sound or changes.keys() - LATE:
        os.execve(sys.executable, [sys.executable, *command], _changed(environ, changes))
    _apply(changes)
    # What Python makes of `python SCRIPT ARGUMENTS`.
    folder = [] if sys.flags.safe_path else [str(Path(command[0]).resolve().parent)]
    sys.path[:], sys.argv[:] = [*folder, *path], command
    runpy.run_path(command[0], run_name="__main__")


def _load() -> bool:
    """Load what training will, while the supervisors judge; whether that went well."""
    try:
        from diffcore.engine import process_group

        process_group.load()
        import diffcore.config.configure
        import diffcore.evaluation.quality.probe
        import diffcore.training.process  # noqa: F401
    except Exception:  # the training, started anew, will say it
        return False
    return True


def _in_fork(work: Callable[[], None]) -> int:
    """Do ``work`` in a fork of this process; its exit code, negative for a signal."""
    parent = os.getpid()
    with warnings.catch_warnings():  # of numpy's threads, which are idle and made for forks
        warnings.simplefilter("ignore")
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = FATAL
    try:
        die_with_parent()
        if os.getppid() == parent:
            work()
            code = DONE
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # gloo's threads may abort a process that ends slowly


def _end_as(code: int) -> NoReturn:
    """End with this exit code; by the same signal if it is negative."""
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code if code > 0 else RETRYABLE)


def _limit(seconds: float) -> None:
    """End this process, and with it its fork, after ``seconds``."""

    def too_late(number: int, frame: FrameType | None) -> None:
        print(f"launch: the all-reduce did not end within {seconds:.0f} s", file=sys.stderr, flush=True)
        os._exit(RETRYABLE)

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _take_stdin() -> socket.socket:
    """The connection to the supervisor, which nothing started from here gets; standard input is empty."""
    supervisor = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return supervisor


def _next(supervisor: socket.socket) -> dict[str, Any]:
    """The next line that the supervisor says; the end of this process if it is gone."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := supervisor.recv(1 << 16)):
            os._exit(RETRYABLE)
        line += more
    said: dict[str, Any] = json.loads(line)
    return said


def _without_first(path: Sequence[str]) -> list[str]:
    """``sys.path`` without what Python put there for the way in which this process was started."""
    return [*path[not sys.flags.safe_path :]]


def _changed(environ: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

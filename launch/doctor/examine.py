"""Checks beside each other, each in a process of its own: none can hide, hold up or take down another.

A check is forked, not started anew: it costs milliseconds, and only the check that needs torch imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launch.doctor.finding import Check, Finding, bad
from launch.supervise.child import die_with_parent

REAP = 5.0
"""Seconds that a process has to go at its end; one that hangs in the kernel is left to it."""
NO_PROCESS = -1


def examine(waves: Sequence[Sequence[Check]], seconds: float) -> list[Finding]:
    """What all checks find, in their order. A wave starts when the one before is over.

    ``seconds``: what each check may take; then it is killed, with all that it started in its process group.
    """
    findings = []
    for wave in waves:
        running = [_Running(check, seconds) for check in wave]
        try:
            _wait(running)
        finally:
            for one in running:
                one.end()
        findings += [finding for one in running for finding in one.findings()]
    return findings


def _wait(running: Sequence[_Running]) -> None:
    """Until every check has said everything, or its time is over."""
    while unread := [one for one in running if one.reading]:
        left = min(one.until for one in unread) - time.monotonic()
        ready, _, _ = select.select(unread, [], [], max(left, 0))
        for one in ready:
            one.read()
        for one in unread:
            if one.reading and time.monotonic() >= one.until:
                one.reading, one.late = False, True


class _Running:
    """A check in its process."""

    def __init__(self, check: Check, seconds: float) -> None:
        self.check, self.seconds = check, seconds
        self.until = time.monotonic() + seconds
        self.reading, self.late = True, False
        self._said = b""
        self._code: int | None = None
        self._reader, writer = os.pipe()
        try:
            self._pid = os.fork()
        except OSError as error:  # too many processes: the check of that limit may still find room
            why = f"no process could be started ({error.strerror})"
            _say(
                writer, _unchecked(check, why, "end some of your processes; ulimit -u says how many may run")
            )
            self._pid, self._code = NO_PROCESS, 0
        if not self._pid:
            _answer(check, writer)
        os.close(writer)

    def fileno(self) -> int:
        return self._reader

    def read(self) -> None:
        """What it has said since."""
        more = os.read(self._reader, 1 << 16)
        self._said += more
        self.reading = bool(more)

    def end(self) -> None:
        """Nothing of it runs afterwards, unless the kernel holds it."""
        os.close(self._reader)
        if self._pid == NO_PROCESS:
            return
        until = time.monotonic() + REAP
        if not (self.late or self.reading):
            self._reap(until)
        for kill in (os.killpg, os.kill):  # the group does not exist until the process has made it
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(self._pid, signal.SIGKILL)
                break
        self._reap(until)

    def _reap(self, until: float) -> None:
        while self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= until:
                return
            else:
                time.sleep(0.005)

    def findings(self) -> list[Finding]:
        """What it found, and what became of it where it did not reach its end."""
        whole = [line for line in self._said.split(b"\n")[:-1] if line]
        found = [Finding(**json.loads(line)) for line in whole]
        if self.late:
            why = f"no answer within {self.seconds:g} s"
            todo = "something hangs; or give it longer (--patience 60), as where Python lies on a slow disk"
        elif self._code:
            why = f"ended by {_ending(self._code)}"
            todo = "python -X faulthandler -c 'import numpy, torch, deepspeed' may say more"
        else:
            return found
        return [*found, _unchecked(self.check, why, todo)]


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _unchecked(check: Check, why: str, todo: str) -> Finding:
    return bad(check.name, f"could not be checked: {why}", todo)


def _answer(check: Check, writer: int) -> None:
    """The whole life of a check's process. Never returns."""
    try:
        os.setsid()
        die_with_parent()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # what is imported may print, and the report is all that may be on stdout
            os.dup2(nowhere, stream)
        sys.stdout = sys.stderr = os.fdopen(nowhere, "w", encoding="utf-8")
        try:
            for finding in check.ask():
                _say(writer, finding)
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
            todo = f"mend the installation if that is what it says; else report it ({_raised_at(error)})"
            _say(writer, _unchecked(check, why, todo))
        os._exit(0)
    finally:
        os._exit(1)


def _raised_at(error: BaseException) -> str:
    """File and line, which is all of the traceback that the report has."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "diffcore"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"


def _say(writer: int, finding: Finding) -> None:
    data = json.dumps(asdict(finding)).encode() + b"\n"
    while data:
        data = data[os.write(writer, data) :]

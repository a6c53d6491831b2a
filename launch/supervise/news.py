"""Telling somebody what became of a job, as its profile asks: in processes that the job does not wait for.

Rank 0's supervisor starts them. That they fail, hang or are killed is a line in its log, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

from diffbase import ledger
from diffbase.cli import json_text, one_line
from diffbase.files import REPOSITORY
from diffbase.redaction import without_credentials
from launch.job.code import by_name
from launch.supervise.life import Life

EXTRA = 2.0
"""Seconds that a process has to end after its own limit."""


class News:
    """What the profile's ``notify`` and ``prometheus`` ask for; nothing where it has neither."""

    def __init__(self, life: Life) -> None:
        self.life, self.cluster = life, life.spec.cluster
        self._under_way: list[tuple[subprocess.Popen[bytes], float]] = []
        self._figures: subprocess.Popen[bytes] | None = None

    def tell(self, event: str, attempt: int, why: str) -> None:
        """Start to hand ``event`` (of ``Notify.events``) over; ``close`` waits for it."""
        settings = self.cluster.notify
        if settings is None or event not in settings.events:
            return
        self._under_way = [(child, until) for child, until in self._under_way if child.poll() is None]
        asked = {"settings": settings.model_dump(mode="json"), "news": self._of(event, attempt, why)}
        child = self._start(["launch.notify"], subprocess.PIPE)
        if child is not None and child.stdin is not None:
            with (
                contextlib.suppress(OSError),
                child.stdin as pipe,
            ):  # less than a pipe holds: it does not block
                pipe.write(json_text(asked).encode())
            self._under_way.append((child, time.monotonic() + settings.seconds + EXTRA))

    def _of(self, event: str, attempt: int, why: str) -> dict[str, Any]:
        run, where, spec = self.life.run_folder, self.life.where, self.life.spec
        beat = ledger.heartbeat(run) or {}
        why = without_credentials(one_line(why))
        step = f" at step {beat['step']}/{beat['steps']}" if beat else ""
        return {
            "event": event, "time": round(time.time(), 3), "run": str(run), "name": spec.job,
            "job": where.job, "cluster": self.cluster.name, "attempt": attempt, "why": why,
            "step": beat.get("step"), "steps": beat.get("steps"),
            # What chat programs show of a webhook's JSON.
            "text": f"{spec.job} (job {where.job} on {self.cluster.name}): {event}{step}: {why}",
        }  # fmt: skip

    def show_figures(self) -> None:
        """Start the process that writes the textfile for node_exporter, once."""
        settings = self.cluster.prometheus
        if settings is None or self._figures is not None:
            return
        out = settings.folder / f"diffcore-{self.cluster.name}-{self.life.where.job}.prom"
        arguments = ["--out", str(out), "--seconds", str(settings.seconds), "--name", self.life.spec.job]
        arguments += ["--parent", str(os.getpid())]
        module = "launch.notify.textfile"
        self._figures = self._start([module, str(self.life.run_folder), *arguments], subprocess.DEVNULL)

    def _start(self, arguments: list[str], stdin: int) -> subprocess.Popen[bytes] | None:
        try:
            # fmt: off
            return subprocess.Popen(
                [sys.executable, *by_name(arguments[0], REPOSITORY), *arguments[1:]],
                cwd="/", stdin=stdin, start_new_session=True, preexec_fn=_outlive_signals,
            )
            # fmt: on
        except (OSError, subprocess.SubprocessError) as error:
            self.life.say(f"{arguments[0]} was not started: {error}")
            return None

    def close(self) -> None:
        """Wait for what is under way, each to its own limit, and end the rest."""
        for child, until in self._under_way:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._under_way = []
        if self._figures is not None:
            self._figures.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._figures.wait(EXTRA)
            self._figures.kill()
            self._figures.wait()
            self._figures = None


def _outlive_signals() -> None:
    """Slurm's go to every process of a job: the news of its end must get out before SIGKILL.

    ``textfile`` puts a handler of its own in the place of SIGTERM's.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

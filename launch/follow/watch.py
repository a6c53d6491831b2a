"""Looking again and again: on a terminal the whole of it until q, in a pipe a line for each change."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffbase.line import say
from diffbase.tables import Block, live, show
from launch.follow import show as ways
from launch.follow.condition import OVER
from launch.follow.glance import UNREADABLE, clock, rate_words
from launch.follow.points import Unreadable
from launch.follow.run import ASK_EVERY, UNKNOWN_TO_SLURM, Run
from launch.follow.show import Ask
from launch.scheduler.query import Known

EVERY = 2.0
"""Seconds between two looks at run folders."""
Look = Callable[[Ask], tuple[list[Block], Any, list[str]]]


def watch(look: Look) -> list[str]:
    """Show what ``look`` finds until q or Ctrl-C, in a pipe until every run is over; the last conditions."""
    ask = seldom(ASK_EVERY)
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        return _plain(look, ask)
    blocks, _, words = look(ask)
    with _keys() as pressed, live() as screen, contextlib.suppress(KeyboardInterrupt):
        while True:
            screen([*blocks, "", f"{time.strftime('%H:%M:%S')}  q: leave"])
            if pressed(EVERY) in ("q", "Q", "\x03", "\x04"):
                break
            blocks, _, words = look(ask)
    show(blocks)  # stays on the terminal
    return words


def _plain(look: Look, ask: Ask) -> list[str]:
    told: dict[str, str] = {}
    while True:
        _, trees, words = look(ask)
        rows = trees if isinstance(trees, list) else [trees]
        for tree in rows:
            for one in [tree, *tree["points"]]:
                line = one_line_of(one)
                if told.get(one["run"]) != line:
                    told[one["run"]] = line
                    say(f"{time.strftime('%H:%M:%S')} {line}")
        if all(_is_over(one) for tree in rows for one in tree["points"] or [tree]):
            return words
        time.sleep(EVERY)


def _is_over(tree: dict[str, Any]) -> bool:
    """As of ``logs --follow``: what Slurm forgot is over too; what cannot be read tells no more."""
    forgotten = tree["condition"] == "unknown" and tree["why"] == UNKNOWN_TO_SLURM
    return tree["condition"] in OVER or tree["state"] == UNREADABLE or forgotten


def one_line_of(tree: dict[str, Any]) -> str:
    """A run's line in a log: what of it may change."""
    parts = [tree["run"], tree["state"]]
    if tree["step"] is not None:
        parts.append(f"step {tree['step']}/{tree['steps']}")
    if tree["left"] is not None:
        parts.append(f"{rate_words(tree['rate'])}, {clock(tree['left'])} left")
    if tree["fault"]:
        parts.append(f"last fault: attempt {tree['fault']['attempt']} {tree['fault']['kind']}")
    return "  ".join(parts)


def seldom(seconds: float) -> Ask:
    """A question to Slurm that is answered from memory for so long, if it is for the same jobs."""
    asked: set[str] | None = None
    answered_at, known = 0.0, Known()

    def ask(runs: Sequence[Run | Unreadable]) -> Known:
        nonlocal asked, answered_at, known
        jobs = {run.job for run in runs}
        if jobs != asked or time.monotonic() - answered_at >= seconds:
            asked, known, answered_at = jobs, ways.ask(runs), time.monotonic()
        return known

    return ask


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields what waits for a key, so many seconds at most: "" for none. Then the terminal is as before."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    asked = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return (os.read(descriptor, 1).decode(errors="replace") or "\x04") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, asked)

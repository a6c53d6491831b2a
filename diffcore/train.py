"""deepspeed diffcore/train.py --config configs/demo.yaml [--engine.zero 2 ...]

Also ``python diffcore/train.py --config ...`` for one process. The same command resumes.
Exit codes: ``exits.py``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __package__ in (None, ""):
    # Run by path: Python put diffcore/ first, whose names must not shadow installed packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from diffbase import cli, ledger
from diffbase.exits import BAD_INPUT, DONE, FATAL, PREEMPTED, RETRYABLE
from diffcore.configure import parse

if TYPE_CHECKING:
    from diffcore.stopping import StopFlag
    from diffcore.training import Training

HOLD_BACK = 6.0
"""Seconds that a rank with trouble waits before it speaks, so that the one that knows best speaks first."""


def main() -> int:
    """Train as the command line says; returns the exit code."""
    config = parse(prog="train.py")

    from diffcore import engine
    from diffcore.stopping import StopFlag
    from diffcore.training import Training
    from diffcore.trouble import explain
    from diffcore.watchdog import Watchdog

    stop, training, world = StopFlag(), None, None
    watchdog = Watchdog(config.run, _rank(), config.train.steps, config.guards)
    try:
        with watchdog:
            with watchdog.section("rendezvous"):
                world = engine.start(config.engine.threads)
            with Training(config, world, stop, watchdog) as training:
                code = train(training)
            engine.stop()
        return code
    except Exception as error:
        trouble = explain(error, training, config, world)
        if trouble is None:
            raise
        # All ranks find the same mistake, and rank 0 says it; its exit ends the others. A rank that is alone
        # with its trouble speaks up a little later, and one that lost a peer lets the peer speak first.
        speaks_first = _rank() == 0 and trouble.code != RETRYABLE
        if not speaks_first and _ended_meanwhile(stop):
            return trouble.code
        if training is not None:
            with contextlib.suppress(OSError):  # the disk may be the trouble
                ledger.record(config.run, "failed", rank=_rank(), code=trouble.code, why=trouble.line)
        where = "" if trouble.code == BAD_INPUT else f"rank {_rank()}: "
        print(f"error: {where}{trouble.line}", file=sys.stderr)
        return trouble.code


def train(training: Training) -> int:
    """One run, from its newest complete checkpoint or from nothing, to ``train.steps``."""
    t, config = training, training.config
    while t.step < config.train.steps:
        if t.asked_to_stop():
            if t.log():  # an exploded loss is not to be gone on from
                t.save()
            return PREEMPTED
        t.learn()
        last = t.step == config.train.steps
        saving = t.step % config.train.checkpoint_every == 0 or last
        validating = saving or bool(config.validation.every and t.step % config.validation.every == 0)
        if validating:
            t.validate()
        if (validating or t.step % config.train.log_every == 0) and not t.log():
            t.roll_back()
            continue
        if t.step % config.sampling.every == 0 or last:
            t.draw()
        if saving:
            t.save()
    t.report_memory()
    return DONE


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _ended_meanwhile(stop: StopFlag) -> bool:
    """Wait for another rank to say what happened; whether this one is asked to go then."""
    until, before = time.monotonic() + HOLD_BACK, stop.signal
    while time.monotonic() < until and stop.signal == before:
        time.sleep(0.1)
    return stop.signal != before


def script() -> NoReturn:
    """``main`` as a process: its exit code is the run's and nobody else's.

    gloo's threads outlive destroy_process_group, and now and then abort a process whose run has ended well
    while the interpreter shuts down. Everything is written and closed by then, so the process just leaves.
    """
    code: int | str | None = FATAL
    try:
        code = cli.run(main, hold_back=HOLD_BACK if _rank() else 0)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    script()

"""One rank's process: it joins the others, trains, and says in one line what went wrong."""

from __future__ import annotations

import contextlib
import time

from diffbase import ledger
from diffbase.exits import BAD_INPUT, HOLD_BACK, RETRYABLE
from diffbase.line import say
from diffbase.machine import launcher
from diffbase.machine.launcher import own_rank
from diffcore.config.tree import Config
from diffcore.engine import process_group
from diffcore.engine.rendezvous import TakenPortError
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.inputs import opened
from diffcore.training.judging import Judging
from diffcore.training.loop import train
from diffcore.training.run import Training
from diffcore.training.trouble import explain


def train_here(config: Config, judge: Judging) -> int:
    """Train as one rank of the run, as the launcher's environment says; returns the exit code."""
    rank, stop, training, world = own_rank(), StopFlag(), None, None
    watchdog = Watchdog(config.run, rank, config.train.steps, config.guards, stop.ask)
    try:
        with watchdog:
            with watchdog.section("inputs"):
                inputs = opened(config, launcher.place().size)
            with watchdog.section("rendezvous"):
                group, shown = config.trust == "group", config.run_access == "group"
                world = process_group.start(config.run, config.engine.threads, group=group, shown=shown)
            with Training(config, world, stop, watchdog, judge, inputs) as training:
                code = train(training)
            process_group.stop()
        return code
    except Exception as error:
        trouble = explain(error, training, config, world)
        if trouble is None:
            raise
        # All ranks find the same mistake, and rank 0 says it; its exit ends the others. A rank that is alone
        # with its trouble speaks up a little later, and one that lost a peer lets the peer speak first.
        speaks_first = rank == 0 and (trouble.code != RETRYABLE or isinstance(error, TakenPortError))
        if not speaks_first and _ended_meanwhile(stop):
            return trouble.code
        if training is not None:
            with contextlib.suppress(OSError):  # the disk may be the trouble
                ledger.record(config.run, "failed", rank=rank, code=trouble.code, why=trouble.line)
        where = "" if trouble.code == BAD_INPUT else f"rank {rank}: "
        say(f"error: {where}{trouble.line}", error=True)
        return trouble.code


def _ended_meanwhile(stop: StopFlag) -> bool:
    """Wait for another rank to say what happened; whether this one is asked to go then."""
    until, before = time.monotonic() + HOLD_BACK, stop.signal
    while time.monotonic() < until and stop.signal == before:
        time.sleep(0.1)
    return stop.signal != before

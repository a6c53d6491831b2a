"""What the experiments share: stand-in data, its judge, and training runs as processes of their own.

Everything is made once and found again: the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from diffbase.cli import InputError
from diffbase.exits import PREEMPTED
from diffbase.files import REPOSITORY, plain_only, write_atomic
from diffbase.shipped import workplace
from diffcore.config.tree import Config
from diffcore.engine import process_group
from diffcore.evaluation.quality.probe import probe_of
from diffcore.training import loop
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.run import Training
from shards.packing.workers import semaphores

AVATARS = 10_000
HELD_OUT = 0.1
SHOWN = {
    16: ("chin_length", "face_color", "hair_color", "glasses_color"),
    32: ("chin_length", "face_color", "hair_color", "glasses_color", "face_shape", "facial_hair", "hair"),
}
"""The headline at sizes that do not show the data set's own."""
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
"""What an experiment does not take from a launcher around it."""


def run(*command: str | Path, threads: int = 1, log: Path | None = None) -> None:
    """Run a module of the toolkit (``-m``); InputError with the end of its output if it fails."""
    # Several at once: each keeps to its own thread.
    env = {name: value for name, value in os.environ.items() if name not in LAUNCHER}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=workplace(),
        env=env | {"PYTHONPATH": path} | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(log, finished.stdout.encode())
    if finished.returncode:
        raise InputError(f"{' '.join(map(str, command))} failed: ... {finished.stdout[-1500:]}")


def prepare(
    data: Path,
    size: int,
    say: Callable[[str], None],
    avatars: Path | None = None,
    count: int = AVATARS,
    judge: Sequence[str] = ("--threads", "1"),
    headline: Sequence[str] = (),
) -> None:
    """``count`` packed stand-in avatars of ``size`` pixels in ``data``, with their judge.

    ``avatars``: where they are drawn (default: data/avatars); ``judge``: flags of train_judge; ``headline``:
    the attributes that it counts (default: what ``size`` shows).
    """
    avatars = avatars or workplace() / "data" / "avatars"
    if not (data / "index.json").exists():
        say(f"drawing {count} avatars and packing them at {size} x {size}: {data}")
        run("-m", "shards.render", "--out", avatars, "--count", str(count))
        run("-m", "shards.pack", avatars, "--out", data, "--size", str(size), "--val", str(HELD_OUT))
    if not (data / "judge" / "judge.json").exists():
        say(f"training the judge of {data}")
        counted = headline or SHOWN.get(size, ())
        over = ("--headline", ",".join(counted)) if counted else ()
        run("-m", "diffcore.evaluation.train_judge", data, *judge, *over)


def train(config: Config, log: Path) -> None:
    """Train a run in this process, as one rank, to its end; what it says goes to ``log``.

    The same as ``diffcore/train.py``, without half as long again for importing and starting everything anew.
    KeyboardInterrupt where a signal asked it to stop: it has saved, and goes on from there.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    stop = StopFlag()
    with open(log, "a", opener=plain_only) as file, contextlib.redirect_stdout(file):
        try:
            with (
                Watchdog(config.run, 0, config.train.steps, config.guards) as watchdog,
                Training(
                    config, process_group.start(config.run, config.engine.threads), stop, watchdog, probe_of
                ) as training,
            ):
                code = loop.train(training)
        finally:
            stop.restore()
    if code == PREEMPTED:
        raise KeyboardInterrupt


def at_once(work: Sequence[Callable[[], None]], jobs: int) -> None:
    """All of ``work``, ``jobs`` at a time, in processes that are kept for the next one; picklable calls.

    The first error is raised when what is under way has ended. Interrupted, no further one is begun.
    """
    with semaphores():
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _alone)
    with pool:
        running: set[Future[None]] = set()
        for one in work:
            if len(running) == jobs:  # a call that was handed over could not be called back
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for ended in done:
                    ended.result()
            running.add(pool.submit(_call, one))
        for ended in running:
            ended.result()


def _call(one: Callable[[], None]) -> None:
    try:
        one()
    except KeyboardInterrupt:
        # All is saved. A worker that lived on would wait for work that an interrupted pool never sends.
        os._exit(130)


def _alone() -> None:
    """A worker is no rank of a launcher around it."""
    for name in LAUNCHER:
        os.environ.pop(name, None)

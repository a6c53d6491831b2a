"""What the experiments share: stand-in data, its judge, and training runs as processes of their own.

Everything is made once and found again: the same command goes on where it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from diffcore.config import REPOSITORY
from shards.cli import InputError

CONFIGS = REPOSITORY / "configs" / "experiments"
AVATARS = 10_000
HELD_OUT = 0.1


def run(*command: str | Path, threads: int = 1, log: Path | None = None) -> None:
    """Run a command of this repository; InputError with the end of its output if it fails."""
    # Several at once: each keeps to its own thread and takes no rank from a launcher around it.
    drop = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in drop}
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env=env | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(finished.stdout)
    if finished.returncode:
        raise InputError(f"{' '.join(map(str, command))} failed: ... {finished.stdout[-1500:]}")


def prepare(
    data: Path,
    size: int,
    say: Callable[[str], None],
    avatars: Path = REPOSITORY / "data" / "avatars",
    count: int = AVATARS,
    judge: Sequence[str] = ("--threads", "1"),
) -> None:
    """``count`` packed stand-in avatars of ``size`` pixels in ``data``, with their judge.

    ``judge``: flags of train_judge.
    """
    if not (data / "index.json").exists():
        say(f"drawing {count} avatars and packing them at {size} x {size}: {data}")
        run("-m", "shards.render", "--out", avatars, "--count", str(count))
        run("-m", "shards.pack", avatars, "--out", data, "--size", str(size), "--val", str(HELD_OUT))
    if not (data / "judge" / "judge.json").exists():
        say(f"training the judge of {data}")
        run("-m", "diffcore.evaluation.train_judge", data, *judge)


def at_once(work: Sequence[Callable[[], None]], jobs: int) -> None:
    """All of ``work``, ``jobs`` at a time; the first error is raised when what is under way has ended."""
    with ThreadPoolExecutor(jobs) as pool:
        pending = [pool.submit(one) for one in work]
        try:
            for one in pending:
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

"""python -m launch.supervise.start FOLDER: what a job runs once on every node: submitit's entry.

submitit unpickles what the submission left in FOLDER, and a pickle is code: it has to be this user's own
file, in a folder that nobody else can change, whatever happened to it while the job was queued.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from pathlib import Path

from submitit.core.job_environment import JobEnvironment
from submitit.core.submission import process_job

from diffbase import cli, trust
from launch.job.folder import log_of
from launch.supervise.child import open_log
from launch.supervise.environment import layout

PICKLE_SECONDS = 60.0
"""A job may start before its submission has moved the pickle into place; submitit waits as long."""


def main() -> None:
    """Check the folder and the pickle, and run it. InputError if somebody else could have changed them."""
    parser = cli.Parser(prog="python -m launch.supervise.start")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group", action="store_true", help="the group's members are trusted (trust: group)")
    parser.add_argument("--ranks", type=cli.between(1, 10**6), default=1, help="ranks of a node")
    flags = parser.parse_args()
    check(flags)
    speak_in_first_ranks_log(flags)
    process_job(flags.folder)


def speak_in_first_ranks_log(flags: argparse.Namespace) -> None:
    """Have this process's output go where that of the node's first rank goes; not if it cannot be opened."""
    where = layout(os.environ, flags.ranks)
    with contextlib.suppress(OSError):
        log = log_of(flags.folder, where.job, where.rank)
        descriptor = open_log(log)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        os.close(descriptor)


def check(flags: argparse.Namespace) -> None:
    """InputError if the folder, or the pickle in it, is not this user's alone."""
    if not flags.folder.is_dir():
        raise cli.InputError(f"{flags.folder}: no such folder on this node")
    trust.check_folder(flags.folder, group=flags.group, code=True)
    os.environ["SUBMITIT_FOLDER"] = str(flags.folder)
    pickle = JobEnvironment().paths.submitted_pickle
    until = time.monotonic() + PICKLE_SECONDS
    while not os.path.lexists(pickle):
        if time.monotonic() > until:
            raise cli.InputError(f"{pickle}: not there after {PICKLE_SECONDS:.0f} s")
        time.sleep(0.2)
    trust.check_file(pickle)


if __name__ == "__main__":
    cli.run(main)

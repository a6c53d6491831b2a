"""Check a packed folder against its index, sample by sample: ``python -m shards.verify DIR [--jobs J]``.

Prints one line for each thing that is wrong, with its shard and sample, in an order that does not depend on
``--jobs``. Exit code 0 for a sound folder, 1 for bad data, 2 for bad usage (no such folder, or one that was
never packed).
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffbase.cli import InputError, Parser, run
from shards.packing.workers import worker_count


def main(argv: list[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = Parser(
        prog="python -m shards.verify",
        description="Check counts, sizes, hashes, images and labels of a packed folder. "
        "Exit code 1: bad data, 2: bad usage.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder made by shards.pack")
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    args = parser.parse_args(argv)
    folder, jobs = args.folder, worker_count(args.jobs)

    from shards.packing.verifier import problems
    from shards.table import FILE, Index

    if not (folder / FILE).is_file():
        Index.load(folder)  # tells what is missing
    bad = 0
    try:
        for problem in problems(folder, jobs):
            print(problem)
            bad += 1
    except InputError as error:  # the index is there, and damaged
        print(error)
        bad += 1
    if bad:
        print(f"{folder}: {bad} problem{'s' * (bad > 1)}", file=sys.stderr)
        sys.exit(1)
    counts = ", ".join(f"{len(split)} {name}" for name, split in Index.load(folder).splits.items())
    print(f"{folder}: sound ({counts} samples)")


if __name__ == "__main__":
    run(main)

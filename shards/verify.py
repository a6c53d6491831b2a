"""Check a packed folder against its index, sample by sample: ``python -m shards.verify DIR [--jobs J]``.

Prints one line for each thing that is wrong, with its shard and sample, in an order that does not depend on
``--jobs``. Exit code 0 for a sound folder, 1 for bad data, 2 for bad usage (no such folder, or one that was
never packed).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError, Parser, add_answer, answer, one_line, run
from diffbase.line import printable
from shards.packing.workers import worker_count

PROG = "python -m shards.verify"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    parser = Parser(
        prog=prog,
        description="Check counts, sizes, hashes, images and labels of a packed folder. "
        "Exit code 1: bad data, 2: bad usage.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="a folder made by shards.pack or shards.index"
    )
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)
    folder, jobs = args.folder, worker_count(args.jobs)

    from diffbase.system_error import is_there
    from shards.foreign import checker
    from shards.header import FILE
    from shards.packing import verifier
    from shards.packing.untrained import untrained
    from shards.table import Index

    if not is_there(folder / FILE):
        Index.load(folder)  # tells what is missing
    bad: list[str] = []
    counts: dict[str, int] = {}
    warnings: list[str] = []
    with answer(args) as give:
        try:
            foreign = Index.load(folder).header.is_foreign
            for problem in (checker if foreign else verifier).problems(folder, jobs):
                print(printable(problem))
                bad.append(problem)
            if not bad:
                counts = {name: len(split) for name, split in Index.load(folder).splits.items()}
                warnings = untrained(folder)
        except InputError as error:  # the index is there, and damaged
            bad.append(one_line(str(error)))
            print(bad[-1])
        if bad:
            print(f"{folder}: {len(bad)} problem{'s' * (len(bad) > 1)}", file=sys.stderr)
        else:
            samples = ", ".join(f"{count} {name}" for name, count in counts.items())
            for line in warnings:
                print(f"{folder}: {line}")
            print(f"{folder}: sound ({samples} samples)")
        give({"folder": folder, "sound": not bad, "problems": bad, "warnings": warnings, "samples": counts})
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    run(main)

"""Make one packed folder of the parts that several machines packed (``shards.pack --part I/N``).

python -m shards.merge PARTS... --out DIR
python -m shards.merge PACK --out DIR    # a large one, packed before its index had version 4
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import Parser, add_answer, answer, progress_bar, run
from diffbase.line import say
from shards.packing.bad import left_out

PROG = "python -m shards.merge"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    parser = Parser(
        prog=prog,
        description="Make one packed folder of all parts of a pack, the same as one pack would have made. "
        "Shards are linked where the file system can, else copied. One whole pack is indexed anew.",
    )
    parser.add_argument("parts", nargs="+", type=Path, metavar="PARTS", help="the folders of all parts")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the whole")
    add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)

    from shards.packing.parts.merge import merge  # numpy: --help does without

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("merging") as report:
            done = merge(args.parts, args.out, report)
        for line in done.warnings:
            say(f"{args.out}: {line}")
        counts = ", ".join(f"{count} {name}" for name, count in done.counts.items())
        took = f"in {time.monotonic() - start:.1f} s"
        say(f"{args.out}: {counts} samples in {done.shards} shards{left_out(done.skipped)}, {took}")
        give({"out": args.out, "samples": done.counts, "shards": done.shards, "skipped": done.skipped})


if __name__ == "__main__":
    run(main)

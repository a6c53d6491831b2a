"""Pack a source of labelled images into WebDataset tar shards; ``shards.packing.packer`` says how.

python -m shards.pack SOURCE --out DIR [--size 64] [--image png] [--shard-size 1000] [--val 0.02]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import Parser, add_answer, answer, progress_bar, run
from shards.codec import ENCODINGS
from shards.packing.packer import describe, pack
from shards.packing.plan import Settings
from shards.packing.workers import worker_count
from shards.sources import SOURCES, Source

PROG = "python -m shards.pack"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    defaults = Settings()
    parser = Parser(
        prog=prog,
        description="Pack labelled images into WebDataset tar shards with an index. The same command, run "
        "again after a kill, goes on where it was.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, or a .tgz or .tar of it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument("--kind", help=f"kind of source: {', '.join(SOURCES)} (default: found out)")
    parser.add_argument(
        "--size", type=int, default=defaults.size, help="edge of the packed images, pixels (%(default)s)"
    )
    crop = "edge of the centre crop, pixels (default: 360 for cartoonset, else the shorter side)"
    parser.add_argument("--crop", type=int, help=crop)
    parser.add_argument(
        "--image", default=defaults.image, help=f"packed as: {', '.join(ENCODINGS)} (%(default)s)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=defaults.shard_size, help="samples per shard (%(default)s)"
    )
    parser.add_argument(
        "--val", type=float, default=defaults.val, help="share of validation samples (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)
    jobs = worker_count(args.jobs)
    settings = Settings(
        size=args.size, crop=args.crop, image=args.image, shard_size=args.shard_size, val=args.val
    )

    def found(source: Source) -> None:
        print(f"{args.source}: {describe(source)}", flush=True)

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("packing") as report:
            summary = pack(
                args.source, args.out, settings, kind=args.kind, jobs=jobs, report=report, found=found
            )
        seconds = time.monotonic() - start
        counts = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
        done = f"packed {summary.written} in {seconds:.1f} s ({summary.written / seconds:.0f} images/s)"
        again = f"{args.out}: complete already ({counts} samples); nothing to do"
        print(again if summary.complete_before else f"{args.out}: {counts} samples; {done}")
        give({"out": args.out, "samples": summary.counts, "packed": summary.written, "seconds": seconds})


if __name__ == "__main__":
    run(main)

"""Pack a source of labelled images into WebDataset tar shards; ``shards.packing.packer`` says how.

python -m shards.pack SOURCE --out DIR_OR_URL [--size 64] [--image png] [--shard-size 1000] [--val 0.02]
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from diffbase.cli import Parser, answer, progress_bar, run
from diffbase.redaction import shown
from shards.packing import flags
from shards.packing.outside import pack_to
from shards.packing.packer import describe
from shards.packing.workers import worker_count
from shards.sources import Source

PROG = "python -m shards.pack"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    return flags.parser(prog)


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)
    jobs = worker_count(args.jobs)
    out = shown(args.out)
    settings, asked = flags.settings_of(args), flags.asked_of(args)

    def found(source: Source) -> None:
        for line in (describe(source), *source.notes):
            print(f"{args.source}: {line}", flush=True)

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("packing") as report:
            summary = pack_to(
                args.source,
                args.out,
                settings,
                kind=args.kind,
                asked=asked,
                jobs=jobs,
                report=report,
                found=found,
                tell=print,
            )
        seconds = time.monotonic() - start
        counts = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
        done = f"packed {summary.written} in {seconds:.1f} s ({summary.written / seconds:.0f} images/s)"
        again = f"{out}: complete already ({counts} samples); nothing to do"
        print(again if summary.complete_before else f"{out}: {counts} samples; {done}")
        give({"out": out, "samples": summary.counts, "packed": summary.written, "seconds": seconds})


if __name__ == "__main__":
    run(main)

"""Pack a source of labelled images into WebDataset tar shards; ``shards.packing.packer`` says how.

python -m shards.pack SOURCE --out DIR [--size 64] [--image png] [--shard-size 1000] [--val 0.02]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import Parser, answer, progress_bar, run
from diffbase.redaction import shown
from shards.packing import flags
from shards.packing.packer import describe, pack
from shards.packing.untrained import untrained
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
    source = flags.source_of(args)
    name = source if isinstance(source, Path) else shown(source[0])
    settings, asked = flags.settings_of(args), flags.asked_of(args)

    told: list[str] = []
    adapters: list[Source] = []

    def tell(*lines: str) -> None:
        for line in lines:
            if line not in told:
                print(f"{name}: {line}", flush=True)
            told.append(line)

    def found(adapter: Source) -> None:
        adapters.append(adapter)
        tell(describe(adapter), *adapter.notes)

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("packing") as report:
            summary = pack(
                source,
                args.out,
                settings,
                kind=args.kind,
                asked=asked,
                jobs=jobs,
                report=report,
                found=found,
            )
        tell(*adapters[0].notes)  # of an archive some are known at its end only
        seconds = time.monotonic() - start
        for line in (warnings := untrained(args.out)):
            print(f"{args.out}: {line}")
        counts = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
        done = f"packed {summary.written} in {seconds:.1f} s ({summary.written / seconds:.0f} images/s)"
        again = f"{args.out}: complete already ({counts} samples); nothing to do"
        print(again if summary.complete_before else f"{args.out}: {counts} samples; {done}")
        figures = {"samples": summary.counts, "packed": summary.written, "warnings": warnings}
        give({"out": args.out, **figures, "seconds": seconds})


if __name__ == "__main__":
    run(main)

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
from shards.packing.bad import left_out
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
    settings, asked, on_bad = flags.settings_of(args), flags.asked_of(args), flags.on_bad_of(args)

    def found(adapter: Source) -> None:
        for line in (describe(adapter), *adapter.notes):
            print(f"{name}: {line}", flush=True)

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("packing") as report:
            summary = pack(
                source,
                args.out,
                settings,
                kind=args.kind,
                asked=asked,
                on_bad=on_bad,
                jobs=jobs,
                report=report,
                found=found,
            )
        seconds = time.monotonic() - start
        for line in (warnings := untrained(args.out)):
            print(f"{args.out}: {line}")
        counts = ", ".join(f"{count} {name}" for name, count in summary.counts.items()) + " samples"
        counts += left_out(summary.skipped)
        done = f"packed {summary.written} in {seconds:.1f} s ({summary.written / seconds:.0f} images/s)"
        again = f"{args.out}: complete already ({counts}); nothing to do"
        print(again if summary.complete_before else f"{args.out}: {counts}; {done}")
        figures = {"samples": summary.counts, "packed": summary.written, "skipped": summary.skipped}
        figures["warnings"] = warnings
        give({"out": args.out, **figures, "seconds": seconds})


if __name__ == "__main__":
    run(main)

"""Pack a source of labelled images into WebDataset tar shards; ``shards.packing.packer`` says how.

python -m shards.pack SOURCE --out DIR [--size 64] [--image png] [--shard-size 1000] [--val 0.02]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import Parser, answer, progress_bar, run
from diffbase.line import say
from diffbase.redaction import shown
from shards.packing import flags
from shards.packing.bad import left_out
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
    jobs, out, source = worker_count(args.jobs), shown(args.out), flags.source_of(args)
    name = source if isinstance(source, Path) else shown(source[0])
    from shards.packing.outside import pack_to

    told: list[str] = []
    adapters: list[Source] = []

    def tell(*lines: str) -> None:
        for line in lines:
            if line not in told:
                say(f"{name}: {line}")
            told.append(line)

    def found(adapter: Source) -> None:
        adapters.append(adapter)
        tell(describe(adapter), *adapter.notes)

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("packing") as report:
            summary = pack_to(
                source,
                args.out,
                flags.settings_of(args),
                kind=args.kind,
                asked=flags.asked_of(args),
                on_bad=flags.on_bad_of(args),
                jobs=jobs,
                part=flags.part_of(args),
                report=report,
                found=found,
                tell=say,
            )
        tell(*adapters[0].notes)  # of an archive some are known at its end only
        seconds = time.monotonic() - start
        for line in summary.warnings:
            say(f"{out}: {line}")
        counts = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
        counts += f" samples{left_out(summary.skipped)}"
        done = f"packed {summary.written} in {seconds:.1f} s ({summary.written / seconds:.0f} images/s)"
        again = f"{out}: complete already ({counts}); nothing to do"
        say(again if summary.complete_before else f"{out}: {counts}; {done}")
        figures = {"samples": summary.counts, "packed": summary.written, "skipped": summary.skipped}
        give({"out": out, **figures, "warnings": summary.warnings, "seconds": seconds})


if __name__ == "__main__":
    run(main)

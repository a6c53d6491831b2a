"""Index the WebDataset tars of others, so that runs train on them where they lie.

python -m shards.index TARS... --out DIR [--size 64] [--columns class,json.age] [--val 0.02]
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from diffbase.cli import Parser, answer, progress_bar, run
from diffbase.line import say
from shards.foreign import flags
from shards.packing.bad import left_out
from shards.packing.flags import on_bad_of
from shards.packing.workers import worker_count

PROG = "python -m shards.index"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    return flags.parser(prog)


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = flags.parser(prog).parse_args(argv)
    settings, asked, jobs = flags.settings_of(args), flags.asked_of(args), worker_count(args.jobs)

    from shards.foreign.indexer import index  # numpy and Pillow: --help does without
    from shards.packing.untrained import untrained

    start = time.monotonic()
    with answer(args, survive=True) as give:
        with progress_bar("indexing") as report:
            done = index(
                args.tars,
                args.out,
                settings,
                asked,
                check=args.check,
                on_bad=on_bad_of(args),
                jobs=jobs,
                report=report,
            )
        for line in (*done.notes, *untrained(args.out)):
            say(line)
        counts = ", ".join(f"{count} {name}" for name, count in done.counts.items())
        took = f"in {time.monotonic() - start:.1f} s"
        if done.complete_before:
            took = "indexed already" + args.check * "; shards.verify decodes every image"
        tars = f"{done.tars} tar{'s' * (done.tars > 1)}"
        say(f"{args.out}: {counts} samples of {tars}{left_out(done.skipped)}, {took}")
        give({"out": args.out, "samples": done.counts, "tars": done.tars, "skipped": done.skipped})


if __name__ == "__main__":
    run(main)

"""Check a packed folder, or one behind a URL, against its index: ``python -m shards.verify DIR [--jobs J]``.

``--repair SOURCE...`` first makes again what is damaged or missing (``shards.checking.repair``).

Prints one line for each thing that is wrong, with its shard and sample, in an order that does not depend on
``--jobs``. Exit code 0 for a sound folder, 1 for bad data, 2 for bad usage (no such folder, or one that was
never packed).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

from diffbase import cli
from diffbase.cli import Parser, add_answer, answer, run
from diffbase.line import printable, say
from diffbase.redaction import shown
from shards.packing.bad import left_out
from shards.packing.flags import add_asked, asked_of, source_of
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
        "folder", type=cli.place, metavar="DIR", help="a folder of shards.pack or shards.index, or its URL"
    )
    made_again = "make damaged shards and tables again from the source or sources, to the same bytes"
    parser.add_argument("--repair", dest="source", nargs="+", metavar="SOURCE", help=made_again)
    add_asked(parser)
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    args = parser(prog).parse_args(argv)
    jobs, place, asked = worker_count(args.jobs), shown(args.folder), asked_of(args)

    from shards.checking.verdict import check

    with answer(args) as give:
        found = check(
            args.folder,
            jobs,
            source=source_of(args) if args.source else None,
            asked=asked,
            tell=lambda line: print(printable(line), flush=True),
        )
        bad = found.problems
        if bad:
            say(f"{place}: {len(bad)} problem{'s' * (len(bad) > 1)}", error=True)
        else:
            for line in found.warnings:
                say(f"{place}: {line}")
            samples = ", ".join(f"{count} {name}" for name, count in found.samples.items())
            say(f"{place}: sound ({samples} samples{left_out(found.skipped)})")
        give({"folder": place, "sound": not bad, **asdict(found)})
    if bad:
        sys.exit(1)


if __name__ == "__main__":
    run(main)

"""python -m diffcore.checkpoints RUN [--keep STEP ...] [--release STEP ...]

The checkpoints of a run, a line each: step, size, what it was written by, and whether its files are as they
were written. ``--keep`` marks one that must never be removed, ``--release`` takes the mark away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffbase import cli
from diffbase.line import printable

PROG = "python -m diffcore.checkpoints"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description="The checkpoints of a run.")
    parser.add_argument("run", type=Path, help=cli.RUN_HELP)
    for name, what in {"keep": "never remove this one", "release": "let it be removed again"}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[], metavar="STEP", help=what)
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)

    from diffcore.runs import marks

    marks.mark(a.run, keep=a.keep, release=a.release)
    with cli.answer(a) as give:
        found = marks.listed(a.run)
        for one in found:
            print(printable(one.line()))
        give([asdict(one) for one in found])


if __name__ == "__main__":
    cli.run(main)

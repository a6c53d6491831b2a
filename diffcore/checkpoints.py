"""python -m diffcore.checkpoints RUN [--keep STEP ...] [--release STEP ...]

The checkpoints of a run, a line each: step, size, what it was written by, and whether its files are as they
were written. ``--keep`` marks one that must never be removed, ``--release`` takes the mark away.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = cli.Parser(prog="python -m diffcore.checkpoints", description="The checkpoints of a run.")
    parser.add_argument("run", type=Path, help="run folder of diffcore/train.py")
    for name, what in {"keep": "never remove this one", "release": "let it be removed again"}.items():
        parser.add_argument(f"--{name}", type=int, nargs="+", default=[], metavar="STEP", help=what)
    a = parser.parse_args(argv)

    from diffcore.runs import marks

    marks.mark(a.run, keep=a.keep, release=a.release)
    for line in marks.lines(a.run):
        print(line)


if __name__ == "__main__":
    cli.run(main)

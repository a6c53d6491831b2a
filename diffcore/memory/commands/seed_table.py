"""seed-table: writes docs/seed-memory.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.files import check_writable
from diffbase.line import say

PROG = "python -m diffcore.memory seed-table"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description="Write docs/seed-memory.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/seed-memory.md"))
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Write docs/seed-memory.md, or what ``--out`` names, and print its path."""
    given = parser(prog).parse_args(argv)
    check_writable(given.out.parent)

    from diffcore.memory.seed_table import write

    say(write(given.out))

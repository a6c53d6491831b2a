"""compare: two reports side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli

PROG = "python -m diffcore.memory compare"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description="Two reports side by side.")
    parser.add_argument("a", type=Path, help="run folder or anatomy.json")
    parser.add_argument("b", type=Path, help="the other one")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print two reports side by side."""
    given = parser(prog).parse_args(argv)

    from diffcore.memory import report, tables

    with cli.answer(given) as give:
        a, b = report.load(given.a), report.load(given.b)
        tables.print_comparison(a, b, str(given.a), str(given.b))
        give(tables.compared(a, b))

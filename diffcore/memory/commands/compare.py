"""compare: what is different between two reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable, write_atomic
from diffbase.line import say

PROG = "python -m diffcore.memory compare"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description="What is different between two reports, the largest first.")
    parser.add_argument("a", type=Path, help="run folder or anatomy.json")
    parser.add_argument("b", type=Path, help="the other one")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="write it as a page too")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print what differs: the settings, then bytes in the order of size; ``--out`` writes the page."""
    given = parser(prog).parse_args(argv)
    if given.out:
        check_writable(given.out.parent)
        if given.out.suffix != ".html" or given.out.name == "report.html":
            raise InputError(f"--out {given.out}: a page, FILE.html, and not a report's own")

    from diffcore.memory import anatomy, comparing, tables
    from diffcore.memory.page.comparison import comparison

    with cli.answer(given) as give:
        a, b = anatomy.load(given.a), anatomy.load(given.b)
        tables.print_comparison(a, b, str(given.a), str(given.b))
        if given.out:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(given.out, comparison(a, b, str(given.a), str(given.b)).encode())
            say(f"page: {given.out}")
        give(comparing.compared(a, b))

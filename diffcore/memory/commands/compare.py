"""compare: two reports side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli


def compare(argv: Sequence[str]) -> None:
    """Print two reports side by side."""
    parser = cli.Parser(prog="python -m diffcore.memory compare", description="Two reports side by side.")
    parser.add_argument("a", type=Path, help="run folder or anatomy.json")
    parser.add_argument("b", type=Path, help="the other one")
    given = parser.parse_args(argv)

    from diffcore.memory import report, tables

    tables.print_comparison(report.load(given.a), report.load(given.b), str(given.a), str(given.b))

"""seed-table: writes docs/seed-memory.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli


def seed_table(argv: Sequence[str]) -> None:
    """Write docs/seed-memory.md, or what ``--out`` names, and print its path."""
    parser = cli.Parser(prog="python -m diffcore.memory seed-table", description="Write docs/seed-memory.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/seed-memory.md"))
    given = parser.parse_args(argv)

    from diffcore.memory.seed_table import write

    print(write(given.out))

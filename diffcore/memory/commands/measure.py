"""measure: a few real steps on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.files import check_writable
from diffcore.memory.commands import flags
from diffcore.memory.commands.flags import settings

PROG = "python -m diffcore.memory measure"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags; others override the config."""
    words = "Three real steps on random data; under the deepspeed launcher, every rank."
    parser = flags.parser(prog, words, planned=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for anatomy.json and report.html")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Make three real steps on random data, and write the report of where the memory was."""
    given, config = settings(parser(prog), argv, planned=False)
    check_writable(given.out)

    from diffcore.memory.measure.rehearse import rehearse

    with cli.answer(given, survive=True) as give:
        if (anatomy := rehearse(config, given.out)) is not None:
            give(anatomy)

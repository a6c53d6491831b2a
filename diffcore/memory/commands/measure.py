"""measure: a few real steps on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diffcore.memory.commands.flags import parser, settings


def measure(argv: Sequence[str]) -> None:
    """Make three real steps on random data, and write the report of where the memory was."""
    flags = parser("measure", "Three real steps on random data; under the deepspeed launcher, every rank.")
    flags.add_argument("--out", type=Path, required=True, help="folder for anatomy.json and report.html")
    flags.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    given, config = settings(flags, argv, planned=False)

    from diffcore.memory.measure.rehearse import rehearse

    rehearse(config, given.out)

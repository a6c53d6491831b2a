"""measure: a few real steps on this machine; or what its GPU takes beside torch, as a calibration."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.files import check_writable
from diffbase.line import say
from diffcore.memory.commands import flags
from diffcore.memory.commands.flags import settings

PROG = "python -m diffcore.memory measure"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags; others override the config."""
    words = "Three real steps on random data; under the deepspeed launcher, every rank."
    parser = flags.parser(prog, words, planned=False)
    parser.add_argument("--out", type=Path, required=True, help="folder for anatomy.json and report.html")
    calibrate = "instead: measure what this GPU takes beside torch, into one JSON (--out FILE); no --config"
    parser.add_argument("--calibrate", action="store_true", help=calibrate)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def calibrating(prog: str = PROG) -> cli.Parser:
    """The flags beside ``--calibrate``."""
    parser = cli.Parser(prog=prog, description="What this GPU takes beside torch, as one JSON.")
    parser.add_argument("--calibrate", action="store_true", required=True)
    parser.add_argument("--out", type=Path, metavar="FILE", help="by default NAME-CUDA.json here")
    parser.add_argument("--source", default="", metavar="WORDS", help="who measured it, kept in the file")
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Make three real steps on random data, and write the report of where the memory was."""
    words = sys.argv[1:] if argv is None else argv
    if "--calibrate" in words and not {"-h", "--help"} & set(words):
        _calibrate(calibrating(prog).parse_args(words))
        return
    given, config = settings(parser(prog), argv, planned=False)
    check_writable(given.out)

    from diffcore.memory.measure.rehearse import rehearse

    with cli.answer(given, survive=True) as give:
        if (anatomy := rehearse(config, given.out)) is not None:
            give(anatomy)


def _calibrate(given: argparse.Namespace) -> None:
    from diffcore.memory.measure.calibrate import calibrate

    if given.out:
        check_writable(given.out.parent)
    with cli.answer(given) as give:
        path, tree = calibrate(given.out, given.source)
        of = ", ".join(f"{name} {tree[name] / 2**20:,.0f} MiB" for name in ("context", "workspaces", "nccl"))
        say(f"{tree['gpu']}, CUDA {tree['cuda']}: {of} ({tree['nccl_ranks']} ranks)")
        say(f"calibration: {path}; --calibration {path} plans with it (docs/fit.md: how to contribute it)")
        give(tree)

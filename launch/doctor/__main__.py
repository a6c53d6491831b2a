"""python -m launch.doctor [--cluster NAME] [--data SHARDS] [--run FOLDER]: is this machine fit to train on?

A line for each check; what it prints holds nothing private. Exit code 0: nothing is bad, 1: something is,
2: bad usage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from launch.doctor.checks import checks
from launch.doctor.examine import examine
from launch.doctor.finding import worst
from launch.doctor.redaction import Redaction
from launch.doctor.report import as_text, as_tree, cleaned, show

SECONDS = 15.0


def parser(prog: str = "python -m launch.doctor") -> cli.Parser:
    """The command line."""
    parser = cli.Parser(
        prog=prog,
        description="Is this machine fit to train on? The report holds no names of users and hosts, no homes "
        "and no secrets. Exit code 0: nothing is bad, 1: something is, 2: bad usage.",
    )
    parser.add_argument(
        "--cluster", metavar="NAME", help="check a cluster's profile too, as for launch.submit"
    )
    parser.add_argument("--data", metavar="SHARDS", help="check packed shards too: a folder or a URL")
    where = "where runs will be written (the current folder)"
    parser.add_argument("--run", type=Path, metavar="FOLDER", help=where)
    cli.add_answer(parser)
    parser.add_argument(
        "--patience",
        metavar="SECONDS",
        type=float,
        default=SECONDS,
        help="what a check may take (%(default)g)",
    )
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "python -m launch.doctor") -> None:
    """The command line; see ``--help``. SystemExit with code 1 where something is bad."""
    flags = parser(prog).parse_args(argv)
    if not 0 < flags.patience <= 3600:
        raise cli.InputError(f"--patience {flags.patience:g}: from more than 0 to 3600 seconds")
    run = None if flags.run is None else str(flags.run)
    found = examine(checks(flags.cluster, flags.data, run, flags.patience), flags.patience)
    findings = cleaned(found, Redaction.here((flags.cluster, flags.data, run)))
    with cli.answer(flags) as give:
        show(as_text(findings))
        give(as_tree(findings))
    if worst(findings) == "bad":
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)

"""python -m launch.jobs list|status|logs|cancel|goodput [RUN]: what became of submitted runs.

From the run folder and, where Slurm is at hand, from squeue and sacct, asked of all jobs together. ``RUN``
is the run folder, of a sweep or of one point of it too; without it, the newest submission of this user.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError, Parser
from diffbase.tables import show
from launch.follow.condition import CODE_WORDS, CODES, worst
from launch.follow.run import Run, cancel, newest
from launch.follow.show import see_list, see_status, show_cancelled, show_goodput, show_logs
from launch.follow.watch import watch

PROG = "python -m launch.jobs"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="What became of submitted runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in [
        ("list", "this user's newest runs, a line each"),
        ("status", "state, progress and what went wrong; of several runs a line each"),
        ("logs", "a rank's output; of a sweep every point's, behind its number"),
        ("cancel", "stop the job; what it can save in time is saved"),
        ("goodput", "where the time went: a table, and goodput.svg in the run folder"),
    ]:
        p = commands.add_parser(name, help=what)
        if name != "list":
            many = "*" if name == "status" else "?"
            p.add_argument("run", nargs=many, type=Path, help="run folder (the newest submission)")
        cli.add_answer(p)
        if name in ("list", "status"):
            p.add_argument("--watch", action="store_true", help="look again every 2 s; q leaves")
            p.add_argument("--exit-code", action="store_true", help=f"leave with the state's: {CODE_WORDS}")
        if name == "logs":
            p.add_argument("--rank", type=cli.between(0, 10**6), default=0, help="rank (0)")
            p.add_argument("--follow", action="store_true", help="show what is added, until the job ends")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    flags = parser(prog).parse_args(argv)
    if flags.json and (getattr(flags, "watch", False) or getattr(flags, "follow", False)):
        raise InputError("--json is one answer: without --watch and --follow")
    with cli.answer(flags) as give:
        if flags.command in ("list", "status"):
            given = flags.run or [newest()] if flags.command == "status" else []
            look = partial(see_status, [run.resolve() for run in given]) if given else see_list
            if flags.watch:
                words = watch(look)
            else:
                blocks, tree, words = look()
                show(blocks)
                give(tree)
        else:
            run = Run.read(flags.run.resolve() if flags.run else newest())
            if flags.command == "logs":
                give(show_logs(run, flags.rank, flags.follow, told=flags.json))
            elif flags.command == "cancel":
                cancel(run)
                give(show_cancelled(run))
            else:
                give(show_goodput(run))
    if getattr(flags, "exit_code", False):
        sys.exit(CODES[worst(words)])


if __name__ == "__main__":
    cli.run(main)

"""python -m launch.jobs list|status|logs|cancel|goodput [RUN]: what became of submitted runs.

From the run folder and, where Slurm is at hand, from one squeue and one sacct for all jobs together. ``RUN``
is the run folder; without it, the newest submission of this user.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import Parser
from launch.follow.run import Run, cancel, newest
from launch.follow.show import show_goodput, show_list, show_logs, show_status

PROG = "python -m launch.jobs"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description="What became of submitted runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    cli.add_answer(commands.add_parser("list", help="this user's newest runs"))
    for name, what in [
        ("status", "state, progress and what happened"),
        ("logs", "a rank's output"),
        ("cancel", "stop the job; what it can save in time is saved"),
        ("goodput", "where the time went: a table, and goodput.svg in the run folder"),
    ]:
        p = commands.add_parser(name, help=what)
        p.add_argument("run", nargs="?", type=Path, help="run folder (the newest submission)")
        if name != "logs":  # which is nothing but what others print
            cli.add_answer(p, figures=name != "cancel")
        if name == "logs":
            p.add_argument("--rank", type=cli.between(0, 10**6), default=0, help="rank (0)")
            p.add_argument("--follow", action="store_true", help="show what is added, until the job ends")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    flags = parser(prog).parse_args(argv)
    with cli.answer(flags) as give:
        if flags.command == "list":
            give(show_list())
            return
        run = Run.read(flags.run.resolve() if flags.run else newest())
        if flags.command == "status":
            give(show_status(run))
        elif flags.command == "logs":
            show_logs(run, flags.rank, flags.follow)
        elif flags.command == "cancel":
            cancel(run)
        else:
            give(show_goodput(run))


if __name__ == "__main__":
    cli.run(main)

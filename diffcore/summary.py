"""python -m diffcore.summary RUN

What a run has to show: its numbers in a table, and where the pictures, the memory report and TensorBoard
are. Reads the run folder only.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import printable, say
from diffbase.tables import TextTable
from diffcore.runs.figures import figures, numbers

PROG = "python -m diffcore.summary"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("run", type=Path, help=cli.RUN_HELP)
    cli.add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    flags = parser(prog).parse_args(argv)
    run: Path = flags.run
    if not (run / "metrics.jsonl").exists():
        raise InputError(f"{run}: not a run folder (no metrics.jsonl)")

    found = figures(run)
    with cli.answer(flags) as give:
        give(found)
        _show(run, numbers(found))


def _show(run: Path, words: dict[str, str]) -> None:
    table = TextTable(f"Run {run}", "", "")
    for name, value in words.items():
        table.add_row(name, value)
    table.print()
    grid = run / "samples" / "asked.png"
    grids = [grid] if grid.exists() else sorted((run / "samples").glob("ema-*.png"))
    print(f"sample grid    {printable(str(grids[-1])) if grids else 'none yet'}")
    say(f"memory report  {run / 'memory.txt' if (run / 'memory.txt').exists() else 'none yet'}")
    say(f"tensorboard    {_tensorboard()} --logdir {run / 'tensorboard'}")


def _tensorboard() -> str:
    """The command as this interpreter's environment has it, whether or not that is activated."""
    command = Path(sys.executable).with_name("tensorboard")
    if not command.exists():
        return "tensorboard"
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)


if __name__ == "__main__":
    cli.run(main)

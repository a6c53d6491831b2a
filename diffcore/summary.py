"""python -m diffcore.summary RUN

What a run has to show, in about ten lines: its figures, where the pictures, the reports and TensorBoard are,
and what to do next. Reads the run folder only.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import say
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
    grid = run / "samples" / "asked.png"
    grids = [grid] if grid.exists() else sorted((run / "samples").glob("ema-*.png"))
    reports = [str(run / name) for name in ("quality.html", "report.html", "memory.txt")]
    table = TextTable("", "", "", plain=True)
    for name, value in {
        **words,
        "pictures": str(grids[-1]) if grids else "none yet",
        "reports": ", ".join(path for path in reports if Path(path).exists()) or "none yet",
        "tensorboard": shlex.join([_program("tensorboard"), "--logdir", str(run / "tensorboard")]),
        "next": shlex.join([_program("diffcore"), "sample", str(run), "--out", "more.png"])
        + "; --help lists every command",
    }.items():
        table.add_row(name, value)
    say(f"run {run}")
    table.print()


def _program(name: str) -> str:
    """A program as this interpreter's environment has it, whether or not that is activated."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    cli.run(main)

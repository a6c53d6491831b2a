"""python -m diffcore.summary RUN

What a run has to show: its numbers in a table, and where the pictures, the memory report and TensorBoard
are. Reads the run folder only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.tables import TextTable
from diffcore.runs.figures import numbers


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = cli.Parser(prog="python -m diffcore.summary", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder of diffcore/train.py")
    run: Path = parser.parse_args(argv).run
    if not (run / "metrics.jsonl").exists():
        raise InputError(f"{run}: not a run folder (no metrics.jsonl)")

    table = TextTable(f"Run {run}", "", "")
    for name, value in numbers(run).items():
        table.add_row(name, value)
    table.print()
    grid = run / "samples" / "asked.png"
    grids = [grid] if grid.exists() else sorted((run / "samples").glob("ema-*.png"))
    print(f"sample grid    {grids[-1] if grids else 'none yet'}")
    print(f"memory report  {run / 'memory.txt' if (run / 'memory.txt').exists() else 'none yet'}")
    print(f"tensorboard    {_tensorboard()} --logdir {run / 'tensorboard'}")


def _tensorboard() -> str:
    """The command as this interpreter's environment has it, whether or not that is activated."""
    command = Path(sys.executable).with_name("tensorboard")
    if not command.exists():
        return "tensorboard"
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)


if __name__ == "__main__":
    cli.run(main)

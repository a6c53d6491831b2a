"""python -m diffcore.memory plan | fit | measure | compare | export | seed-table

plan      what a run will take, before it runs; no GPU needed
fit       what fits a card, fastest first; the smallest card, fewest GPUs, largest batch, longest side
measure   the same figures of a few real steps, on this machine; --calibrate: of a GPU, beside torch
compare   what is different between two reports, the largest first
export    a step for Perfetto, or for torch's memory_viz
seed-table  writes docs/seed-memory.md

Every command has --help. Dotted overrides of the config (--model.heads 8) go after the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import say
from diffcore.memory.commands import compare, export, fit, measure, plan, seed_table

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "plan": plan.main,
    "fit": fit.main,
    "measure": measure.main,
    "compare": compare.main,
    "export": export.main,
    "seed-table": seed_table.main,
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module's text."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        say(__doc__)
        return
    if given[0] not in COMMANDS:
        raise InputError(f"unknown command {given[0]!r}; allowed: {', '.join(COMMANDS)}")
    COMMANDS[given[0]](given[1:])


if __name__ == "__main__":
    cli.run(main)

"""deepspeed diffcore/train.py --config configs/demo.yaml [--engine.zero 2 ...]

Also ``python diffcore/train.py --config ...`` for one process. The same command resumes.
Exit codes: ``diffbase/exits.py``.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __package__ in (None, ""):
    # Run by path: Python put diffcore/ first, whose names must not shadow installed packages.
    # With PYTHONSAFEPATH it put nothing there.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from diffbase import cli, output
from diffbase.exits import FATAL, HOLD_BACK
from diffbase.machine.launcher import own_rank
from diffcore.config.configure import parse, parser
from diffcore.runs import run_folder

__all__ = ["main", "parser", "script"]


PROG = "train.py"


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Train as the command line says; returns the exit code."""
    config = parse(argv, prog)
    if (config.run_access or run_folder.access(config.run)) == "group":
        os.umask(0o027)  # of TensorBoard's and DeepSpeed's files too
    elif config.trust == "owner":
        os.umask(0o077)

    from diffcore.evaluation.quality.probe import probe_of
    from diffcore.training.process import train_here

    return train_here(config, probe_of)


def script(argv: Sequence[str] | None = None, prog: str = PROG) -> NoReturn:
    """``main`` as a process: its exit code is the run's and nobody else's.

    gloo's threads outlive destroy_process_group, and now and then abort a process whose run has ended well
    while the interpreter shuts down. Everything is written and closed by then, so the process just leaves.
    """
    code: int | str | None = FATAL
    with output.guarded(survive=True):  # a log that cannot be written is no reason to stop
        try:
            code = cli.run(lambda: main(argv, prog), HOLD_BACK if own_rank() else 0, survive=True)
        except SystemExit as left:
            code = left.code
        except BaseException:
            traceback.print_exc()
        output.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    script()

"""python -m launch.notify.textfile RUN --out FILE.prom: a run's figures for node_exporter.

Its textfile collector (https://github.com/prometheus/node_exporter) reads the file, which is written anew
every ``--seconds`` by a rename, so that nobody reads half of it, and removed when this process is asked to
end, or its parent has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.line import say
from launch.notify.exposition import exposition, replace
from launch.supervise.child import die_with_parent


def parser() -> cli.Parser:
    """The command's flags."""
    parser = cli.Parser(prog="python -m launch.notify.textfile")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, required=True, help="file, in the collector's folder")
    parser.add_argument("--seconds", type=float, default=15.0, help="between two looks (15)")
    parser.add_argument("--parent", type=int, help="process to end with (the one that started this)")
    parser.add_argument("--name", default="", help="label of the figures beside the run folder")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write until the end; a folder that does not take the file is told of once."""
    flags = parser().parse_args(argv)
    parent = os.getppid() if flags.parent is None else flags.parent
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # it may have been ignored
    die_with_parent(signal.SIGTERM)
    told = False
    try:
        while os.getppid() == parent:  # it may have ended before that
            problem = replace(flags.out, exposition(flags.run, flags.name))
            if problem and not told:
                say(f"launch: prometheus: {problem}", error=True)
            told = told or bool(problem)
            time.sleep(flags.seconds)
    finally:
        flags.out.unlink(missing_ok=True)


if __name__ == "__main__":
    cli.run(main)

"""Draw a stand-in for Google's Cartoon Set: the same files, names and labels, with artwork of our own.

    python -m shards.render --out data/cartoonset10k --count 10000 --seed 0
    python -m shards.render --out data/cartoonset100k --count 100000 --layout nested
    python -m shards.render --tgz data/cartoonset10k.tgz --count 10000

Where Google's own set (CC BY 4.0) can be had, point the packer at it instead: nothing downstream tells the
two apart. Every attribute survives the centre crop and 64 x 64; docs/avatars.md says how clearly.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError, Parser, add_answer, answer, run
from diffbase.line import say
from shards.packing.workers import worker_count
from shards.standin.files import LAYOUTS, require_skia, write_folder, write_tgz

PROG = "python -m shards.render"


def parser(prog: str = PROG) -> Parser:
    """The command's flags."""
    parser = Parser(prog=prog, description=__doc__.split("\n", 1)[0])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="folder to write csX.png and csX.csv into")
    target.add_argument("--tgz", type=Path, metavar="FILE", help="archive to write instead of a folder")
    parser.add_argument("--count", type=int, required=True, metavar="N", help="number of avatars")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    parser.add_argument("--layout", choices=LAYOUTS, default="flat", help="one folder or ten (default flat)")
    add_answer(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    arguments = parser(prog).parse_args(argv)
    if arguments.count <= 0:
        raise InputError(f"--count is {arguments.count}; allowed: 1 or more")
    jobs = worker_count(arguments.jobs)
    require_skia()
    write, target = (write_folder, arguments.out) if arguments.out else (write_tgz, arguments.tgz)
    started = time.monotonic()
    with answer(arguments, survive=True) as give:
        drawn = write(target, arguments.count, arguments.seed, jobs, arguments.layout)
        seconds = time.monotonic() - started
        say(f"{target}: {arguments.count} avatars, {drawn} drawn now in {seconds:.1f} s")
        give({"out": target, "avatars": arguments.count, "drawn": drawn, "seconds": seconds})


if __name__ == "__main__":
    run(main)

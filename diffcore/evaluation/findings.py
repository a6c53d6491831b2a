"""python -m diffcore.evaluation.findings [--out docs/findings.md]

Repeats eight findings of earlier systems as experiments: trains every config that they need (configs/
experiments/) with 8 seeds, and more where that decides nothing, measures each checkpoint and writes a page
that says what came out and whether the finding holds. What is done is not done again, so an interrupted
command goes on.

Small networks by default, on stand-in avatars of 64 x 64: some hours of two CPU cores. On GPUs:

    python -m diffcore.evaluation.findings --scale full --jobs 1 --out findings-full.md

or as one job array, whose runs are then collected from the folder that they lie in:

    python -m diffcore.evaluation.findings --scale full --sweep points.yaml
    python launch/submit.py --config configs/experiments/one-hot.yaml --run RUNS --sweep points.yaml --nodes 1
    python -m diffcore.evaluation.findings --scale full --runs RUNS --collect
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable, write_atomic
from diffbase.line import say
from diffbase.shipped import workplace
from diffcore.evaluation import flags

PROG = "python -m diffcore.evaluation.findings"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    parser.add_argument("--out", type=Path, default=Path("findings.md"), help="the page (findings.md)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/findings-SCALE)")
    parser.add_argument("--seeds", type=int, default=16, help="seeds of an experiment at most (default 16)")
    parser.add_argument("--scale", choices=("cpu", "full"), default="cpu", help="how large (default cpu)")
    parser.add_argument(
        "--jobs", type=cli.between(1, 1024), help="runs at once (default: one per core; full: 1)"
    )
    parser.add_argument(
        "--samples", type=cli.between(2), default=256, help="images per checkpoint (default 256)"
    )
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE", help="write the plan for launch/submit.py, only"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing: measure and write the page")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    if not 2 <= a.seeds <= 16:
        raise InputError(f"--seeds {a.seeds}: allowed: 2 to 16")

    from diffcore.evaluation.studies import findings

    points = findings.plan(a.runs or workplace() / "runs" / f"findings-{a.scale}", a.seeds, a.scale)
    if a.sweep:
        text = yaml.safe_dump([dict(findings.overrides(point)) for point in points])
        write_atomic(a.sweep, text.encode())
        say(f"{a.sweep}: {len(points)} points")
        return
    check_writable(flags.folder_of_page(a.out))
    with cli.answer(a, survive=True) as give:
        measured = findings.repeat(points, a.scale, a.jobs, a.samples, a.collect)
        findings.write(a.out, measured, points, a.scale)
        say(f"page: {a.out}")
        give({f"{name}/{seed}": row for (name, seed), row in measured.items()})


if __name__ == "__main__":
    cli.run(main)

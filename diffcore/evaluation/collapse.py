"""python -m diffcore.evaluation.collapse [RUN] [--out docs/guidance.md]

Does a fast sampler stay faithful under guidance? Trains configs/experiments/guidance.yaml (data and judge are
made on the way), then compares 1000-step DDPM with DPM-Solver++ and DDIM at several guidance scales: the same
1,000 labels and noise in every cell, with 95 % intervals, and each fast sampler's difference from DDPM sample
by sample. Writes the table as Markdown. What is drawn is kept in RUN/collapse: the same command goes on where
it was interrupted.

Two processes share the work (on GPUs: one each):  torchrun --nproc-per-node 2 -m diffcore.evaluation.collapse
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffcore.evaluation import flags

SCALES = "1,2,4,6,10"


PROG = "python -m diffcore.evaluation.collapse"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    parser.add_argument("run", type=Path, nargs="?", help="trained already (default: one is made)")
    flags.add_samples(parser, 1000, "images per cell")
    flags.add_judge(parser)
    parser.add_argument("--scales", default=SCALES, help=f"guidance scales (default {SCALES})")
    parser.add_argument("--out", type=Path, default=Path("guidance.md"), help="the table (guidance.md)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    flags.check(a)
    flags.check_out(flags.folder_of_page(a.out), *filter(None, [a.run]))
    scales = flags.numbers("--scales", a.scales)

    from diffcore.evaluation.quality import drawing
    from diffcore.evaluation.studies import fast_samplers
    from diffcore.evaluation.studies.guidance_sweep import table_of

    with cli.answer(a, survive=True) as give, drawing.ranks(a.run or a.out.parent) as world:
        say = drawing.teller(world)
        run = a.run or fast_samplers.make_run(world, say)
        table = table_of(run, a.judge, a.data, world, a.samples, 1, a.seed, run / "collapse")
        figures = fast_samplers.compare(table, scales, a.out, say)
        if world.main:
            give(figures)
        say(f"table: {a.out}")


if __name__ == "__main__":
    cli.run(main)

"""python -m diffcore.evaluation.sweep RUN [--scales 0,1,2,3,4,5,6,7,8,9] [--samplers dpm++,...]

Which guidance scale, sampler and number of steps? Draws the same conditions with the same noise at every
scale with every sampler, then with fewer and more steps. Writes into the run folder:

    sweep.png, sweep.html   the pictures, a row per scale, and fidelity against diversity
    sweep.json              every figure
    sampling.json           the recommended settings, which diffcore.sample and diffcore.evaluate then use

Recommended is, among the settings that are as faithful as the best within chance, the one nearest to real
images by the Frechet distance, and of its steps the fewest that are as faithful.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffbase import cli
from diffbase.cli import InputError
from diffcore.config.samplers import SAMPLERS
from diffcore.evaluation import flags
from diffcore.evaluation.flags import numbers

SCALES = "0,1,2,3,4,5,6,7,8,9"
STEPS = "5,10,20,50"


PROG = "python -m diffcore.evaluation.sweep"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    flags.add_run(parser, 256, "images per cell")
    parser.add_argument("--scales", default=SCALES, help=f"guidance scales (default {SCALES})")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help="default: all")
    parser.add_argument("--steps", default=STEPS, help=f"tried at the best scale (default {STEPS})")
    parser.add_argument("--repeats", type=int, default=4, help="of them with the same labels (default 4)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    flags.check(a)
    flags.check_out(a.run)
    scales, steps = numbers("--scales", a.scales), [int(n) for n in numbers("--steps", a.steps)]
    if not 2 <= a.repeats <= a.samples:
        raise InputError(f"--repeats {a.repeats}: allowed: 2 to --samples")

    from diffcore.evaluation.quality import drawing
    from diffcore.evaluation.studies import guidance_sweep

    with cli.answer(a, survive=True) as give, drawing.ranks(a.run) as world:
        table = guidance_sweep.table_of(a.run, a.judge, a.data, world, a.samples, a.repeats, a.seed)
        samplers = a.samplers.split(",")
        cells, tried, chosen = guidance_sweep.sweep(table, samplers, scales, steps, drawing.teller(world))
        if world.main:
            give(guidance_sweep.write(a.run, table, cells, tried, chosen))


if __name__ == "__main__":
    cli.run(main)

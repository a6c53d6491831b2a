"""python -m diffcore.evaluate RUN [--samples 2000] [--guidance 2] [--steps 20] [--sampler dpm++]

Does a run draw what was asked, and how well? Draws with the EMA weights of the newest checkpoint and measures
fidelity by attribute with the judge of the run's shards, Frechet and kernel distance, diversity, nearest
training images and the cleanness of the background. Writes quality.json and quality.html into the run folder
and figures to its TensorBoard. Under torchrun or the deepspeed launcher the ranks share the work:

    deepspeed --num_gpus 8 --module diffcore.evaluate RUN
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.line import say
from diffcore.config.samplers import NAMES
from diffcore.evaluation import flags
from diffcore.runs.sampling import sampling_of

PROG = "python -m diffcore.evaluate"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    flags.add_run(parser, 2000, "images drawn")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: recommended, or the run's)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: likewise)")
    parser.add_argument("--sampler", help=f"one of {NAMES} (default: likewise)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights draw")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (default newest)")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of Inception, if at hand")
    flags.add_out(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)
    flags.check(a)

    from diffcore.evaluation.judging.judge import open_run
    from diffcore.evaluation.quality import drawing, measure, record, report
    from diffcore.runs.source import config_of

    config_of(a.run)
    out = flags.given_out(a)
    with cli.answer(a, survive=True) as give, drawing.ranks(a.run if a.run.is_dir() else out) as world:
        model, judge = open_run(a.run, a.judge, a.data, weights=a.weights, checkpoint=a.checkpoint)
        sampling = sampling_of(model.config, a)
        measured = measure.measure(
            model, judge, sampling, world, samples=a.samples, seed=a.seed, inception=a.inception
        )
        if world.main:
            figures = record.write(out, a.run, a.weights, model, measured)
            record.show(figures, f"Fidelity of {a.run}, step {model.step}, {figures['samples']} samples")
            say(f"report: {out / report.FILE}")
            give(figures)


if __name__ == "__main__":
    cli.run(main)
